#include "data/weights_folder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "tests/support/temporary_folder.h"

namespace jiboia {
namespace {

using nlohmann::json;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr const char* kIndex = "model.safetensors.index.json";

class WeightsFolderTest : public testing::Test {
 protected:
  /// Writes tensors "a", "b", ... of these lengths (f32, values counted from 1 through all of
  /// them).
  std::vector<WrittenFile> write(const std::vector<std::int64_t>& lengths,
                                 std::int64_t max_shard_bytes) {
    std::vector<TensorInfo> tensors;
    std::map<std::string, std::vector<float>> values;
    float next = 1;
    for (const std::int64_t length : lengths) {
      const std::string name(1, static_cast<char>('a' + tensors.size()));
      tensors.push_back({name, Dtype::kF32, {length}});
      for (std::int64_t i = 0; i < length; ++i) values[name].push_back(next++);
    }
    return write_weights_folder(folder_.path(), tensors, max_shard_bytes,
                                [&](const TensorInfo& tensor, SafetensorsWriter& writer) {
                                  writer.write(tensor.name,
                                               std::span<const float>(values[tensor.name]));
                                });
  }

  std::vector<std::string> names() const {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(folder_.path()))
      names.push_back(entry.path().filename());
    std::ranges::sort(names);
    return names;
  }

  std::string text(const std::string& name) const {
    return read_text_file(folder_ / name, 1 << 20);
  }

  /// Reads the index, lets `change` edit it, and stores it again.
  template <class Change>
  void change_index(Change change) {
    json index = json::parse(text(kIndex));
    change(index);
    write_file_atomically(folder_ / kIndex, index.dump());
  }

  /// The message with which the folder is refused.
  std::string refusal() {
    try {
      WeightsFolder weights(folder_.path());
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kCheckpoint);
      return error.what();
    }
    ADD_FAILURE() << "the folder was accepted";
    return "";
  }

  TemporaryFolder folder_;
};

/// What `action` writes to stderr.
template <class Action>
std::string logged(Action action) {
  testing::internal::CaptureStderr();
  action();
  return testing::internal::GetCapturedStderr();
}

TEST_F(WeightsFolderTest, WritesAndReadsOneFile) {
  const std::vector<WrittenFile> written = write({3, 2}, 1000);
  ASSERT_EQ(written.size(), 1U);
  EXPECT_EQ(written[0].name, "model.safetensors");
  EXPECT_EQ(written[0].digest, digest_file(folder_ / "model.safetensors"));
  EXPECT_EQ(names(), std::vector<std::string>{"model.safetensors"});
  EXPECT_EQ(text("model.safetensors").substr(8, 35), R"({"__metadata__":{"format":"pt"},"a")");

  for (const std::filesystem::path& path : {folder_.path(), folder_ / "model.safetensors"}) {
    WeightsFolder weights(path);
    EXPECT_THAT(weights.names(), ElementsAre("a", "b"));
    EXPECT_THAT(weights.at("b").shape, ElementsAre(2));
    EXPECT_EQ(weights.find("c"), nullptr);
    EXPECT_THROW(weights.at("c"), Error);
    std::vector<double> values(2);
    weights.read("a", 1, std::span(values));
    EXPECT_THAT(values, ElementsAre(2, 3));
    weights.read("b", 0, std::span(values));
    EXPECT_THAT(values, ElementsAre(4, 5));
  }
}

TEST_F(WeightsFolderTest, CutsShardsAsHuggingFace) {
  // Limit 16 bytes: a fits b, c does not; d is above the limit and comes before the open shard.
  const std::vector<WrittenFile> written = write({2, 2, 1, 5, 3}, 16);
  std::vector<std::string> files;
  for (const WrittenFile& file : written) {
    EXPECT_EQ(file.digest, digest_file(folder_ / file.name));
    files.push_back(file.name);
  }
  EXPECT_THAT(files,
              ElementsAre("model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors",
                          "model-00003-of-00003.safetensors", kIndex));
  EXPECT_EQ(text(kIndex), R"({
  "metadata": {
    "total_parameters": 13,
    "total_size": 52
  },
  "weight_map": {
    "a": "model-00001-of-00003.safetensors",
    "b": "model-00001-of-00003.safetensors",
    "c": "model-00003-of-00003.safetensors",
    "d": "model-00002-of-00003.safetensors",
    "e": "model-00003-of-00003.safetensors"
  }
}
)");
  WeightsFolder weights(folder_.path());
  EXPECT_THAT(weights.names(), ElementsAre("a", "b", "c", "d", "e"));
  std::vector<float> values(5);
  weights.read("d", 0, std::span(values));
  EXPECT_THAT(values, ElementsAre(6, 7, 8, 9, 10));
  values.resize(3);
  weights.read("e", 0, std::span(values));
  EXPECT_THAT(values, ElementsAre(11, 12, 13));
}

