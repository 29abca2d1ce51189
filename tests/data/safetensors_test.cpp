#include "data/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <cmath>
#include <cstring>
#include <fstream>
#include <limits>
#include <numeric>

#include "core/error.h"
#include "core/half.h"
#include "tests/support/temporary_folder.h"

namespace jiboia {
namespace {

using namespace std::string_literals;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::SizeIs;

/// A safetensors file of this header and data.
std::string file_of(const std::string& header, const std::string& data = "") {
  const std::uint64_t size = header.size();
  std::string text(sizeof(size), '\0');
  std::memcpy(text.data(), &size, sizeof(size));
  return text + header + data;
}

/// The description of one tensor in a header.
std::string tensor(const std::string& name, const std::string& dtype, const std::string& shape,
                   const std::string& offsets) {
  return fmt::format(R"("{}":{{"dtype":"{}","shape":{},"data_offsets":{}}})", name, dtype, shape,
                     offsets);
}

/// A file of tensors as tensor() describes them.
std::string file_of(const std::vector<std::string>& tensors, const std::string& data = "") {
  return file_of(fmt::format("{{{}}}", fmt::join(tensors, ",")), data);
}

std::string zeros(std::size_t count) { return std::string(count, '\0'); }

class SafetensorsTest : public testing::Test {
 protected:
  SafetensorsFile open(const std::string& contents) {
    write_file_atomically(path_, contents);
    return SafetensorsFile(path_);
  }

  /// The message with which opening is refused, without the path.
  std::string refusal(const std::string& contents) {
    try {
      open(contents);
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kCheckpoint);
      const std::string message = error.what();
      EXPECT_THAT(message, testing::StartsWith(path_.string() + ": "));
      return message.substr(path_.string().size() + 2);
    }
    ADD_FAILURE() << "the file was accepted";
    return "";
  }

  /// Writes one tensor and returns the file's bytes.
  std::string written(const TensorInfo& info, std::span<const float> values) {
    SafetensorsWriter writer(path_, {info}, {});
    writer.write(info.name, values);
    writer.commit();
    return read_text_file(path_, 1 << 20);
  }

