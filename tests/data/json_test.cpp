#include "data/json.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "data/file.h"
#include "tests/support/temporary_folder.h"

namespace jiboia {
namespace {

using nlohmann::json;
using testing::AllOf;
using testing::HasSubstr;

const JsonSource kSource{"config.json", ErrorKind::kCheckpoint};

template <class Action>
std::string error_of(Action action) {
  try {
    action();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kCheckpoint);
    return error.what();
  }
  ADD_FAILURE() << "no error was thrown";
  return "";
}

std::string parse_error(const std::string& text, const JsonLimits& limits = {}) {
  return error_of([&] { parse_json(text, kSource, limits); });
}

std::string repeated(const std::string& text, int times) {
  std::string result;
  for (int i = 0; i < times; ++i) result += text;
  return result;
}

TEST(ParseJson, BuildsWhatNlohmannBuilds) {
  for (const char* text :
       {"null", "-3", "[]", "{}", "[1, [true, {}], \"\\u00e9\\ud83d\\ude00\"]", " \r\n\t1.5e3 ",
        R"({"a": {"b": [1, {"c": null}, 2.5], "d": {}}, "e": "", "f": [[], [[0]]]})",
        R"([18446744073709551615, -9223372036854775808, -0, 0.1])"})
    EXPECT_EQ(parse_json(text, kSource), json::parse(text)) << text;
}

TEST(ParseJson, RefusesWhatIsNotJson) {
  for (const char* text :
       {"", "{", "[1,]", "{\"a\":1,}", "{a:1}", "nul", "01", "+1", ".5", "1.", "'a'", "[1] [2]",
        "{} x", "// c\n1", "NaN", "\"\\ud800\"", "\"\x01\"", "\"a\nb\""})
    EXPECT_THAT(parse_error(text), testing::StartsWith("config.json: parse error at line")) << text;
  for (const char* text :
       {"\"\xff\"", "\"\xc0\xaf\"", "\"\xed\xa0\x80\"", "\"\xf4\x90\x80\x80\"", "\"\xe2\x82\""})
    EXPECT_THAT(parse_error(text), HasSubstr("UTF-8")) << text;
}

TEST(ParseJson, RefusesWhatNlohmannLetsThrough) {
  EXPECT_THAT(parse_error("\xEF\xBB\xBF{}"), HasSubstr("byte order mark"));
  EXPECT_THAT(parse_error(std::string("{}\0\0", 4)), HasSubstr("byte 2 is zero"));
  EXPECT_THAT(parse_error(R"({"a": 1, "b": 2, "a": 1})"), HasSubstr("'a' appears twice"));
  EXPECT_THAT(parse_error(R"([{"x": {"a": 1, "\u0061": 1}}])"), HasSubstr("'a' appears twice"));
}

TEST(ParseJson, LimitsDepth) {
  const JsonLimits limits{.depth = 3};
  EXPECT_NO_THROW(parse_json(R"([{"a": [1]}, [[2]]])", kSource, limits));
  EXPECT_THAT(parse_error(R"([{"a": [[]]}])", limits), HasSubstr("deeper than 3 levels"));
  EXPECT_THAT(parse_error(repeated("[", 1'000'000)), HasSubstr("deeper than 16 levels"));
  EXPECT_THAT(parse_error(repeated("{\"a\":", 1'000'000)), HasSubstr("deeper than 16 levels"));
}

TEST(ParseJson, LimitsNodes) {
  const JsonLimits limits{.nodes = 4};
  EXPECT_NO_THROW(parse_json(R"({"a": [1, {}]})", kSource, limits));
  EXPECT_THAT(parse_error(R"({"a": [1, {}, 2]})", limits), HasSubstr("more than 4 values"));
}

TEST(ParseJson, KeepsMessagesShortAndPrintable) {
  EXPECT_THAT(parse_error("[\"a\xff"), testing::EndsWith("last read: '\"a?'"));
  EXPECT_LT(parse_error("[\"" + repeated("a", 1'000'000)).size(), 300U);
  const std::string key = "\"" + repeated("a", 1'000'000) + "\":1";
  EXPECT_LT(parse_error("{" + key + "," + key + "}").size(), 300U);
}

TEST(ReadJsonFile, NamesTheFile) {
  const TemporaryFolder folder;
  write_file_atomically(folder / "a.json", R"({"a": 1})");
  EXPECT_EQ(read_json_file(folder / "a.json", ErrorKind::kCheckpoint), json({{"a", 1}}));
  write_file_atomically(folder / "a.json", "[");
  EXPECT_THAT(error_of([&] { read_json_file(folder / "a.json", ErrorKind::kCheckpoint); }),
              HasSubstr((folder / "a.json").string() + ": parse error"));
  EXPECT_THROW(read_json_file(folder / "a.json", ErrorKind::kCheckpoint, {.file_bytes = 0}), Error);
}

TEST(ForEachJsonMember, VisitsInOrderAndShowsDuplicates) {
  std::vector<std::string> seen;
  for_each_json_member(
      R"( {"b": [1, {"x": 2}], "a": null, "b": {"y": {}}, "c": "s"} )", kSource,
      [&](const std::string& key, const json& value) { seen.push_back(key + "=" + value.dump()); });
  EXPECT_THAT(seen, testing::ElementsAre("b=[1,{\"x\":2}]", "a=null", "b={\"y\":{}}", "c=\"s\""));
}

TEST(ForEachJsonMember, LimitsEachMember) {
  int members = 0;
  const auto count = [&](const std::string&, const json&) { ++members; };
  for_each_json_member(R"({"a": [1], "b": [2], "c": {"x": 3}})", kSource, count, {.nodes = 2});
  EXPECT_EQ(members, 3);
  EXPECT_THAT(
      error_of([&] { for_each_json_member("{\"a\":[1,2]}", kSource, count, {.nodes = 2}); }),
      HasSubstr("more than 2 values"));
  EXPECT_THAT(error_of([&] { for_each_json_member("{\"a\":{\"b\":1,\"b\":1}}", kSource, count); }),
              HasSubstr("'b' appears twice"));
  for (const char* text : {"[]", "1", "null", "[{}]"})
    EXPECT_THAT(error_of([&] { for_each_json_member(text, kSource, count); }),
                HasSubstr("expected an object"))
        << text;
}

TEST(JsonObject, GivesTypedMembers) {
  const json value = parse_json(
      R"({"i": -5, "max": 9223372036854775807, "d": 1.5, "b": true, "s": "text", "none": null,
          "o": {"x": 1}, "a": [1, 2]})",
      kSource);
  const JsonObject object(value, kSource);
  EXPECT_EQ(object.get_int64("i"), -5);
  EXPECT_EQ(object.get_int64("max"), INT64_MAX);
  EXPECT_EQ(object.get_double("d"), 1.5);
  EXPECT_EQ(object.get_double("i"), -5.0);
  EXPECT_EQ(object.get_bool("b"), true);
  EXPECT_EQ(object.get_string("s"), "text");
  EXPECT_EQ(object.get_object("o").get_int64("x"), 1);
  EXPECT_EQ(object.get_array("a").size(), 2U);
  EXPECT_EQ(*object.find("i"), -5);
}

