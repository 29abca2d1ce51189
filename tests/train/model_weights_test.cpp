#include "train/checkpoint/model_weights.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <limits>

#include "core/error.h"
#include "core/half.h"
#include "tests/support/temporary_folder.h"
#include "tests/train/tiny_store.h"

namespace jiboia {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

/// A tensor with its values for a file.
struct Stored {
  TensorInfo info;
  std::vector<float> values;
};

/// The tiny model's tensors as another program would store them, under names that `rename` gives.
std::vector<Stored> stored_model(const ParameterStore& store,
                                 const std::function<std::string(std::string)>& rename) {
  std::vector<Stored> tensors;
  for (std::size_t i = 0; i < store.count(); ++i) {
    const Tensor value = store.value(i);
    tensors.push_back({{rename(store.spec(i).name), Dtype::kF32, store.spec(i).file_shape},
                       {value.as<float>(), value.as<float>() + value.size()}});
  }
  return tensors;
}

std::string same_name(std::string name) { return name; }

class ModelWeightsTest : public testing::Test {
 protected:
  void write(const std::vector<Stored>& tensors) {
    std::vector<TensorInfo> infos;
    for (const Stored& tensor : tensors) infos.push_back(tensor.info);
    SafetensorsWriter writer(folder_ / "model.safetensors", infos, {});
    for (const TensorInfo& info : writer.order()) {
      const auto found = std::ranges::find(tensors, info.name,
                                           [](const Stored& tensor) { return tensor.info.name; });
      writer.write(info.name, found->values);
    }
    writer.commit();
  }
  /// Loads the folder; returns what was logged.
  std::string load(ParameterStore& store, ExtraTensors extra = ExtraTensors::kRefuse) {
    testing::internal::CaptureStderr();
    load_model_weights(folder_.path(), store, extra);
    return testing::internal::GetCapturedStderr();
  }
  std::string refusal(ExtraTensors extra = ExtraTensors::kRefuse) {
    ParameterStore store = tiny_store(0);
    try {
      load(store, extra);
    } catch (const Error& error) {
      testing::internal::GetCapturedStderr();
      EXPECT_EQ(error.kind(), ErrorKind::kCheckpoint);
      return error.what();
    }
    ADD_FAILURE() << "no error was thrown";
    return "";
  }

