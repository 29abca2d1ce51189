#include "data/tokenizer/tokenizer_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "core/error.h"
#include "tests/data/tokenizer_files.h"

namespace jiboia {
namespace {

using namespace tokenizer_files;
using testing::HasSubstr;

/// The message of the error that loading `text` ends with; its kind is checked here.
std::string load_error(const std::string& text) {
  try {
    load_text(text);
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kData) << error.what();
    return error.what();
  }
  ADD_FAILURE() << "no error";
  return {};
}

TEST(TokenizerFileTest, NamesAMissingFile) {
  try {
    Tokenizer::load("/nonexistent/tokenizer.json");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kIo);
    EXPECT_THAT(error.what(), HasSubstr("/nonexistent/tokenizer.json"));
  }
}

TEST(TokenizerFileTest, RefusesMalformedJson) {
  EXPECT_THAT(load_error(""), HasSubstr(temporary_path().string()));
  load_error("{");
  load_error("[]");
  EXPECT_THAT(load_error("{}"), HasSubstr("model"));
  // A lone surrogate, in place of a token's text.
  std::string text = byte_level_file({}).dump();
  const std::size_t token = text.find("\"z\"");
  ASSERT_NE(token, std::string::npos);
  EXPECT_THAT(load_error(text.replace(token, 3, "\"\\ud800\"")), HasSubstr("surrogate"));
}

TEST(TokenizerFileTest, KeepsMessagesShort) {
  json file = byte_level_file({});
  file["model"]["merges"] = {std::string(1 << 20, 'a') + " b"};
  const std::string message = load_error(file.dump());
  EXPECT_THAT(message, HasSubstr("merges[0]"));
  EXPECT_LT(message.size(), 1000u);
}

struct BadFile {
  const char* name;
  std::function<void(json&)> damage;
  std::vector<std::string> message;  ///< parts of it
};

void expect_errors(const json& good, const std::vector<BadFile>& cases) {
  EXPECT_NO_THROW(load(good));
  for (const BadFile& bad : cases) {
    SCOPED_TRACE(bad.name);
    json file = good;
    bad.damage(file);
    const std::string message = load_error(file.dump());
    for (const std::string& part : bad.message) EXPECT_THAT(message, HasSubstr(part));
  }
}

TEST(TokenizerFileTest, RefusesBadVocabularies) {
  expect_errors(
      byte_level_file({{"a", "b"}}),
      {
          {"gap", [](json& f) { f["model"]["vocab"]["ab"] = 300; }, {"'ab'", "300", "gaps"}},
          {"gap before an added token", [](json& f) { f["added_tokens"][0]["id"] = 258; }, {"258"}},
          {"duplicate id", [](json& f) { f["model"]["vocab"]["ab"] = 5; }, {"same id 5", "'ab'"}},
          {"added token's id taken", [](json& f) { f["added_tokens"][0]["id"] = 3; }, {"id 3"}},
          {"two ids of a token",
           [](json& f) { f["added_tokens"].push_back(added_token(4, "<|end|>", true)); },
           {"<|end|>", "257 and 4"}},
          {"added token with another id than in the vocabulary",
           [](json& f) { f["added_tokens"][0]["content"] = "a"; },
           {"'a'", "64 and 257"}},
          {"negative id", [](json& f) { f["model"]["vocab"]["ab"] = -1; }, {"vocab: ab", "-1"}},
          {"id of 2^31", [](json& f) { f["model"]["vocab"]["ab"] = 1LL << 31; }, {"2147483648"}},
          {"id of 2^70", [](json& f) { f["model"]["vocab"]["ab"] = 0x1p70; }, {"vocab: ab"}},
          {"id as text", [](json& f) { f["model"]["vocab"]["ab"] = "5"; }, {"vocab: ab"}},
          {"empty token", [](json& f) { f["model"]["vocab"][""] = 258; }, {"empty"}},
          {"empty added token", [](json& f) { f["added_tokens"][0]["content"] = ""; }, {"empty"}},
          {"no vocabulary", [](json& f) { f["model"]["vocab"] = json::object(); }, {"vocab"}},
          {"a byte without token",
           [](json& f) {
             f["model"]["vocab"].erase("!");
             f["model"]["vocab"]["new"] = 0;
           },
           {"0x21"}},
          {"unknown token missing", [](json& f) { f["model"]["unk_token"] = "?!"; }, {"?!"}},
      });
  json llama = small_llama_file();
  expect_errors(llama, {{"nothing to fall back to",
                         [](json& f) {
                           f["model"]["byte_fallback"] = false;
                           f["model"].erase("unk_token");
                         },
                         {"unk_token"}},
                        {"a byte without token",
                         [](json& f) {
                           f["model"]["vocab"].erase("<0x07>");
                           f["model"]["vocab"]["bell"] = 10;
                         },
                         {"0x07"}}});
}

