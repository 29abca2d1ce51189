#pragma once
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "data/tokenizer.h"

// Small tokenizer.json files for tests.
namespace jiboia::tokenizer_files {

using nlohmann::json;

inline std::filesystem::path temporary_path() {
  const auto* test = testing::UnitTest::GetInstance()->current_test_info();
  return std::filesystem::path(testing::TempDir()) /
         fmt::format("{}.{}.json", test->test_suite_name(), test->name());
}

inline Tokenizer load_text(const std::string& text) {
  const std::filesystem::path path = temporary_path();
  std::ofstream(path, std::ios::binary) << text;
  return Tokenizer::load(path);
}

inline Tokenizer load(const json& file) { return load_text(file.dump()); }

inline std::string utf8_of(int code_point) {  // below U+0800
  if (code_point < 0x80) return {static_cast<char>(code_point)};
  return {static_cast<char>(0xC0 | code_point >> 6), static_cast<char>(0x80 | (code_point & 0x3F))};
}

inline json added_token(int id, const std::string& content, bool special, bool normalized = false) {
  return {{"id", id},        {"content", content},       {"single_word", false}, {"lstrip", false},
          {"rstrip", false}, {"normalized", normalized}, {"special", special}};
}

inline json template_of(const std::string& token, int id) {
  return {{"type", "TemplateProcessing"},
          {"single",
           {{{"SpecialToken", {{"id", token}, {"type_id", 0}}}},
            {{"Sequence", {{"id", "A"}, {"type_id", 0}}}}}},
          {"pair", json::array()},
          {"special_tokens", {{token, {{"id", token}, {"ids", {id}}, {"tokens", {token}}}}}}};
}

/// Ids 0..255 are the bytes in the order of GPT-2's alphabet, so 'a' is 64 and ' ' is 220; then
/// come the results of the merges, then the special token "<|end|>".
inline json byte_level_file(const std::vector<std::pair<std::string, std::string>>& merges) {
  json vocabulary = json::object();
  const auto append = [&](const std::string& token) {
    vocabulary.emplace(token, vocabulary.size());
  };
  for (int byte = 0x21; byte < 0x7F; ++byte) append(utf8_of(byte));
  for (int byte = 0xA1; byte < 0x100; ++byte) {
    if (byte != 0xAD) append(utf8_of(byte));
  }
  for (int code_point = 0x100; code_point < 0x144; ++code_point) append(utf8_of(code_point));
  for (const auto& [left, right] : merges) append(left + right);
  const json byte_level = {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", true}};
  const auto size = static_cast<int>(vocabulary.size());
  return {{"version", "1.0"},
          {"added_tokens", {added_token(size, "<|end|>", true)}},
          {"normalizer", nullptr},
          {"pre_tokenizer", byte_level},
          {"post_processor", byte_level},
          {"decoder", byte_level},
          {"model", {{"type", "BPE"}, {"vocab", vocabulary}, {"merges", merges}}}};
}

/// The special tokens 0..2, the bytes 3..258, then `tokens` from 259 up.
inline json llama_file(const std::vector<std::string>& tokens,
                       const std::vector<std::pair<std::string, std::string>>& merges) {
  json vocabulary = {{"<unk>", 0}, {"<s>", 1}, {"</s>", 2}};
  for (int byte = 0; byte < 256; ++byte) {
    vocabulary.emplace(fmt::format("<0x{:02X}>", byte), 3 + byte);
  }
  for (const std::string& token : tokens) vocabulary.emplace(token, vocabulary.size());
  const auto replace = [](const char* from, const char* to) -> json {
    return {{"type", "Replace"}, {"pattern", {{"String", from}}}, {"content", to}};
  };
  return {
      {"added_tokens",
       {added_token(0, "<unk>", true), added_token(1, "<s>", true), added_token(2, "</s>", true)}},
      {"normalizer",
       {{"type", "Sequence"},
        {"normalizers", {{{"type", "Prepend"}, {"prepend", "▁"}}, replace(" ", "▁")}}}},
      {"pre_tokenizer", nullptr},
      {"post_processor", template_of("<s>", 1)},
      {"decoder",
       {{"type", "Sequence"},
        {"decoders",
         {replace("▁", " "),
          {{"type", "ByteFallback"}},
          {{"type", "Fuse"}},
          {{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}}}}}},
      {"model",
       {{"unk_token", "<unk>"},
        {"byte_fallback", true},
        {"fuse_unk", true},
        {"vocab", vocabulary},
        {"merges", merges}}}};
}

inline json small_llama_file() {
  // 259 ▁, 260 a, 261 b, 262 ▁a, 263 ▁ab
  return llama_file({"▁", "a", "b", "▁a", "▁ab"}, {{"▁", "a"}, {"▁a", "b"}});
}

}  // namespace jiboia::tokenizer_files
