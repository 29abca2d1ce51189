#include "data/row_permutation.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "core/error.h"

namespace jiboia {
namespace {

std::vector<std::int64_t> order(std::uint64_t seed, std::int64_t epoch, std::int64_t rows) {
  std::vector<std::int64_t> result(static_cast<std::size_t>(rows));
  for (std::int64_t i = 0; i < rows; ++i)
    result[static_cast<std::size_t>(i)] = permuted_row(seed, epoch, i, rows);
  return result;
}

TEST(RowPermutation, IsABijection) {
  for (const std::int64_t rows :
       {1, 2, 3, 4, 5, 15, 16, 17, 100, 1000, 4096, 4097, 65537, (1 << 20) + 7}) {
    std::vector<int> seen(static_cast<std::size_t>(rows));
    for (const std::int64_t row : order(7, 3, rows)) {
      ASSERT_GE(row, 0);
      ASSERT_LT(row, rows);
      ++seen[static_cast<std::size_t>(row)];
    }
    EXPECT_EQ(std::accumulate(seen.begin(), seen.end(), std::int64_t{0}), rows);
    EXPECT_EQ(*std::min_element(seen.begin(), seen.end()), 1) << rows << " rows";
  }
}

TEST(RowPermutation, StaysInsideHugeRanges) {
  const std::int64_t rows = (std::int64_t{1} << 61) + 12345;
  for (const std::int64_t position : {std::int64_t{0}, std::int64_t{1}, rows / 2, rows - 1}) {
    const std::int64_t row = permuted_row(1, 0, position, rows);
    EXPECT_GE(row, 0);
    EXPECT_LT(row, rows);
  }
  EXPECT_THROW(permuted_row(1, 0, 0, (std::int64_t{1} << 62) + 1), Error);
}

TEST(RowPermutation, DependsOnSeedAndEpochOnly) {
  EXPECT_EQ(order(1, 0, 1000), order(1, 0, 1000));
  EXPECT_NE(order(1, 0, 1000), order(1, 1, 1000));
  EXPECT_NE(order(1, 0, 1000), order(2, 0, 1000));
  EXPECT_NE(order(1, 2, 1000), order(2, 1, 1000));
}

TEST(RowPermutation, KeepsItsValues) {  // a change would silently reorder resumed runs
  EXPECT_EQ(order(1234, 5, 8), (std::vector<std::int64_t>{7, 1, 5, 0, 3, 2, 6, 4}));
}

/// Correlations of a good shuffle are normal with deviation 1/sqrt(n): five of those is a bound
/// that chance breaks once in a million.
TEST(RowPermutation, LooksShuffled) {
  constexpr std::int64_t kRows = 20000;
  const auto correlation = [](const std::vector<std::int64_t>& x,
                              const std::vector<std::int64_t>& y) {
    const double mean = (kRows - 1) / 2.0;
    const double variance = (static_cast<double>(kRows) * kRows - 1) / 12.0;
    double sum = 0;
    for (std::size_t i = 0; i < x.size(); ++i)
      sum += (static_cast<double>(x[i]) - mean) * (static_cast<double>(y[i]) - mean);
    return sum / (variance * kRows);
  };
  std::vector<std::int64_t> identity(kRows);
  std::iota(identity.begin(), identity.end(), 0);
  const double bound = 5 / std::sqrt(static_cast<double>(kRows));
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    const auto shuffled = order(seed, 0, kRows);
    auto neighbours = shuffled;
    std::rotate(neighbours.begin(), neighbours.begin() + 1, neighbours.end());
    EXPECT_LT(std::abs(correlation(identity, shuffled)), bound) << seed;
    EXPECT_LT(std::abs(correlation(shuffled, neighbours)), bound) << seed;
    EXPECT_LT(std::abs(correlation(shuffled, order(seed, 1, kRows))), bound) << seed;
    EXPECT_LT(std::abs(correlation(shuffled, order(seed + 1, 0, kRows))), bound) << seed;
  }
}

/// Over many seeds each row stands at each place equally often (chi-square, 63 degrees of freedom:
/// mean 63, deviation 11).
TEST(RowPermutation, PutsEachRowEverywhere) {
  constexpr int kRows = 64, kSeeds = 6400;
  std::vector<int> counts(kRows * kRows);
  for (std::uint64_t seed = 0; seed < kSeeds; ++seed) {
    const auto rows = order(seed, 0, kRows);
    for (int i = 0; i < kRows; ++i)
      ++counts[static_cast<std::size_t>(i * kRows + rows[static_cast<std::size_t>(i)])];
  }
  for (int position = 0; position < kRows; ++position) {
    double chi_square = 0;
    for (int row = 0; row < kRows; ++row) {
      const double expected = static_cast<double>(kSeeds) / kRows;
      const double count = counts[static_cast<std::size_t>(position * kRows + row)];
      chi_square += (count - expected) * (count - expected) / expected;
    }
    EXPECT_LT(chi_square, 63 + 5.5 * 11.3) << position;
  }
}

}  // namespace
}  // namespace jiboia