  TemporaryFolder folder_;
  const std::filesystem::path path_ = folder_ / "model.safetensors";
};

const std::string kGood = file_of("{" + tensor("test", "I32", "[2,2]", "[0,16]") + "}", zeros(16));

// The byte strings that the reference implementation is tested with, and its verdicts.

TEST_F(SafetensorsTest, AcceptsWhatTheReferenceAccepts) {
  const SafetensorsFile file = open(kGood);
  ASSERT_THAT(file.entries(), SizeIs(1));
  EXPECT_EQ(file.entries()[0].name, "test");
  EXPECT_EQ(file.entries()[0].dtype_name, "I32");
  EXPECT_EQ(file.entries()[0].dtype, Dtype::kI32);
  EXPECT_THAT(file.entries()[0].shape, ElementsAre(2, 2));
  EXPECT_EQ(file.entries()[0].elements, 4);
  EXPECT_THAT(file.bytes(file.entries()[0]), SizeIs(16));

  EXPECT_THAT(open("\x06\0\0\0\0\0\0\0{}\r \t\n"s).entries(), SizeIs(0));
  EXPECT_THAT(
      open(file_of(std::vector{tensor("test", "I32", "[2,0]", "[0,0]")})).entries()[0].shape,
      ElementsAre(2, 0));
  const SafetensorsFile scalar =
      open(file_of(std::vector{tensor("test", "I32", "[]", "[0,4]")}, zeros(4)));
  EXPECT_THAT(scalar.entries()[0].shape, SizeIs(0));
  EXPECT_EQ(scalar.entries()[0].elements, 1);
}

TEST_F(SafetensorsTest, RefusesWhatTheReferenceRefuses) {
  EXPECT_THAT(refusal(""s), HasSubstr("has 0 bytes, too few"));
  EXPECT_THAT(refusal("<\0\0\0\0\0\0\0"s), HasSubstr("header of 60 bytes, 0 follow"));
  EXPECT_THAT(refusal("\x01\0\0\0\0\0\0\0\xff"s), HasSubstr("parse error"));
  EXPECT_THAT(refusal("\x01\0\0\0\0\0\0\0{"s), HasSubstr("parse error"));
  EXPECT_THAT(refusal("<\0\0\0\0\xff\xff\xff"s), HasSubstr("at most 100000000"));
  EXPECT_THAT(refusal(file_of(std::vector{tensor("a", "I32", "[2,18446744073709551614]", "[0,16]")},
                              zeros(16))),
              HasSubstr("tensor 'a': shape: element 1"));
  EXPECT_THAT(refusal(file_of(std::vector{tensor("a", "I32", "[2,9223372036854775807]", "[0,16]")},
                              zeros(16))),
              HasSubstr("tensor 'a': shape: has more elements"));
  EXPECT_THAT(refusal(file_of(std::vector{tensor("a", "I32", "[2,2]", "[0,4]")}, zeros(4))),
              HasSubstr("tensor 'a': data_offsets: span 4 bytes; 4 elements of I32 need 16"));
  EXPECT_THAT(refusal(kGood + "extra_bogus_data_for_polyglot_file"),
              HasSubstr("34 bytes follow the last tensor"));
  EXPECT_THAT(refusal(kGood.substr(0, kGood.size() - 2)), HasSubstr("more than the 14 bytes"));
  std::vector<std::string> same_bytes;
  for (int i = 0; i < 10; ++i)
    same_bytes.push_back(tensor(fmt::format("t{}", i), "I32", "[2,2]", "[0,16]"));
  EXPECT_THAT(refusal(file_of(same_bytes, zeros(16))), HasSubstr("tensor 't1'"));
}

TEST_F(SafetensorsTest, ChecksTheProductOfExtentsInOrder) {
  const auto empty = [](const std::string& shape) {
    return file_of(std::vector{tensor("a", "U8", shape, "[0,0]")});
  };
  EXPECT_EQ(open(empty("[0,9223372036854775807,9]")).entries()[0].elements, 0);
  EXPECT_THAT(refusal(empty("[9223372036854775807,9,0]")), HasSubstr("shape: has more elements"));
}

TEST_F(SafetensorsTest, RefusesIncredibleHeaderLengths) {
  const auto with_length = [](std::uint64_t length) {
    std::string text = kGood;
    std::memcpy(text.data(), &length, sizeof(length));
    return text;
  };
  EXPECT_THAT(refusal(with_length(INT64_MAX)), HasSubstr("at most 100000000"));
  EXPECT_THAT(refusal(with_length(UINT64_MAX)), HasSubstr("at most 100000000"));
  EXPECT_THAT(refusal(with_length(100'000'001)), HasSubstr("at most 100000000"));
  EXPECT_THAT(refusal(with_length(100'000'000)), HasSubstr("follow"));
  EXPECT_THAT(refusal(with_length(kGood.size() - 7)), HasSubstr("follow"));
  EXPECT_THAT(refusal(with_length(kGood.size() - 8)), HasSubstr("is zero"));  // into the data
}

TEST_F(SafetensorsTest, RefusesEveryTruncation) {
  for (std::size_t size = 0; size < kGood.size(); ++size)
    EXPECT_NE(refusal(kGood.substr(0, size)), "") << size;
}

TEST_F(SafetensorsTest, AcceptsTensorsInAnyOrder) {
  const SafetensorsFile file = open(
      file_of(std::vector{tensor("b", "U8", "[2]", "[4,6]"), tensor("none", "U8", "[0]", "[4,4]"),
                          tensor("a", "F32", "[1]", "[0,4]")},
              "abcdef"));
  EXPECT_EQ(file.entries()[0].name, "a");
  EXPECT_EQ(file.entries()[1].name, "none");
  EXPECT_EQ(static_cast<char>(file.bytes(file.at("b"))[1]), 'f');
  EXPECT_EQ(file.find("c"), nullptr);
  EXPECT_THROW(file.at("c"), Error);
}

TEST_F(SafetensorsTest, RefusesBadOffsets) {
  const auto pair = [&](const std::string& first, const std::string& second) {
    return refusal(file_of(
        std::vector{tensor("a", "U8", "[4]", first), tensor("b", "U8", "[4]", second)}, zeros(8)));
  };
  EXPECT_THAT(pair("[0,4]", "[2,6]"), HasSubstr("'b' begins at byte 2 of the data, expected 4: "
                                                "tensors overlap"));
  EXPECT_THAT(pair("[0,4]", "[5,9]"), HasSubstr("'b' begins at byte 5 of the data, expected 4: "
                                                "there is a hole"));
  EXPECT_THAT(pair("[1,5]", "[5,9]"), HasSubstr("'a' begins at byte 1"));
  EXPECT_THAT(pair("[4,0]", "[4,8]"), HasSubstr("tensor 'a': data_offsets: is not"));
  EXPECT_THAT(pair("[0,4]", "[1000,1004]"), HasSubstr("there is a hole"));
  EXPECT_THAT(pair("[0,4]", "[-4,0]"), HasSubstr("tensor 'b': data_offsets: element 0"));
  EXPECT_THAT(pair("[0,4,8]", "[4,8]"), HasSubstr("tensor 'a': data_offsets: is not"));
  EXPECT_THAT(pair("[0]", "[4,8]"), HasSubstr("tensor 'a': data_offsets: is not"));
}

TEST_F(SafetensorsTest, RefusesBadDescriptionsByName) {
  const auto shaped = [&](const std::string& shape) {
    return refusal(file_of(std::vector{tensor("layer.norm", "U8", shape, "[0,1]")}, "x"));
  };
  for (const char* shape : {"[-1]", "[-0]", "[1.5]", "[1.0]", "[\"4\"]", "[true]", "[null]",
                            "[[1]]", "[9223372036854775808]", "[1e30]"})
    EXPECT_THAT(shaped(shape),
                HasSubstr("tensor 'layer.norm': shape: element 0 is not an integer"));
  for (const char* shape : {"4", "null", "\"4\"", "{}"})
    EXPECT_THAT(shaped(shape), HasSubstr("tensor 'layer.norm': shape: is "));
  std::string long_shape = "[1";
  for (int i = 1; i < 300; ++i) long_shape += ",1";
  EXPECT_THAT(shaped(long_shape + "]"), HasSubstr("has 300 dimensions, at most 64"));

  const auto described = [&](const std::string& info) {
    return refusal(file_of("{\"w\":" + info + "}", "x"));
  };
  EXPECT_THAT(described(R"({"dtype":"F128","shape":[1],"data_offsets":[0,1]})"),
              HasSubstr("tensor 'w': dtype: 'F128' is not a dtype"));
  EXPECT_THAT(described(R"({"dtype":8,"shape":[1],"data_offsets":[0,1]})"),
              HasSubstr("tensor 'w': dtype: is 8, expected a string"));
  EXPECT_THAT(described(R"({"shape":[1],"data_offsets":[0,1]})"),
              HasSubstr("tensor 'w': dtype: is missing"));
  EXPECT_THAT(described(R"({"dtype":"U8","shape":[1],"shape":[1],"data_offsets":[0,1]})"),
              HasSubstr("'shape' appears twice"));
  EXPECT_THAT(described(R"({"dtype":"F4","shape":[1],"data_offsets":[0,1]})"),
              HasSubstr("tensor 'w': shape: does not fill whole bytes"));
  EXPECT_THAT(described("[]"), HasSubstr("tensor 'w': is an array, expected an object"));
  EXPECT_THAT(refusal(file_of(
                  std::vector{tensor("w", "U8", "[1]", "[0,1]"), tensor("v", "U8", "[0]", "[1,1]"),
                              tensor("w", "U8", "[1]", "[1,2]")},
                  "xx"s)),
              HasSubstr("tensor 'w' is there twice"));
  EXPECT_THAT(refusal(file_of("[]")), HasSubstr("expected an object"));
  EXPECT_THAT(refusal(file_of("{}\0\0"s)), HasSubstr("is zero"));
}

TEST_F(SafetensorsTest, ReadsMetadata) {
  EXPECT_THAT(open(file_of(R"({"__metadata__":{"format":"pt","x":""}})")).metadata(),
              ElementsAre(testing::Pair("format", "pt"), testing::Pair("x", "")));
  EXPECT_THAT(open(file_of(R"({"__metadata__":null})")).metadata(), SizeIs(0));
  EXPECT_THAT(refusal(file_of(R"({"__metadata__":{"a":1}})")),
              HasSubstr("__metadata__: a: is 1, expected a string"));
  EXPECT_THAT(refusal(file_of(R"({"__metadata__":[]})")), HasSubstr("__metadata__: is an array"));
  EXPECT_THAT(refusal(file_of(R"({"__metadata__":{},"__metadata__":{}})")), HasSubstr("twice"));
}

TEST_F(SafetensorsTest, KnowsTheSizesOfAllDtypes) {
  const std::vector<std::pair<std::string, int>> bits = {
      {"BOOL", 8},        {"F4", 4},      {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"U8", 8},
      {"I8", 8},          {"F8_E5M2", 8}, {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8},
      {"F8_E5M2FNUZ", 8}, {"I16", 16},    {"U16", 16},    {"F16", 16},    {"BF16", 16},
      {"I32", 32},        {"U32", 32},    {"F32", 32},    {"C64", 64},    {"F64", 64},
      {"I64", 64},        {"U64", 64}};
  std::vector<float> values(8);
  for (const auto& [dtype, size] : bits) {
    const SafetensorsFile file =
        open(file_of(std::vector{tensor("a", dtype, "[8]", fmt::format("[0,{}]", size))},
                     zeros(static_cast<std::size_t>(size))));
    const bool is_float = dtype == "F16" || dtype == "BF16" || dtype == "F32" || dtype == "F64";
    if (is_float)
      EXPECT_EQ(file.read(file.at("a"), 0, std::span(values)), 0);
    else
      EXPECT_THROW(file.read(file.at("a"), 0, std::span(values)), Error) << dtype;
  }
}

/// Peak memory of this process so far, in bytes.
std::int64_t peak_bytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return std::int64_t{usage.ru_maxrss} * 1024;
}