TEST(JsonObject, UsesTheFallbackForAbsentAndNull) {
  const json value = parse_json(R"({"here": 1, "none": null})", kSource);
  const JsonObject object(value, kSource);
  for (const char* key : {"none", "absent"}) {
    EXPECT_EQ(object.get_int64(key, 7), 7);
    EXPECT_EQ(object.get_double(key, 0.5), 0.5);
    EXPECT_EQ(object.get_bool(key, true), true);
    EXPECT_EQ(object.get_string(key, "x"), "x");
    EXPECT_EQ(object.find(key), nullptr);
  }
  EXPECT_EQ(object.get_int64("here", 7), 1);
  EXPECT_THROW(object.get_string("here", "x"), Error);  // a wrong type is never "not set"
}

TEST(JsonObject, NeverConverts) {
  const json value = parse_json(
      R"({"x": {"float": 16.0, "big": 9223372036854775808, "huge": 1e30, "true": true,
          "text": "16", "list": [1], "object": {}, "null": null}})",
      kSource);
  const JsonObject object = JsonObject(value, kSource).get_object("x");
  for (const char* key : {"float", "big", "huge", "true", "text", "list", "object", "null"})
    EXPECT_THAT(error_of([&] { object.get_int64(key); }),
                AllOf(testing::StartsWith(std::string("config.json: x: ") + key + ": is "),
                      HasSubstr("expected an integer")));
  for (const char* key : {"true", "text", "list", "null"})
    EXPECT_THAT(error_of([&] { object.get_double(key); }), HasSubstr("expected a number"));
  for (const char* key : {"float", "text", "null"})
    EXPECT_THAT(error_of([&] { object.get_bool(key); }), HasSubstr("expected true or false"));
  for (const char* key : {"float", "true", "list"})
    EXPECT_THAT(error_of([&] { object.get_string(key); }), HasSubstr("expected a string"));
  EXPECT_THAT(error_of([&] { object.get_object("list"); }),
              HasSubstr("config.json: x: list: is an array, expected an object"));
  EXPECT_THAT(error_of([&] { object.get_array("text"); }),
              HasSubstr("text: is \"16\", expected an array"));
  EXPECT_THAT(error_of([&] { object.get_int64("absent"); }), HasSubstr("absent: is missing"));
}

}  // namespace
}  // namespace jiboia