TEST(TokenizerFileTest, RefusesBadMerges) {
  const auto merges = [](json value) { return [value](json& f) { f["model"]["merges"] = value; }; };
  expect_errors(byte_level_file({{"a", "b"}}),
                {
                    {"unknown left", merges({"xyz b"}), {"merges[0]", "'xyz'"}},
                    {"unknown right", merges({"a xyz"}), {"merges[0]", "'xyz'"}},
                    {"unknown result", merges({"a b", "b a"}), {"merges[1]", "'ba'"}},
                    {"repeated", merges({"a b", "a b"}), {"merges[1]", "repeats merge 0"}},
                    {"one token", merges({"ab"}), {"merges[0]"}},
                    {"three tokens", merges({"a b a"}), {"merges[0]"}},
                    {"a triple", merges({json{"a", "b", "a"}}), {"merges[0]"}},
                    {"a number", merges({7}), {"merges[0]"}},
                    {"an object", merges(json::object()), {"merges"}},
                });
}

TEST(TokenizerFileTest, RefusesUnsupportedComponents) {
  const auto set = [](const char* pointer, json value) {
    return [pointer, value](json& f) { f[json::json_pointer(pointer)] = value; };
  };
  const json split = {{"type", "Split"},
                      {"pattern", {{"Regex", "a"}}},
                      {"behavior", "Isolated"},
                      {"invert", false}};
  const json byte_level = {{"type", "ByteLevel"}, {"add_prefix_space", false}};
  const auto sequence = [&](json first, json second) -> json {
    return {{"type", "Sequence"}, {"pretokenizers", {first, second}}};
  };
  json removed = split, inverted = split, literal = split, bad_regex = split;
  removed["behavior"] = "Removed";
  inverted["invert"] = true;
  literal["pattern"] = {{"String", "a"}};
  bad_regex["pattern"] = {{"Regex", "(a"}};
  json unknown_id = template_of("<|end|>", 256);
  unknown_id["special_tokens"]["<|end|>"]["ids"] = {257};
  json without_text = template_of("<|end|>", 256);
  without_text["single"].erase(1);

  expect_errors(
      byte_level_file({}),
      {
          {"model", set("/model/type", "Unigram"), {"model", "'Unigram'", "BPE"}},
          {"dropout", set("/model/dropout", 0.1), {"model: dropout"}},
          {"prefix", set("/model/continuing_subword_prefix", "##"), {"continuing_subword_prefix"}},
          {"suffix", set("/model/end_of_word_suffix", "</w>"), {"end_of_word_suffix"}},
          {"byte fallback", set("/model/byte_fallback", true), {"byte_fallback"}},
          {"unknown key", set("/model/temperature", 1), {"model: temperature"}},
          {"unknown part", set("/filter", 1), {"filter"}},
          {"normalizer",
           set("/normalizer", {{"type", "BertNormalizer"}}),
           {"normalizer", "'BertNormalizer'", "NFC"}},
          {"normalizer in a sequence",
           set("/normalizer", {{"type", "Sequence"}, {"normalizers", {{{"type", "Lowercase"}}}}}),
           {"normalizers[0]", "'Lowercase'"}},
          {"regex normalizer",
           set("/normalizer",
               {{"type", "Replace"}, {"pattern", {{"Regex", "a"}}}, {"content", "b"}}),
           {"normalizer: pattern", "Regex"}},
          {"pre-tokenizer",
           set("/pre_tokenizer", {{"type", "Whitespace"}}),
           {"pre_tokenizer", "'Whitespace'", "ByteLevel"}},
          {"split last",
           set("/pre_tokenizer", sequence(byte_level, split)),
           {"pretokenizers[0]", "'ByteLevel'"}},
          {"digits",
           set("/pre_tokenizer", sequence({{"type", "Digits"}}, byte_level)),
           {"pretokenizers[0]", "'Digits'"}},
          {"behavior", set("/pre_tokenizer", sequence(removed, byte_level)), {"Isolated"}},
          {"invert", set("/pre_tokenizer", sequence(inverted, byte_level)), {"invert"}},
          {"literal split", set("/pre_tokenizer", sequence(literal, byte_level)), {"String"}},
          {"malformed pattern", set("/pre_tokenizer", sequence(bad_regex, byte_level)), {"'(a'"}},
          {"no decoder", set("/decoder", nullptr), {"decoder"}},
          {"decoder", set("/decoder", {{"type", "WordPiece"}}), {"decoder", "'WordPiece'"}},
          {"decoder of the other kind",
           set("/decoder", small_llama_file()["decoder"]),
           {"decoder", "ByteLevel"}},
          {"post-processor",
           set("/post_processor", {{"type", "RobertaProcessing"}}),
           {"post_processor", "'RobertaProcessing'"}},
          {"id in a template", set("/post_processor", unknown_id), {"<|end|>", "257 tokens"}},
          {"template without text", set("/post_processor", without_text), {"text A"}},
          {"lstrip", set("/added_tokens/0/lstrip", true), {"added_tokens[0]", "lstrip"}},
          {"single_word", set("/added_tokens/0/single_word", true), {"single_word"}},
      });
  expect_errors(small_llama_file(),
                {
                    {"order of decoders",
                     set("/decoder/decoders/0", {{"type", "Fuse"}}),
                     {"decoders[0]", "'Fuse'"}},
                    {"strip", set("/decoder/decoders/3/start", 2), {"decoders[3]"}},
                    {"few decoders",
                     [](json& f) {
                       f["decoder"]["decoders"].erase(3);
                       f["decoder"]["decoders"].erase(2);
                     },
                     {"got 2"}},
                });
}

}  // namespace
}  // namespace jiboia