/// Checks that a file of `count` tensors on the same 16 bytes is refused quickly and without
/// spending memory on them.
void expect_cheap_refusal(const std::filesystem::path& path, int count) {
  const std::string item = R"("w0000000":{"dtype":"I32","shape":[2,2],"data_offsets":[0,16]},)";
  const std::uint64_t header_bytes = static_cast<std::uint64_t>(count) * item.size() + 1;
  {
    std::ofstream file(path, std::ios::binary);
    file.write(reinterpret_cast<const char*>(&header_bytes), sizeof(header_bytes));
    std::string line = "{" + item;
    for (int i = 0; i < count; ++i) {
      line.replace(line.find('w') + 1, 7, fmt::format("{:07}", i));
      if (i == count - 1) line.back() = '}';
      file << line;
      if (i == 0) line.erase(0, 1);
    }
    file << zeros(16);
  }
  const auto file_bytes = static_cast<std::int64_t>(std::filesystem::file_size(path));
  ASSERT_EQ(file_bytes, static_cast<std::int64_t>(8 + header_bytes + 16));
  const std::int64_t peak_before = peak_bytes();
  const auto start = std::chrono::steady_clock::now();
  EXPECT_THROW(SafetensorsFile{path}, Error);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(1));
  EXPECT_LT(peak_bytes() - peak_before, 3 * file_bytes);
}

