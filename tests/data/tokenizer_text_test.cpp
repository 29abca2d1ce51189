#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "core/error.h"
#include "data/tokenizer/regex.h"
#include "data/tokenizer/utf8.h"

namespace jiboia {
namespace {

using testing::HasSubstr;

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
