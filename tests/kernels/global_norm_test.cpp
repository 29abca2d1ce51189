#include "kernels/global_norm/global_norm.h"

#include <cmath>
#include <limits>

#include "core/rng.h"
#include "tests/support/placed.h"

namespace jiboia::test {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

struct Result {
  double norm = 0;
  std::int64_t first_not_finite = 0;

  bool operator==(const Result&) const = default;
};

/// The norm of `values` without the first `begin`.
template <class T>
Result norm_of(Exec& exec, const std::vector<T>& values, std::int64_t begin = 0) {
  Placed<T> flat(exec, values);
  Placed<double> norm(exec, {-5});
  Placed<std::int64_t> first(exec, {-5});
  const std::int64_t n = flat.tensor(begin).size();
  Placed<std::uint8_t> scratch(
      exec, std::vector<std::uint8_t>(static_cast<std::size_t>(global_norm_scratch_bytes(n)), 255));
  const GlobalNorm args{flat.tensor(begin), norm.tensor(), first.tensor()};
  std::visit([&](auto& backend) { global_norm(backend, args, scratch.bytes()); }, exec);
  scratch.values();
  return {norm.values()[0], first.values()[0]};
}

template <class T = float>
std::vector<T> filled(std::int64_t n, double value) {
  return std::vector<T>(static_cast<std::size_t>(n), static_cast<T>(value));
}

std::vector<float> random_values(std::int64_t n) {
  std::vector<float> values;
  const Philox random(4, RandomPurpose::kTest);
  for (std::int64_t i = 0; i < n; ++i) {
    values.push_back(static_cast<float>(random.normal(static_cast<std::uint64_t>(i))));
  }
  return values;
}

void expect_exact_norms(Exec& exec) {
  for (std::int64_t n : {1, 7, 4095, 4096, 4097, 20'000}) {
    const Result result = norm_of(exec, filled(n, 2));
    EXPECT_NEAR(result.norm, 2 * std::sqrt(static_cast<double>(n)), 1e-9);
    EXPECT_EQ(result.first_not_finite, -1);
  }
  EXPECT_NEAR(norm_of(exec, filled(100, 1e30)).norm / 1e31, 1, 1e-6);
  EXPECT_NEAR(norm_of(exec, filled(100, 1e-30)).norm / 1e-29, 1, 1e-6);
  EXPECT_EQ(norm_of(exec, filled(100, 0)), (Result{0, -1}));
  EXPECT_EQ(norm_of(exec, filled(0, 0)), (Result{0, -1}));

  const std::vector<float> values = random_values(123'457);
  for (std::int64_t begin : {0, 1, 3}) {
    long double sum = 0;
    for (std::size_t i = static_cast<std::size_t>(begin); i < values.size(); ++i) {
      sum += static_cast<long double>(values[i]) * static_cast<long double>(values[i]);
    }
    EXPECT_DOUBLE_EQ(norm_of(exec, values, begin).norm, static_cast<double>(std::sqrt(sum)))
        << begin;
  }
}

void expect_first_not_finite(Exec& exec) {
  for (std::int64_t at : {0, 5, 4095, 4096, 4500, 49'999}) {
    for (double value : {std::nan(""), kInfinity, -kInfinity}) {
      auto values = filled(50'000, 1);
      values[static_cast<std::size_t>(at)] = static_cast<float>(value);
      values[49'999] = static_cast<float>(value);
      const Result result = norm_of(exec, values);
      EXPECT_EQ(std::isnan(result.norm), std::isnan(value)) << result.norm;
      EXPECT_FALSE(std::isfinite(result.norm));
      EXPECT_EQ(result.first_not_finite, at);
      values.insert(values.begin(), 3);
      EXPECT_EQ(norm_of(exec, values, 1).first_not_finite, at);
    }
  }
}

/// More than kNormBlock partial sums, so that the tree has a further level.
void expect_levels(Exec& exec) {
  const std::int64_t n = kNormBlock * kNormBlock + kNormBlock + 5;
  auto values = filled(n, 0.5);
  EXPECT_DOUBLE_EQ(norm_of(exec, values).norm, 0.5 * std::sqrt(static_cast<double>(n)));
  for (std::int64_t at : {n - 1, kNormBlock * kNormBlock, kNormBlock * kNormBlock - 1,
                          std::int64_t{123'456}, std::int64_t{0}}) {
    values[static_cast<std::size_t>(at)] = std::numeric_limits<float>::infinity();
    EXPECT_EQ(norm_of(exec, values), (Result{kInfinity, at}));
  }
}

void expect_same_norm_at_any_address(Exec& exec) {
  std::vector<float> values = random_values(50'000);
  const Result result = norm_of(exec, values);
  EXPECT_EQ(norm_of(exec, values), result);
  values.insert(values.begin(), 1e9F);
  EXPECT_EQ(norm_of(exec, values, 1), result);
}

TEST(GlobalNorm, IsExactForLargeAndSmallElements) {
  Exec cpu = CpuExec(1);
  expect_exact_norms(cpu);
}

TEST(GlobalNorm, TellsOfElementsThatAreNotFinite) {
  Exec cpu = CpuExec(2);
  expect_first_not_finite(cpu);
}

TEST(GlobalNorm, OverflowNeedsNoElementThatIsNotFinite) {
  Exec cpu = CpuExec(1);
  auto values = filled<double>(9000, 1);
  values[3] = 1e200;
  EXPECT_EQ(norm_of(cpu, values), (Result{kInfinity, -1}));
  values[8000] = kInfinity;
  EXPECT_EQ(norm_of(cpu, values), (Result{kInfinity, 8000}));
}

TEST(GlobalNorm, DoesNotDependOnThreads) {
  const std::vector<float> values = random_values(123'457);
  Exec one = CpuExec(1), two = CpuExec(2), three = CpuExec(3);
  EXPECT_EQ(norm_of(one, values), norm_of(two, values));
  EXPECT_EQ(norm_of(one, values), norm_of(three, values));
}

TEST(GlobalNorm, DoesNotDependOnTheAddress) {
  Exec cpu = CpuExec(1);
  expect_same_norm_at_any_address(cpu);
}

TEST(GlobalNormCuda, IsExactForLargeAndSmallElements) { run_on_gpu(expect_exact_norms); }
TEST(GlobalNormCuda, TellsOfElementsThatAreNotFinite) { run_on_gpu(expect_first_not_finite); }
TEST(GlobalNormCuda, AddsSeveralLevels) { run_on_gpu(expect_levels); }
TEST(GlobalNormCuda, DoesNotDependOnTheAddress) { run_on_gpu(expect_same_norm_at_any_address); }

TEST(GlobalNorm, RefusesTensorsThatDoNotFit) {
  Exec exec = CpuExec(1);
  const Placed<float> flat(exec, filled(8, 1));
  const Placed<double> norm(exec, {0}), two(exec, {0, 0});
  const Placed<std::int64_t> first(exec, {0});
  const Placed<std::int32_t> integers(exec, {0});
  std::vector<std::byte> scratch(static_cast<std::size_t>(global_norm_scratch_bytes(8)));
  const auto run = [&](const Tensor& x, const Tensor& result, const Tensor& index) {
    global_norm(std::get<CpuExec>(exec), {x, result, index}, scratch);
  };
  EXPECT_NO_THROW(run(flat.tensor(), norm.tensor(), first.tensor()));
  EXPECT_THROW(run(integers.tensor(), norm.tensor(), first.tensor()), Error);
  EXPECT_THROW(run({}, norm.tensor(), first.tensor()), Error);
  EXPECT_THROW(run(flat.tensor(), two.tensor(), first.tensor()), Error);
  EXPECT_THROW(run(flat.tensor(), norm.tensor(), integers.tensor()), Error);
  scratch.resize(1);
  EXPECT_THROW(run(flat.tensor(), norm.tensor(), first.tensor()), Error);
}

}  // namespace
}  // namespace jiboia::test
