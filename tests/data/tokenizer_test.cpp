#include "data/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "core/error.h"
#include "tests/data/tokenizer_files.h"

namespace jiboia {
namespace {

using namespace tokenizer_files;
using testing::ElementsAre;
using testing::HasSubstr;
using Ids = std::vector<std::int32_t>;

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

TEST(TokenizerTest, ForgetsMergesThatOthersOvertook) {
  // 256 bc, 257 ab, 258 bcd, 259 abc. Once b is in bc, a's place in the queue for ab is void.
  Tokenizer tokenizer = load(byte_level_file({{"b", "c"}, {"a", "b"}, {"bc", "d"}, {"a", "bc"}}));
  EXPECT_THAT(tokenizer.encode("abcd", false), ElementsAre(64, 258));
}

TEST(TokenizerTest, TellsWordsInItsCacheApart) {
  std::string text;
  for (int number = 100'000; number < 200'000; ++number) text += fmt::format(" {}", number);
  Tokenizer tokenizer = load(byte_level_file({}));
  EXPECT_EQ(tokenizer.decode(tokenizer.encode(text, false), false), text);
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
  EXPECT_THAT(tokenizer.encode("<|", false), ElementsAre(27, 91)) << "the beginning of a token";
  EXPECT_THAT(tokenizer.encode("\u00e1", false), ElementsAre(258));
  const Ids ids = {64, 256, 257};
  EXPECT_EQ(tokenizer.decode(ids, /*skip_special_tokens=*/false), "a<|end|><|end");
  EXPECT_EQ(tokenizer.decode(ids, /*skip_special_tokens=*/true), "a<|end");
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
  file["added_tokens"].push_back(added_token(261, "b", false, /*normalized=*/true));
  EXPECT_THAT(encode("first", "aba"), ElementsAre(262, 261, 260));
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

}  // namespace
}  // namespace jiboia