TEST_F(SafetensorsTest, RefusesManyTensorsOnTheSameBytes) {
  expect_cheap_refusal(path_, 100'000);
  expect_cheap_refusal(path_, 1'400'000);  // nearly as long as a header may be
}

TEST_F(SafetensorsTest, RefusesTenMillionTensors) {
  const std::uint64_t header_bytes = 630'000'000;
  std::ofstream(path_, std::ios::binary)
      .write(reinterpret_cast<const char*>(&header_bytes), sizeof(header_bytes));
  ASSERT_EQ(::truncate(path_.c_str(), 8 + 630'000'000 + 16), 0);
  const std::int64_t peak_before = peak_bytes();
  EXPECT_THROW(SafetensorsFile{path_}, Error);
  EXPECT_LT(peak_bytes() - peak_before, 1 << 20);
}

TEST_F(SafetensorsTest, ConvertsFloats) {
  // One value a row: 1, -2.5, the smallest positive, infinity, NaN; odd offsets on purpose.
  const auto inf = std::numeric_limits<double>::infinity();
  const std::string f16 = "\x00\x3c\x00\xc1\x01\x00\x00\x7c\x01\x7e"s;
  const std::string bf16 = "\x80\x3f\x20\xc0\x01\x00\x80\x7f\xc1\x7f"s;
  const std::array<float, 5> f32{1.0f, -2.5f, 0x1p-149f, float(inf), std::nanf("")};
  const std::array<double, 5> f64{1.0, -2.5, 0x1p-1074, inf, std::nan("")};
  const auto raw = [](const auto& values) {
    return std::string(reinterpret_cast<const char*>(values.data()), sizeof(values));
  };
  const SafetensorsFile file = open(file_of(
      std::vector{tensor("odd", "U8", "[1]", "[0,1]"), tensor("F16", "F16", "[5]", "[1,11]"),
                  tensor("BF16", "BF16", "[5]", "[11,21]"), tensor("F32", "F32", "[5]", "[21,41]"),
                  tensor("F64", "F64", "[5]", "[41,81]")},
      "x" + f16 + bf16 + raw(f32) + raw(f64)));
  const auto check = [&]<class T>(const std::string& name, T smallest) {
    std::vector<T> all(5);
    EXPECT_EQ(file.read(file.at(name), 0, std::span(all)), 2);
    EXPECT_EQ(all[0], 1) << name;
    EXPECT_EQ(all[1], T(-2.5)) << name;
    EXPECT_EQ(all[2], smallest) << name;
    EXPECT_EQ(all[3], T(inf)) << name;
    EXPECT_TRUE(std::isnan(all[4])) << name;
    std::vector<T> middle(2);
    EXPECT_EQ(file.read(file.at(name), 1, std::span(middle)), 0);
    EXPECT_THAT(middle, ElementsAre(T(-2.5), smallest)) << name;
  };
  check("F16", 0x1p-24f);
  check("F16", 0x1p-24);
  check("BF16", 0x1p-133f);
  check("BF16", 0x1p-133);
  check("F32", 0x1p-149f);
  check("F32", 0x1p-149);
  check("F64", 0.0f);
  check("F64", 0x1p-1074);
  std::vector<float> out(5);
  EXPECT_THROW(file.read(file.at("F32"), 1, std::span(out)), Error);
  EXPECT_THROW(file.read(file.at("F32"), -1, std::span(out)), Error);
  EXPECT_EQ(file.read(file.at("F32"), 5, std::span(out).first(0)), 0);
}

// Files of the reference implementation, in bytes.

TEST_F(SafetensorsTest, WritesTheBytesOfTheReference) {
  const std::vector<float> values{0, 1, 2, 3, 4, 5};
  const std::string data(reinterpret_cast<const char*>(values.data()), 24);
  EXPECT_EQ(written({"attn.0", Dtype::kF32, {1, 2, 3}}, values),
            "\x40\0\0\0\0\0\0\0"s
            R"({"attn.0":{"dtype":"F32","shape":[1,2,3],"data_offsets":[0,24]}})" +
                data);
  EXPECT_EQ(written({"attn0", Dtype::kF32, {1, 1, 2, 3}}, values),
            "\x48\0\0\0\0\0\0\0"s
            R"({"attn0":{"dtype":"F32","shape":[1,1,2,3],"data_offsets":[0,24]}}       )" +
                data);
  SafetensorsWriter(path_, {}, {}).commit();
  EXPECT_EQ(read_text_file(path_, 99), "\x08\0\0\0\0\0\0\0{}      "s);
  SafetensorsWriter(path_, {}, {{"framework", "pt"}}).commit();
  EXPECT_EQ(read_text_file(path_, 99),
            "\x28\0\0\0\0\0\0\0"s
            R"({"__metadata__":{"framework":"pt"}}     )");
  EXPECT_THAT(written({"\u00e9\"\n\x01/", Dtype::kF32, {0, 3}}, {}),
              HasSubstr("{\"\u00e9\\\"\\n\\u0001/\":{\"dtype\":\"F32\",\"shape\":[0,3],"));
}

TEST_F(SafetensorsTest, SortsByAlignmentThenName) {
  SafetensorsWriter writer(path_,
                           {{"u8", Dtype::kU8, {1}},
                            {"b", Dtype::kF32, {1}},
                            {"bf16", Dtype::kBf16, {1}},
                            {"i64", Dtype::kI64, {1}},
                            {"f16", Dtype::kF16, {1}},
                            {"u16", Dtype::kU16, {1}},
                            {"a", Dtype::kF32, {1}},
                            {"a.1", Dtype::kF32, {1}},
                            {"i32", Dtype::kI32, {1}},
                            {"u32", Dtype::kU32, {1}},
                            {"f64", Dtype::kF64, {1}}},
                           {});
  std::vector<std::string> names;
  for (const TensorInfo& info : writer.order()) names.push_back(info.name);
  EXPECT_THAT(names,
              ElementsAre("i64", "f64", "a", "a.1", "b", "u32", "i32", "bf16", "f16", "u16", "u8"));
  for (const TensorInfo& info : writer.order()) {
    const std::vector<std::byte> value(static_cast<std::size_t>(info.bytes()));
    writer.write(info.name, std::span<const std::byte>(value));
  }
  const FileDigest digest = writer.commit();
  EXPECT_EQ(digest, digest_file(path_));
  const SafetensorsFile file(path_);
  EXPECT_THAT(file.entries(), SizeIs(11));
  EXPECT_EQ(file.at("f16").dtype, Dtype::kF16);
  EXPECT_EQ(file.at("f16").begin, 8 + 8 + 5 * 4 + 2);
}

TEST_F(SafetensorsTest, WritesInPiecesAndRounds) {
  std::vector<float> values(100'000);  // more than the writer rounds at a time
  std::iota(values.begin(), values.end(), 1.0f);
  SafetensorsWriter writer(path_,
                           {{"full", Dtype::kF32, {100'000}},
                            {"none", Dtype::kF32, {0}},
                            {"half", Dtype::kBf16, {100'000}}},
                           {});
  writer.write("full", std::span<const float>(values).first(1));
  writer.write("full", std::span<const float>(values).subspan(1));
  writer.write("half", std::span<const float>(values).first(70'001));
  writer.write("half", std::span<const float>(values).subspan(70'001));
  writer.commit();

  const SafetensorsFile file(path_);
  std::vector<float> back(values.size());
  file.read(file.at("full"), 0, std::span(back));
  EXPECT_EQ(back, values);
  file.read(file.at("half"), 0, std::span(back));
  for (std::size_t i = 0; i < values.size(); ++i)
    ASSERT_EQ(back[i], float_from_bf16(bf16_from_float(values[i])));
}

TEST_F(SafetensorsTest, WriterWantsTheDeclaredTensors) {
  const std::vector<float> values(3);
  const auto write = [&](const std::vector<std::string>& names) {
    SafetensorsWriter writer(path_, {{"a", Dtype::kF32, {3}}, {"b", Dtype::kF32, {3}}}, {});
    for (const std::string& name : names) writer.write(name, std::span<const float>(values));
    writer.commit();
  };
  EXPECT_NO_THROW(write({"a", "b"}));
  const FileDigest good = digest_file(path_);
  for (const std::vector<std::string>& names : std::vector<std::vector<std::string>>{
           {}, {"a"}, {"b", "a"}, {"a", "a"}, {"a", "b", "b"}, {"a", "b", "c"}})
    EXPECT_THROW(write(names), Error);
  EXPECT_EQ(digest_file(path_), good);  // failed writers leave the old file
  EXPECT_THROW(SafetensorsWriter(path_, {{"a", Dtype::kF32, {}}, {"a", Dtype::kU8, {}}}, {}),
               Error);
  EXPECT_THROW(SafetensorsWriter(path_, {{"__metadata__", Dtype::kF32, {}}}, {}), Error);
  SafetensorsWriter integers(path_, {{"a", Dtype::kI32, {3}}}, {});
  EXPECT_THROW(integers.write("a", std::span<const float>(values)), Error);
}

}  // namespace
}  // namespace jiboia
