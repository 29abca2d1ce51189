#include "train/optim/optimizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

namespace jiboia {
namespace {

std::vector<ParameterSpec> two_parameters() {
  return {
      {.name = "matrix", .shape = {3, 50}, .file_shape = {3, 50}, .role = ParameterRole::kMatrix},
      {.name = "norm", .shape = {7}, .file_shape = {7}, .role = ParameterRole::kOther}};
}

void fill(const Tensor& tensor, float value) {
  std::fill_n(tensor.as<float>(), tensor.size(), value);
}

struct Fixture {
  explicit Fixture(const OptimConfig& config)
      : store(exec, two_parameters(), Dtype::kF32, StoreContents::kValuesAndTraining),
        optimizer(config, store) {
    for (std::size_t i : {0, 1}) {
      fill(store.value(i), 2);
      fill(store.gradient(i), 1);
    }
  }
  /// One update; the norm of the mean gradient.
  double step(double lr, std::int64_t update, std::int64_t micro_batches) {
    optimizer.set_rates(lr, update);
    optimizer.apply(micro_batches);
    const double norm = read_scalar(exec, optimizer.findings().gradient_norm);
    return norm / static_cast<double>(micro_batches);
  }
  Exec exec = CpuExec(2);
  ParameterStore store;
  Optimizer optimizer;
};

TEST(Optimizer, DecaysMatricesOnlyUnlessToldToDecayAll) {
  const OptimConfig config{.lr = 0.1, .weight_decay = 0.5, .grad_clip = 0};
  Fixture some(config);
  EXPECT_EQ(some.optimizer.groups()[0].elements, 150);
  EXPECT_EQ(some.optimizer.groups()[1].elements, 7);
  fill(some.store.flat_gradients(), 0);
  some.step(0.1, 1, 1);
  EXPECT_FLOAT_EQ(some.store.value(0).as<float>()[149], 2 * (1 - 0.1f * 0.5f));
  EXPECT_EQ(some.store.value(1).as<float>()[6], 2);

  OptimConfig decay_all = config;
  decay_all.weight_decay_scope = WeightDecayScope::kAll;
  Fixture all(decay_all);
  EXPECT_THAT(all.optimizer.groups()[1].parameters, testing::IsEmpty());
  EXPECT_THAT(all.optimizer.describe(), testing::HasSubstr("157 elements (matrix, norm)"));
}

TEST(Optimizer, ClipsTheMeanGradientByItsGlobalNorm) {
  // The store holds sums over 4 micro-batches: the mean is 1/4, its norm sqrt(157) / 4.
  const double norm = std::sqrt(157.0) / 4;
  for (double clip : {0.0, 0.5, 100.0}) {
    Fixture f({.lr = 0.1, .weight_decay = 0, .grad_clip = clip});
    EXPECT_NEAR(f.step(0.1, 1, 4), norm, 1e-12);
    const double factor = clip > 0 ? std::min(1.0, clip / (norm + 1e-6)) : 1;
    EXPECT_NEAR(f.store.exp_avg(0).as<float>()[0], 0.1 * 0.25 * factor, 1e-7);
  }
}

TEST(Optimizer, AGradientThatIsNotFiniteUpdatesNothingAndIsNamed) {
  for (float bad : {std::nanf(""), INFINITY}) {
    Fixture f({.lr = 0.1});
    f.store.gradient(1).as<float>()[3] = bad;
    EXPECT_FALSE(std::isfinite(f.step(0.1, 17, 1)));
    try {
      const auto first = f.optimizer.findings().first_not_finite;
      f.optimizer.fail_on_gradient(17, *first.as<std::int64_t>());
      FAIL();
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kNumerics);
      EXPECT_THAT(error.what(), testing::HasSubstr("step 17: the gradient of norm"));
    }
    EXPECT_EQ(f.store.value(0).as<float>()[0], 2);
    EXPECT_EQ(f.store.value(1).as<float>()[0], 2);
    EXPECT_EQ(f.store.exp_avg_sq(0).as<float>()[0], 0);
  }
}

TEST(Optimizer, ZeroGradientsDivideByNothing) {
  Fixture f({.lr = 0.1, .weight_decay = 0});
  fill(f.store.flat_gradients(), 0);
  EXPECT_EQ(f.step(0.1, 1, 1), 0);
  EXPECT_EQ(f.store.value(0).as<float>()[0], 2);
}

TEST(ParameterStore, GradientsThatNobodyWroteBecomeZero) {
  Fixture f({.lr = 0.1});
  f.store.begin_gradients();
  EXPECT_EQ(f.store.acquire(ParameterId{0}).mode, GradMode::kOverwrite);
  EXPECT_EQ(f.store.acquire(ParameterId{0}).mode, GradMode::kAdd);
  f.store.end_gradients();
  EXPECT_EQ(f.store.gradient(0).as<float>()[0], 1);
  EXPECT_EQ(f.store.gradient(1).as<float>()[6], 0);
}

TEST(ParameterStore, LaysParametersOutForEqualSlices) {
  const Fixture f({.lr = 0.1});
  EXPECT_EQ(f.store.range(1).begin, 192);  // 150 rounded up to 64
  EXPECT_EQ(f.store.flat_size(), ParameterStore::kShardUnit);
  EXPECT_EQ(f.store.parameter_count(), 157);
}

}  // namespace
}  // namespace jiboia