TEST_F(WeightsFolderTest, EqualWeightsGiveEqualFiles) {
  write({3, 2, 4}, 16);
  std::map<std::string, std::string> first;
  for (const std::string& name : names()) first[name] = text(name);
  write({3, 2, 4}, 16);
  for (const std::string& name : names()) EXPECT_EQ(text(name), first.at(name)) << name;
}

TEST_F(WeightsFolderTest, RemovesFilesOfEarlierExports) {
  write_file_atomically(folder_ / "config.json", "{}");
  write_file_atomically(folder_ / "model-1-of-2.safetensors", "not ours");
  write({3, 3, 3}, 12);
  write({3, 3}, 12);
  EXPECT_THAT(names(),
              ElementsAre("config.json", "model-00001-of-00002.safetensors",
                          "model-00002-of-00002.safetensors", "model-1-of-2.safetensors", kIndex));
  write({3}, 12);
  EXPECT_THAT(names(), ElementsAre("config.json", "model-1-of-2.safetensors", "model.safetensors"));
  write({3, 3}, 12);
  EXPECT_THAT(WeightsFolder(folder_.path()).names(), ElementsAre("a", "b"));
  EXPECT_THAT(names(), testing::Not(testing::Contains("model.safetensors")));
}

TEST_F(WeightsFolderTest, RefusesFoldersWithoutWeights) {
  EXPECT_THAT(refusal(), HasSubstr("has neither model.safetensors nor"));
  write_file_atomically(folder_ / "pytorch_model.bin", "x");
  EXPECT_THAT(refusal(), HasSubstr("scripts/convert_bin.py converts"));
  EXPECT_THROW(WeightsFolder(folder_ / "none"), Error);
}

TEST_F(WeightsFolderTest, RefusesNamesOutsideTheFolder) {
  write({3, 3}, 12);
  const std::string shard = "model-00002-of-00002.safetensors";
  for (const std::string& name : {"../" + folder_.path().filename().string() + "/" + shard,
                                  (folder_ / shard).string(), "./" + shard, std::string(".."),
                                  std::string("."), std::string(), shard + std::string("\0x", 2)}) {
    change_index([&](json& index) { index["weight_map"]["b"] = name; });
    EXPECT_THAT(refusal(), AllOf(HasSubstr("weight_map: b: '"),
                                 HasSubstr("is not the name of a file in this folder")))
        << name;
  }
  change_index([](json& index) { index["weight_map"]["b"] = 2; });
  EXPECT_THAT(refusal(), HasSubstr("weight_map: b: is 2, expected a string"));
  change_index([](json& index) { index.erase("weight_map"); });
  EXPECT_THAT(refusal(), HasSubstr("weight_map: is missing"));
}

TEST_F(WeightsFolderTest, RefusesAnIndexThatDoesNotMatchItsFiles) {
  write({3, 3}, 12);
  const json good = json::parse(text(kIndex));
  change_index([](json& index) { index["weight_map"]["c"] = index["weight_map"]["a"]; });
  EXPECT_THAT(refusal(), HasSubstr("tensor 'c' is not in 'model-00001-of-00002.safetensors'"));
  change_index([&](json& index) {
    index = good;
    index["weight_map"]["a"] = index["weight_map"]["b"];
    index["weight_map"]["b"] = good["weight_map"]["a"];
  });
  EXPECT_THAT(refusal(), HasSubstr("tensor 'a' is in 'model-00001-of-00002.safetensors', the index "
                                   "has it in 'model-00002-of-00002.safetensors'"));

  // The first shard's tensor is in the second one, too.
  change_index([&](json& index) { index = good; });
  {
    SafetensorsWriter writer(folder_ / "model-00002-of-00002.safetensors",
                             {{"a", Dtype::kF32, {}}, {"b", Dtype::kF32, {}}}, {});
    const float value = 1;
    writer.write("a", std::span(&value, 1));
    writer.write("b", std::span(&value, 1));
    writer.commit();
  }
  EXPECT_THAT(refusal(), HasSubstr("tensor 'a' is in 'model-00002-of-00002.safetensors', the "
                                   "index has it in 'model-00001-of-00002.safetensors'"));
  change_index([](json& index) {
    index["weight_map"] = {{"b", "model-00002-of-00002.safetensors"}};
  });
  EXPECT_THAT(refusal(), HasSubstr("tensor 'a' is in 'model-00002-of-00002.safetensors', but not"));

  change_index([&](json& index) { index = good; });
  std::filesystem::remove(folder_ / "model-00002-of-00002.safetensors");
  EXPECT_THAT(refusal(), HasSubstr("lists 'model-00002-of-00002.safetensors', which is not there"));
}

