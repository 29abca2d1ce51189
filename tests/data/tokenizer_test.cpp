#include "data/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "core/error.h"
#include "data/tokenizer/regex.h"
#include "data/tokenizer/utf8.h"

namespace jiboia {
namespace {

using nlohmann::json;
using testing::ElementsAre;
using testing::HasSubstr;
using Ids = std::vector<std::int32_t>;

std::filesystem::path temporary_path() {
  const auto* test = testing::UnitTest::GetInstance()->current_test_info();
  return std::filesystem::path(testing::TempDir()) /
         fmt::format("{}.{}.json", test->test_suite_name(), test->name());
}

Tokenizer load_text(const std::string& text) {
  const std::filesystem::path path = temporary_path();
  std::ofstream(path, std::ios::binary) << text;
  return Tokenizer::load(path);
}

Tokenizer load(const json& file) { return load_text(file.dump()); }

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

std::string utf8_of(int code_point) {  // below U+0800
  if (code_point < 0x80) return {static_cast<char>(code_point)};
  return {static_cast<char>(0xC0 | code_point >> 6), static_cast<char>(0x80 | (code_point & 0x3F))};
}

json added_token(int id, const std::string& content, bool special, bool normalized = false) {
  return {{"id", id},        {"content", content},       {"single_word", false}, {"lstrip", false},
          {"rstrip", false}, {"normalized", normalized}, {"special", special}};
}

json template_of(const std::string& token, int id) {
  return {{"type", "TemplateProcessing"},
          {"single",
           {{{"SpecialToken", {{"id", token}, {"type_id", 0}}}},
            {{"Sequence", {{"id", "A"}, {"type_id", 0}}}}}},
          {"pair", json::array()},
          {"special_tokens", {{token, {{"id", token}, {"ids", {id}}, {"tokens", {token}}}}}}};
}

/// Ids 0..255 are the bytes in the order of GPT-2's alphabet, so 'a' is 64 and ' ' is 220; then
/// come the results of the merges, then the special token "<|end|>".
json byte_level_file(const std::vector<std::pair<std::string, std::string>>& merges) {
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
json llama_file(const std::vector<std::string>& tokens,
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

json small_llama_file() {
  // 259 ▁, 260 a, 261 b, 262 ▁a, 263 ▁ab
  return llama_file({"▁", "a", "b", "▁a", "▁ab"}, {{"▁", "a"}, {"▁a", "b"}});
}

TEST(TokenizerTest, MergesByRankThenFromTheLeft) {
  // 256 bc, 257 ab, 258 aa, 259 aaaa
  Tokenizer tokenizer = load(byte_level_file({{"b", "c"}, {"a", "b"}, {"a", "a"}, {"aa", "aa"}}));
  EXPECT_THAT(tokenizer.encode("abc", false), ElementsAre(64, 256));
  EXPECT_THAT(tokenizer.encode("abb", false), ElementsAre(257, 65));
  EXPECT_THAT(tokenizer.encode("aaaaa", false), ElementsAre(259, 64));
  EXPECT_THAT(tokenizer.encode("aaabc", false), ElementsAre(258, 64, 256));
  EXPECT_THAT(tokenizer.encode("abc", false), ElementsAre(64, 256)) << "from the cache";
  EXPECT_THAT(tokenizer.encode("", true), ElementsAre());
  EXPECT_EQ(tokenizer.vocab_size(), 261);
}

TEST(TokenizerTest, MergesMayBeWrittenAsTextOrPairs) {
  json file = byte_level_file({{"b", "c"}, {"a", "bc"}});
  file["model"]["merges"] = {"b c", json{"a", "bc"}};
  EXPECT_THAT(load(file).encode("abc", false), ElementsAre(257));
}

TEST(TokenizerTest, CutsWordsAsGpt2) {
  // The merge would join across every boundary that the pattern does not make.
  Tokenizer tokenizer = load(byte_level_file({{"Ġ", "a"}, {"a", "Ġ"}, {"a", "1"}, {"Ġ", "Ġ"}}));
  EXPECT_THAT(tokenizer.encode("a a1", false), ElementsAre(64, 256, 16));
  EXPECT_THAT(tokenizer.encode("   a", false), ElementsAre(259, 256)) << "one space goes with a";
  EXPECT_THAT(tokenizer.encode("a  ", false), ElementsAre(64, 259));
}

TEST(TokenizerTest, AddsPrefixSpaceOnce) {
  json file = byte_level_file({});
  file["pre_tokenizer"]["add_prefix_space"] = true;
  Tokenizer tokenizer = load(file);
  EXPECT_THAT(tokenizer.encode("a", false), ElementsAre(220, 64));
  EXPECT_THAT(tokenizer.encode(" a", false), ElementsAre(220, 64));
}

TEST(TokenizerTest, SplitsByTheFilesPatterns) {
  json file = byte_level_file({{"a", "a"}, {"a", "1"}});
  file["pre_tokenizer"] = {
      {"type", "Sequence"},
      {"pretokenizers",
       {{{"type", "Split"},
         {"pattern", {{"Regex", "\\p{N}"}}},
         {"behavior", "Isolated"},
         {"invert", false}},
        {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}}}}};
  EXPECT_THAT(load(file).encode("aa1aa", false), ElementsAre(256, 16, 256));
}

TEST(TokenizerTest, IgnoresMergesForWholeTokens) {
  json file = byte_level_file({{"b", "c"}, {"a", "b"}, {"ab", "c"}});
  EXPECT_THAT(load(file).encode("abc", false), ElementsAre(64, 256));
  file["model"]["ignore_merges"] = true;
  EXPECT_THAT(load(file).encode("abc", false), ElementsAre(258));
}

TEST(TokenizerTest, NormalizesToNfc) {
  json file = byte_level_file({});
  const std::string decomposed = "e\u0301", composed = "\u00e9";
  EXPECT_NE(load(file).encode(decomposed, false), load(file).encode(composed, false));
  file["normalizer"] = {{"type", "NFC"}};
  EXPECT_EQ(load(file).encode(decomposed, false), load(file).encode(composed, false));
}

TEST(TokenizerTest, FindsAddedTokensInTheTextLongestFirst) {
  json file = byte_level_file({});
  file["added_tokens"].push_back(added_token(257, "<|end", false));
  file["added_tokens"].push_back(added_token(258, "a\u0301", false, /*normalized=*/true));
  file["normalizer"] = {{"type", "NFC"}};
  Tokenizer tokenizer = load(file);
  EXPECT_THAT(tokenizer.encode("a<|end|>a<|endb", false), ElementsAre(64, 256, 64, 257, 65));
  EXPECT_THAT(tokenizer.encode("\u00e1", false), ElementsAre(258));
  const Ids ids = {64, 256, 257};
  EXPECT_EQ(tokenizer.decode(ids, /*skip_special_tokens=*/false), "a<|end|><|end");
  EXPECT_EQ(tokenizer.decode(ids, /*skip_special_tokens=*/true), "a<|end");
  EXPECT_EQ(tokenizer.id_of_token("<|end|>"), 256);
  EXPECT_EQ(tokenizer.id_of_token("<|"), std::nullopt);
}

TEST(TokenizerTest, PutsTheTemplateAroundTheText) {
  json file = byte_level_file({});
  file["post_processor"] = template_of("<|end|>", 256);
  EXPECT_THAT(load(file).encode("a", true), ElementsAre(256, 64));
  auto& single = file["post_processor"]["single"];
  std::swap(single[0], single[1]);
  EXPECT_THAT(load(file).encode("a", true), ElementsAre(64, 256));
  EXPECT_THAT(load(file).encode("a", false), ElementsAre(64));
  file["post_processor"] = {{"type", "Sequence"},
                            {"processors", {{{"type", "ByteLevel"}}, file["post_processor"]}}};
  EXPECT_THAT(load(file).encode("a", true), ElementsAre(64, 256));
}

TEST(TokenizerTest, LlamaMarksSpacesAndSpellsUnknownCharactersInBytes) {
  Tokenizer tokenizer = load(small_llama_file());
  EXPECT_THAT(tokenizer.encode("ab a", true), ElementsAre(1, 263, 262));
  EXPECT_THAT(tokenizer.encode("é", false), ElementsAre(259, 3 + 0xC3, 3 + 0xA9));
  EXPECT_THAT(tokenizer.encode("b</s>b", false), ElementsAre(259, 261, 2, 259, 261));
  EXPECT_EQ(tokenizer.decode(Ids{1, 263, 262}, true), "ab a");
  EXPECT_EQ(tokenizer.decode(Ids{1, 263}, false), "<s> ab") << "strips at the very beginning only";
  EXPECT_EQ(tokenizer.decode(Ids{3 + 0xC3, 3 + 0xA9, 3 + 0xC3}, false), "\uFFFD\uFFFD\uFFFD")
      << "a run of bytes is text as a whole or not at all";
}

TEST(TokenizerTest, LlamaWithoutByteTokensFusesUnknownCharacters) {
  json file = small_llama_file();
  json& model = file["model"];
  for (int byte = 0; byte < 256; ++byte) model["vocab"].erase(fmt::format("<0x{:02X}>", byte));
  for (auto& [token, id] : model["vocab"].items()) {
    if (id > 2) id = id.get<int>() - 256;
  }
  EXPECT_THAT(load(file).encode("aéxb x", false), ElementsAre(6, 0, 5, 3, 0));
  model["fuse_unk"] = false;
  EXPECT_THAT(load(file).encode("aéxb", false), ElementsAre(6, 0, 0, 5));
}

TEST(TokenizerTest, MergesAcrossWordsWhereTheVocabularyDoes) {
  // 259 ▁, 260 a, 261 a▁, 262 a▁a
  Tokenizer tokenizer = load(llama_file({"▁", "a", "a▁", "a▁a"}, {{"a", "▁"}, {"a▁", "a"}}));
  EXPECT_THAT(tokenizer.encode("a a", false), ElementsAre(259, 262));
}

TEST(TokenizerTest, MetaspacePrependsAsItsSchemeSays) {
  json file = small_llama_file();
  file["normalizer"] = nullptr;
  const auto encode = [&](const char* scheme, const char* text) {
    file["pre_tokenizer"] = {
        {"type", "Metaspace"}, {"replacement", "▁"}, {"prepend_scheme", scheme}, {"split", false}};
    return load(file).encode(text, false);
  };
  EXPECT_THAT(encode("always", "a</s>a"), ElementsAre(262, 2, 262));
  EXPECT_THAT(encode("first", "a</s>a"), ElementsAre(262, 2, 260));
  EXPECT_THAT(encode("first", "</s>a"), ElementsAre(2, 260));
  EXPECT_THAT(encode("never", "a</s>a"), ElementsAre(260, 2, 260));
  EXPECT_THAT(encode("always", " a"), ElementsAre(262)) << "not twice";
}

TEST(TokenizerTest, MetaspaceSplitsBeforeEverySpace) {
  json file = llama_file({"▁", "a", "a▁"}, {{"a", "▁"}});
  file["normalizer"] = nullptr;
  file["pre_tokenizer"] = {
      {"type", "Metaspace"}, {"replacement", "▁"}, {"prepend_scheme", "never"}};
  EXPECT_THAT(load(file).encode("a a", false), ElementsAre(260, 259, 260));
  file["pre_tokenizer"]["split"] = false;
  EXPECT_THAT(load(file).encode("a a", false), ElementsAre(261, 260));
}

TEST(TokenizerTest, ReadsInvalidUtf8AsReplacementCharacters) {
  Tokenizer tokenizer = load(byte_level_file({}));
  EXPECT_EQ(tokenizer.encode("a\xFF\xC3", false), tokenizer.encode("a\uFFFD\uFFFD", false));
  EXPECT_EQ(tokenizer.decode(Ids{64, 187}, false), "a\uFFFD");  // 187: the byte 0xFF
}

TEST(TokenizerTest, RoundTripsEveryByteOfUtf8) {
  std::string text;
  for (int code_point = 0; code_point < 0x800; ++code_point) text += utf8_of(code_point);
  text += "\uFFFF\U0001F40D\U0010FFFF";
  Tokenizer byte_level = load(byte_level_file({{"a", "b"}}));
  EXPECT_EQ(byte_level.decode(byte_level.encode(text, false), false), text);
  Tokenizer llama = load(small_llama_file());
  EXPECT_EQ(llama.decode(llama.encode(text, false), false), text);
}

TEST(TokenizerTest, RefusesToDecodeUnknownIds) {
  const Tokenizer tokenizer = load(byte_level_file({}));
  for (const std::int32_t id : {-1, 257, 1 << 30}) {
    try {
      tokenizer.decode(Ids{id}, false);
      ADD_FAILURE() << id;
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kInvalidArgument);
      EXPECT_THAT(error.what(), HasSubstr(std::to_string(id)));
    }
  }
}

TEST(TokenizerTest, EncodesLongRunsInLinearTime) {  // quadratic time would be hours
  constexpr std::size_t kLength = std::size_t{4} << 20;
  const std::string letters(kLength, 'a');
  Tokenizer byte_level = load(byte_level_file({{"a", "a"}, {"aa", "aa"}}));
  const Ids ids = byte_level.encode(letters, false);
  EXPECT_EQ(ids, Ids(kLength / 4, 257));
  EXPECT_EQ(byte_level.decode(ids, false), letters);
  EXPECT_EQ(byte_level.encode(std::string(kLength, ' '), false).size(), kLength);
  Tokenizer llama = load(llama_file({"▁", "a", "aa"}, {{"a", "a"}}));
  EXPECT_EQ(llama.encode(letters, false).size(), 1 + kLength / 2);
}

TEST(StreamDecoderTest, GivesCompleteCharactersOnly) {
  Tokenizer tokenizer = load(byte_level_file({}));
  const Ids snake = tokenizer.encode("\U0001F40D", false);
  ASSERT_EQ(snake.size(), 4u);
  StreamDecoder stream(tokenizer, /*skip_special_tokens=*/true);
  EXPECT_EQ(stream.append(64), "a");
  for (int i = 0; i < 3; ++i) EXPECT_EQ(stream.append(snake[i]), "");
  EXPECT_EQ(stream.append(256), "") << "special";
  EXPECT_EQ(stream.append(snake[3]), "\U0001F40D");
  EXPECT_EQ(stream.append(snake[0]), "");
  EXPECT_EQ(stream.append(64), "\uFFFDa");
  EXPECT_EQ(stream.append(snake[0]), "");
  EXPECT_EQ(stream.finish(), "\uFFFD");
  EXPECT_EQ(stream.finish(), "");
}

TEST(StreamDecoderTest, StripsLlamasFirstSpaceOnly) {
  const Tokenizer tokenizer = load(small_llama_file());
  StreamDecoder stream(tokenizer, /*skip_special_tokens=*/true);
  EXPECT_EQ(stream.append(1), "");
  EXPECT_EQ(stream.append(259), "");
  EXPECT_EQ(stream.append(262), " a");
  EXPECT_EQ(stream.append(3 + 0xC3), "");
  EXPECT_EQ(stream.append(3 + 0xA9), "é");
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

TEST(RegexTest, FindsUnicodeWhiteSpaceAsOnigurumaDoes) {
  const Regex space("\\s"), other("[^\\S]+");
  for (const char* text : {" ", "\n", "\x0b", "\u0085", "\u00a0", "\u2028", "\u3000"}) {
    EXPECT_TRUE(space.find(text, 0)) << text;
    EXPECT_TRUE(other.find(text, 0)) << text;
  }
  for (const char* text : {"a", "\u180e", "\u200b", "\ufeff"}) {
    EXPECT_FALSE(space.find(text, 0)) << text;
    EXPECT_FALSE(other.find(text, 0)) << text;
  }
}

TEST(RegexTest, FindsFromAPlaceOn) {
  const Regex pattern("\\p{Lu}\\p{N}{1,2}");
  const std::string text = "éÉ123 B4";
  const auto first = pattern.find(text, 0);
  ASSERT_TRUE(first);
  EXPECT_EQ(text.substr(first->begin, first->end - first->begin), "É12");
  const auto second = pattern.find(text, first->end);
  ASSERT_TRUE(second);
  EXPECT_EQ(text.substr(second->begin, second->end - second->begin), "B4");
  EXPECT_FALSE(pattern.find(text, second->end));
}

TEST(RegexTest, RefusesWhatTheLibrariesReadDifferently) {
  for (const char* pattern : {"^a", "a$", "a{1,3}+", "[a[b]]", "[a&&b]", "[]a]", "\\w", "\\b",
                              "\\h", "\\R", "\\Qa", "\\p{Han}", "\\pL", "a*", "(a", "a\\"}) {
    try {
      Regex{pattern};
      ADD_FAILURE() << pattern;
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kData);
      EXPECT_THAT(error.what(), HasSubstr(pattern));
    }
  }
  for (const char* pattern : {"[\\^$]", "\\$\\^", "[^$]", "a{1,3}|b+", "(?i:'s)", "[\\p{L}\\-&]",
                              "[^\\s\\p{Lu}\\P{N}]++", "\\d\\x41\\\\"}) {
    EXPECT_NO_THROW(Regex{pattern}) << pattern;
  }
}

TEST(RegexTest, GivesUpOnPatternsThatBacktrackWithoutEnd) {
  const Regex pattern("(a|a)+[bd]");
  try {
    pattern.find(std::string(60, 'a'), 0);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kData);
  }
}

TEST(Utf8Test, ReplacesMaximalSubparts) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"", ""},
      {"plain ASCII, longer than one word", "plain ASCII, longer than one word"},
      {"çã\u0800\uFFFF\U00010000\U0010FFFF", "çã\u0800\uFFFF\U00010000\U0010FFFF"},
      {"a\x80z", "a\uFFFDz"},                            // a follower alone
      {"\xC0\x80", "\uFFFD\uFFFD"},                      // overlong
      {"\xE0\x9F\xBF", "\uFFFD\uFFFD\uFFFD"},            // overlong
      {"\xED\xA0\x80", "\uFFFD\uFFFD\uFFFD"},            // a surrogate
      {"\xF4\x90\x80\x80", "\uFFFD\uFFFD\uFFFD\uFFFD"},  // above U+10FFFF
      {"\xF5z", "\uFFFDz"},
      {"\xE2\x82z", "\uFFFDz"},  // cut off: one for both bytes
      {"\xF0\x9F\x90\xE2\x82\xAC", "\uFFFD€"},
      {"a\xF0\x9F\x90", "a\uFFFD"},
  };
  for (const auto& [bytes, text] : cases) EXPECT_EQ(repaired_utf8(bytes), text);
}

TEST(Utf8Test, KeepsAnIncompleteEnd) {
  std::string text;
  EXPECT_EQ(append_complete_utf8("a\xFF\xF0\x9F\x90", text), 2u);
  EXPECT_EQ(text, "a\uFFFD");
}

}  // namespace
}  // namespace jiboia
