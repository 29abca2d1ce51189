#include "train/checkpoint/optimizer_state.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <utility>

#include "core/error.h"
#include "data/safetensors.h"
#include "tests/support/temporary_folder.h"
#include "tests/train/tiny_store.h"

namespace jiboia {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

TEST(OptimizerStateTest, RanksOwnSlicesOfWholeUnits) {
  constexpr std::int64_t kUnit = ParameterStore::kShardUnit;
  const ParameterStore store(test_exec(),
                             {{"w", {5 * kUnit - 1}, {5 * kUnit - 1}, {}, ParameterRole::kMatrix}},
                             Dtype::kF32, StoreContents::kValues);
  const auto units = [&](int count) {
    std::vector<std::int64_t> result;
    std::int64_t next = 0;
    for (int index = 0; index < count; ++index) {
      const FlatRange slice = store.slice({index, count});
      EXPECT_EQ(slice.begin, next);
      EXPECT_EQ(slice.size % kUnit, 0);
      result.push_back(slice.size / kUnit);
      next += slice.size;
    }
    return result;
  };
  EXPECT_THAT(units(1), ElementsAre(5));
  EXPECT_THAT(units(2), ElementsAre(3, 2));
  EXPECT_THAT(units(3), ElementsAre(2, 2, 1));
  EXPECT_THAT(units(4), ElementsAre(2, 2, 1, 0));
  EXPECT_THAT(units(7), ElementsAre(1, 1, 1, 1, 1, 0, 0));
}

TEST(OptimizerStateTest, AnyNumberOfRanksCanBeLoaded) {
  // Six units: the cuts are within parameters, some slices hold several, and of 8 two are empty.
  const std::vector<ParameterSpec> specs = {
      {"a", {100, 100}, {100, 100}, {}, ParameterRole::kMatrix},
      {"b", {3000}, {3000}, {}, ParameterRole::kOther},
      {"c", {9000}, {9000}, {}, ParameterRole::kOther}};
  const ParameterStore original = filled_store(specs, 1);
  const SaveId save_id{"run", 7};
  for (const int count : {1, 2, 3, 8}) {
    TemporaryFolder folder;
    for (int index = 0; index < count; ++index)
      write_optimizer_state(folder.path(), original, {index, count}, save_id);
    ParameterStore loaded = filled_store(specs, 2);
    load_optimizer_state(folder.path(), loaded, save_id);
    EXPECT_TRUE(equal_bits(loaded.flat_exp_avg(), original.flat_exp_avg()));
    EXPECT_TRUE(equal_bits(loaded.flat_exp_avg_sq(), original.flat_exp_avg_sq()));

    const auto error = [&]() -> std::string {
      try {
        load_optimizer_state(folder.path(), loaded, save_id);
      } catch (const Error& thrown) {
        return thrown.what();
      }
      return "";
    };
    if (count < 3) continue;
    const fs::path last = folder / optimizer_file_name({count - 1, count});
    fs::remove(last);
    EXPECT_THAT(error(), AllOf(HasSubstr(last.filename().string()), HasSubstr("is missing")));
    fs::copy_file(folder / optimizer_file_name({0, count}), last);
    EXPECT_THAT(error(), HasSubstr("does not belong to rank"));
    fs::remove(last);
    write_optimizer_state(folder.path(), original, {count - 1, count}, save_id);
    write_optimizer_state(folder.path(), original, {0, 1}, save_id);
    EXPECT_THAT(error(), HasSubstr("several numbers of ranks"));
  }
}

TEST(OptimizerStateTest, MomentsMustCoverEveryElementOnce) {
  TemporaryFolder folder;
  ParameterStore store(test_exec(), {{"w", {10}, {10}, {}, ParameterRole::kMatrix}}, Dtype::kF32,
                       StoreContents::kValuesAndTraining);
  const SaveId save_id{"run", 7};
  write_optimizer_state(folder.path(), store, {}, save_id);
  const fs::path path = folder / optimizer_file_name({});
  const auto metadata = SafetensorsFile(path).metadata();
  /// Loads pieces of both moments, each written as (name, elements); returns the error.
  const auto load = [&](std::vector<std::pair<std::string, std::int64_t>> pieces) -> std::string {
    pieces.emplace_back("exp_avg_sq/w[0:10]", 10);
    std::vector<TensorInfo> tensors;
    for (const auto& [name, elements] : pieces) tensors.push_back({name, Dtype::kF32, {elements}});
    SafetensorsWriter writer(path, tensors, metadata);
    for (const TensorInfo& tensor : writer.order())
      writer.write(tensor.name, std::vector<float>(static_cast<std::size_t>(tensor.elements()), 1));
    writer.commit();
    try {
      load_optimizer_state(folder.path(), store, save_id);
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kCheckpoint);
      return error.what();
    }
    return "";
  };
  EXPECT_EQ(load({{"exp_avg/w[0:4]", 4}, {"exp_avg/w[4:10]", 6}}), "");
  EXPECT_THAT(load({{"exp_avg/w[0:4]", 4}, {"exp_avg/w[5:10]", 5}}), HasSubstr("element 4 of 10"));
  EXPECT_THAT(load({{"exp_avg/w[0:4]", 4}, {"exp_avg/w[3:10]", 7}}), HasSubstr("element 4 of 10"));
  EXPECT_THAT(load({{"exp_avg/w[0:4]", 4}}), HasSubstr("element 4 of 10"));
  EXPECT_THAT(load({{"exp_avg/w[0:11]", 11}}), HasSubstr("element 0 of 10"));
  EXPECT_THAT(load({{"exp_avg/w[0:10]", 9}}), HasSubstr("is not a piece of a moment"));
  EXPECT_THAT(load({{"exp_avg/w", 10}}), HasSubstr("is not a piece of a moment"));
  EXPECT_THAT(load({{"exp_avg/w[0:10]", 10}, {"exp_avg/v[0:1]", 1}}),
              HasSubstr("exp_avg/v: is not of a parameter"));
}

}  // namespace
}  // namespace jiboia