TEST_F(WeightsFolderTest, WarnsAboutAWrongTotalSize) {
  write({3, 3}, 12);
  const auto open = [&] { WeightsFolder(folder_.path()).names(); };
  EXPECT_EQ(logged(open), "");
  change_index(
      [](json& index) { index["metadata"]["total_size"] = 24.0; });  // as old files have it
  EXPECT_EQ(logged(open), "");
  change_index([](json& index) { index["metadata"]["total_size"] = 25; });
  EXPECT_THAT(logged(open), AllOf(HasSubstr("warning: "), HasSubstr("total_size is 25"),
                                  HasSubstr("have 24 bytes")));
  change_index([](json& index) { index["metadata"] = nullptr; });
  EXPECT_EQ(logged(open), "");
}

TEST_F(WeightsFolderTest, CountsWhatIsNotFinite) {
  const float inf = std::numeric_limits<float>::infinity();
  const std::vector<float> values{1, inf, -inf, std::nanf(""), 2};
  write_weights_folder(
      folder_.path(),
      {{"bad", Dtype::kF32, {5}}, {"bf", Dtype::kBf16, {5}}, {"good", Dtype::kF32, {1}}}, 1000,
      [&](const TensorInfo& tensor, SafetensorsWriter& writer) {
        writer.write(tensor.name,
                     std::span(values).first(static_cast<std::size_t>(tensor.elements())));
      });
  WeightsFolder weights(folder_.path());
  std::vector<float> out(5);
  weights.read("good", 0, std::span(out).first(1));
  EXPECT_EQ(logged([&] { weights.warn_about_non_finite(); }), "");
  weights.read("bad", 0, std::span(out).first(2));
  weights.read("bad", 2, std::span(out).first(3));
  weights.read("bf", 0, std::span(out).first(2));
  EXPECT_THAT(weights.non_finite(), ElementsAre(testing::Pair("bad", 3), testing::Pair("bf", 1)));
  EXPECT_THAT(logged([&] { weights.warn_about_non_finite(); }),
              HasSubstr("4 weights are NaN or infinite, in 2 tensors: bad (3), bf (1)\n"));
}

TEST(ParseByteSize, ReadsDecimalAndBinaryUnits) {
  EXPECT_EQ(parse_byte_size("5GB"), 5'000'000'000);
  EXPECT_EQ(parse_byte_size("5gb"), 5'000'000'000);
  EXPECT_EQ(parse_byte_size("500MB"), 500'000'000);
  EXPECT_EQ(parse_byte_size("3KB"), 3'000);
  EXPECT_EQ(parse_byte_size("2TB"), 2'000'000'000'000);
  EXPECT_EQ(parse_byte_size("2GiB"), std::int64_t{2} << 30);
  EXPECT_EQ(parse_byte_size("7KiB"), 7 << 10);
  EXPECT_EQ(parse_byte_size("7MiB"), 7 << 20);
  EXPECT_EQ(parse_byte_size("1TiB"), std::int64_t{1} << 40);
  EXPECT_EQ(parse_byte_size("123"), 123);
  for (const char* text : {"", "GB", "5 GB", "5Gb ", "-5GB", "+5GB", "0", "0GB", "1.5GB", "5XB",
                           "5G", "99999999999999999999", "9223373TB", "0x10"})
    EXPECT_THROW(parse_byte_size(text), Error) << text;
}

}  // namespace
}  // namespace jiboia
