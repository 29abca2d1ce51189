#include "kernels/adamw/adamw.h"

#include <gmock/gmock.h>

#include "kernels/global_norm/global_norm.h"
#include "tests/support/test_tensor.h"

namespace jiboia::test {
namespace {

struct State {
  TestTensor value, gradient, exp_avg, exp_avg_sq;
};

State random_state(Dtype dtype, std::int64_t n) {
  const Spec spec(dtype, {n});
  State state{TestTensor(spec), TestTensor(spec), TestTensor(spec), TestTensor(spec)};
  const Philox random(3, RandomPurpose::kTest);
  for (std::int64_t i = 0; i < n; ++i) {
    const auto at = static_cast<std::uint64_t>(4 * i);
    state.value.set(i, static_cast<float>(random.normal(at)));
    state.gradient.set(i, static_cast<float>(random.normal(at + 1)));
    state.exp_avg.set(i, static_cast<float>(0.1 * random.normal(at + 2)));
    state.exp_avg_sq.set(i, static_cast<float>(random.uniform(at + 3)));
  }
  return state;
}

AdamWUpdate update_of(const State& state) {
  return {.value = state.value.tensor(),
          .gradient = state.gradient.tensor(),
          .exp_avg = state.exp_avg.tensor(),
          .exp_avg_sq = state.exp_avg_sq.tensor(),
          .lr = 1e-2,
          .weight_decay = 0.3,
          .grad_scale = 0.25};
}

TEST(AdamW, EqualsItsFormula) {
  CpuExec cpu(2);
  for (std::int64_t t :
       {std::int64_t{1}, std::int64_t{2}, std::int64_t{1000}, std::int64_t{10'000'000}}) {
    const State before = random_state(Dtype::kF64, 100);
    State after = before;
    AdamWUpdate args = update_of(after);
    args.update = t;
    adamw(cpu, args);
    for (std::int64_t i = 0; i < 100; ++i) {
      const double g = args.grad_scale * before.gradient.get(i);
      const double m = 0.9 * before.exp_avg.get(i) + 0.1 * g;
      const double v = 0.95 * before.exp_avg_sq.get(i) + 0.05 * g * g;
      const double m_hat = m / (1 - std::pow(0.9, static_cast<double>(t)));
      const double v_hat = v / (1 - std::pow(0.95, static_cast<double>(t)));
      const double w =
          before.value.get(i) * (1 - 1e-2 * 0.3) - 1e-2 * m_hat / (std::sqrt(v_hat) + 1e-8);
      EXPECT_NEAR(after.value.get(i), w, 1e-13);
      EXPECT_NEAR(after.exp_avg.get(i), m, 1e-15);
      EXPECT_NEAR(after.exp_avg_sq.get(i), v, 1e-15);
    }
  }
}

TEST(AdamW, SinglePrecisionIsCloseAndTheSameOnAnyNumberOfThreads) {
  State exact = random_state(Dtype::kF64, 40'000);
  State first = random_state(Dtype::kF32, 40'000);
  CpuExec one(1), three(3);
  State second = first;
  adamw(one, update_of(exact));
  adamw(one, update_of(first));
  adamw(three, update_of(second));
  EXPECT_EQ(difference("value", first.value, exact.value, 1e-6, 0), "");
  EXPECT_EQ(difference("exp_avg_sq", first.exp_avg_sq, exact.exp_avg_sq, 1e-6, 0), "");
  EXPECT_TRUE(first.value.same_bits(second.value));
}

TEST(AdamW, RefusesTensorsOfDifferentSizes) {
  CpuExec cpu(1);
  const State state = random_state(Dtype::kF32, 8), other = random_state(Dtype::kF32, 9);
  AdamWUpdate args = update_of(state);
  args.gradient = other.gradient.tensor();
  EXPECT_THROW(adamw(cpu, args), Error);
}

double norm_of(std::int64_t n, double value, int threads) {
  TestTensor x(Spec(Dtype::kF32, {n}));
  x.fill(value);
  CpuExec cpu(threads);
  return global_norm(cpu, x.tensor());
}

TEST(GlobalNorm, IsExactForLargeAndSmallElements) {
  for (std::int64_t n : {1, 7, 4096, 4097, 20'000}) {
    EXPECT_NEAR(norm_of(n, 2, 1), 2 * std::sqrt(static_cast<double>(n)), 1e-9);
  }
  EXPECT_NEAR(norm_of(100, 1e30, 1) / 1e31, 1, 1e-6);
  EXPECT_NEAR(norm_of(100, 1e-30, 1) / 1e-29, 1, 1e-6);
  EXPECT_EQ(norm_of(100, 0, 1), 0);
}

TEST(GlobalNorm, TellsOfElementsThatAreNotFinite) {
  TestTensor x(Spec(Dtype::kF32, {5000}));
  CpuExec cpu(2);
  x.set(4500, std::nan(""));
  EXPECT_TRUE(std::isnan(global_norm(cpu, x.tensor())));
  x.set(4500, std::numeric_limits<double>::infinity());
  EXPECT_TRUE(std::isinf(global_norm(cpu, x.tensor())));
}

TEST(GlobalNorm, DoesNotDependOnThreads) {
  TestTensor x(Spec(Dtype::kF32, {123'457}));
  const Philox random(4, RandomPurpose::kTest);
  for (std::int64_t i = 0; i < x.size(); ++i)
    x.set(i, random.normal(static_cast<std::uint64_t>(i)));
  CpuExec one(1), two(2), three(3);
  const double norm = global_norm(one, x.tensor());
  EXPECT_EQ(norm, global_norm(two, x.tensor()));
  EXPECT_EQ(norm, global_norm(three, x.tensor()));
}

}  // namespace
}  // namespace jiboia::test