  TemporaryFolder folder_;
  const ParameterStore original_ = tiny_store(1);
};

TEST_F(ModelWeightsTest, RoundTripsInSingleAndDoublePrecision) {
  write_model_weights(folder_.path(), original_);
  ParameterStore single = tiny_store(2);
  EXPECT_EQ(load(single), "");
  EXPECT_TRUE(equal_bits(single.flat_values(), original_.flat_values()));

  ParameterStore twice = tiny_store(2, Dtype::kF64);
  load(twice);
  for (std::size_t i = 0; i < twice.count(); ++i)
    for (std::int64_t k = 0; k < twice.value(i).size(); ++k)
      ASSERT_EQ(twice.value(i).as<double>()[k], original_.value(i).as<float>()[k]);
  EXPECT_THROW(write_model_weights(folder_.path(), twice), Error);
}

TEST_F(ModelWeightsTest, EqualWeightsGiveEqualFilesWithoutTraces) {
  const auto first = write_model_weights(folder_.path(), original_);
  const auto second = write_model_weights(folder_.path(), original_);
  ASSERT_EQ(first.size(), 1U);
  EXPECT_EQ(first[0].digest, second[0].digest);
  const SafetensorsFile file(folder_ / "model.safetensors");
  EXPECT_EQ(file.metadata(), (std::map<std::string, std::string>{{"format", "pt"}}));
  EXPECT_EQ(file.at("backbone.layers.0.mixer.conv1d.weight").shape,
            (std::vector<std::int64_t>{46, 1, 4}));
}

TEST_F(ModelWeightsTest, ShardsHoldTheSame) {
  const auto written = write_model_weights(folder_.path(), original_, 1500);
  EXPECT_GT(written.size(), 3U);  // shards and index
  EXPECT_FALSE(std::filesystem::exists(folder_ / "model.safetensors"));
  ParameterStore store = tiny_store(2);
  load(store);
  EXPECT_TRUE(equal_bits(store.flat_values(), original_.flat_values()));
}

TEST_F(ModelWeightsTest, KnowsTheNamesOfOtherLibraries) {
  const auto mamba_ssm = [](std::string name) {
    return name == "backbone.embeddings.weight" ? "backbone.embedding.weight" : name;
  };
  const auto tri = [](std::string name) { return name.substr(std::string("backbone.").size()); };
  for (const auto& rename :
       {std::function(same_name), std::function<std::string(std::string)>(mamba_ssm),
        std::function<std::string(std::string)>(tri)}) {
    write(stored_model(original_, rename));
    ParameterStore store = tiny_store(2);
    EXPECT_EQ(load(store), "");
    EXPECT_TRUE(equal_bits(store.flat_values(), original_.flat_values()));
  }
}

TEST_F(ModelWeightsTest, ReadsHalfPrecision) {
  auto tensors = stored_model(original_, same_name);
  for (Stored& tensor : tensors) tensor.info.dtype = Dtype::kBf16;
  write(tensors);
  ParameterStore store = tiny_store(2);
  load(store);
  for (std::size_t i = 0; i < store.count(); ++i)
    for (std::int64_t k = 0; k < store.value(i).size(); ++k)
      ASSERT_EQ(store.value(i).as<float>()[k],
                float_from_bf16(bf16_from_float(original_.value(i).as<float>()[k])));
}

TEST_F(ModelWeightsTest, IgnoresATiedHeadThatIsTheEmbedding) {
  auto tensors = stored_model(original_, same_name);
  tensors.push_back(tensors[0]);
  tensors.back().info.name = "model.lm_head.weight";
  write(tensors);
  ParameterStore store = tiny_store(2);
  EXPECT_EQ(load(store), "");

  tensors.back().values.back() = std::nextafter(tensors.back().values.back(), 0.0F);
  write(tensors);
  EXPECT_THAT(load(store),
              AllOf(HasSubstr("warning"), HasSubstr("model.lm_head.weight"), HasSubstr("tied")));
  EXPECT_TRUE(equal_bits(store.flat_values(), original_.flat_values()));
}

TEST_F(ModelWeightsTest, ListsEverythingThatDoesNotFit) {
  auto tensors = stored_model(original_, same_name);
  tensors[1].info.shape = {46, 4};
  tensors[3].info.name = "backbone.layers.0.mixer.E";
  write(tensors);
  EXPECT_THAT(refusal(),
              AllOf(HasSubstr("conv1d.weight: is (46, 4), expected (46, 1, 4)"),
                    HasSubstr("mixer.D: is missing"),
                    HasSubstr("mixer.E: is not a part of the model"), Not(HasSubstr("A_log"))));
  EXPECT_THAT(refusal(ExtraTensors::kWarn), Not(HasSubstr("mixer.E")));
}

TEST_F(ModelWeightsTest, ExtraTensorsAreRefusedOrWarnedAbout) {
  auto tensors = stored_model(original_, same_name);
  tensors.push_back({{"backbone.layers.1.mixer.D", Dtype::kF32, {1}}, {1}});
  write(tensors);
  EXPECT_THAT(refusal(), HasSubstr("layers.1.mixer.D: is not a part"));
  ParameterStore store = tiny_store(2);
  EXPECT_THAT(load(store, ExtraTensors::kWarn), HasSubstr("layers.1.mixer.D"));
  EXPECT_TRUE(equal_bits(store.flat_values(), original_.flat_values()));
}

TEST_F(ModelWeightsTest, RefusesTwoNamesOfOneTensor) {
  auto tensors = stored_model(original_, same_name);
  tensors.push_back(tensors[0]);
  tensors.back().info.name = "backbone.embedding.weight";
  write(tensors);
  EXPECT_THAT(refusal(), HasSubstr("backbone.embeddings.weight: is the same tensor as"));
}

TEST_F(ModelWeightsTest, RefusesIntegers) {
  std::vector<TensorInfo> infos;
  for (const ParameterSpec& spec : original_.specs())
    infos.push_back({spec.name, Dtype::kI32, spec.file_shape});
  SafetensorsWriter writer(folder_ / "model.safetensors", infos, {});
  for (const TensorInfo& info : writer.order())
    writer.write(info.name, std::vector<std::byte>(static_cast<std::size_t>(info.bytes())));
  writer.commit();
  EXPECT_THAT(refusal(), HasSubstr("mixer.D: is I32, expected"));
}

TEST_F(ModelWeightsTest, WarnsAboutNumbersThatAreNotFinite) {
  auto tensors = stored_model(original_, same_name);
  tensors[3].values[7] = std::numeric_limits<float>::quiet_NaN();
  tensors[3].values[8] = std::numeric_limits<float>::infinity();
  write(tensors);
  ParameterStore store = tiny_store(2);
  EXPECT_THAT(load(store), AllOf(HasSubstr("warning"), HasSubstr("2 weights"),
                                 HasSubstr("backbone.layers.0.mixer.D (2)")));
  EXPECT_TRUE(std::isnan(store.value(3).as<float>()[7]));
}

TEST_F(ModelWeightsTest, ConvertsToBfloat16ButForTheRecurrence) {
  write_model_weights(folder_.path(), original_);
  ModelWeights weights(folder_.path(), original_.specs());
  TemporaryFolder output;
  convert_model_weights(weights, original_.specs(), Dtype::kBf16, output.path(), 1'000'000);
  const SafetensorsFile file(output / "model.safetensors");
  EXPECT_EQ(file.at("backbone.norm_f.weight").dtype, Dtype::kBf16);
  EXPECT_EQ(file.at("backbone.layers.0.mixer.A_log").dtype, Dtype::kF32);
  EXPECT_EQ(file.at("backbone.layers.0.mixer.D").dtype, Dtype::kF32);

  convert_model_weights(weights, original_.specs(), Dtype::kF32, output.path(), 1'000'000);
  EXPECT_EQ(digest_file(output / "model.safetensors"), digest_file(folder_ / "model.safetensors"));
}

}  // namespace
}  // namespace jiboia
