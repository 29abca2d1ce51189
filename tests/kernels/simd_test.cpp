#include "kernels/simd.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

namespace jiboia::simd {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

/// The function's value at x, which stands in the last lane; the others hold something else.
template <class Function>
float at(Function function, float x) {
  Vec<float> v = -1.0f;
  v[v.size() - 1] = x;
  return function(v)[v.size() - 1];
}

/// The largest error over a fine grid, in units in the last place of the exact value.
template <class Function, class Exact>
double worst_ulps(Function function, Exact exact, float low, float high) {
  constexpr std::int64_t kPoints = 400'000;
  const double step = (static_cast<double>(high) - low) / kPoints;
  double worst = 0;
  for (std::int64_t i = 0; i < kPoints; i += kLanes<float>) {
    const Vec<float> x(
        [&](auto lane) { return static_cast<float>(low + step * static_cast<double>(i + lane)); });
    const Vec<float> got = function(x);
    for (std::size_t lane = 0; lane < Vec<float>::size(); ++lane) {
      const double want = exact(static_cast<double>(x[lane]));
      const float nearest = std::max(static_cast<float>(want), std::numeric_limits<float>::min());
      const double ulp = static_cast<double>(std::nextafter(nearest, kInfinity)) - nearest;
      worst = std::max(worst, std::abs(static_cast<double>(got[lane]) - want) / ulp);
    }
  }
  return worst;
}

double exact_softplus(double x) { return std::max(x, 0.0) + std::log1p(std::exp(-std::abs(x))); }

constexpr auto kExp = [](Vec<float> x) { return exp(x); };
constexpr auto kExp2 = [](Vec<float> x) { return exp2_nonpositive(x); };
constexpr auto kSoftplus = [](Vec<float> x) { return softplus(x); };
constexpr auto kSigmoid = [](Vec<float> x) { return sigmoid(x); };

TEST(Simd, ExpIsWithinTwoUlps) {
  const auto exact = [](double x) { return std::exp(x); };
  EXPECT_LE(worst_ulps(kExp, exact, -87.3365f, 88.7228f), 2.0);
  EXPECT_LE(worst_ulps(kExp, exact, -1.0f, 1.0f), 2.0);
  EXPECT_LE(worst_ulps(kExp, exact, -1e-3f, 1e-3f), 1.0);
}

TEST(Simd, ExpAtTheEdges) {
  EXPECT_EQ(at(kExp, 0.0f), 1.0f);
  EXPECT_EQ(at(kExp, -0.0f), 1.0f);
  EXPECT_NEAR(at(kExp, 88.7228f), 3.4027e38f, 1e34f);
  for (float x : {88.723f, 89.0f, 1000.0f, 3e38f, kInfinity}) EXPECT_EQ(at(kExp, x), kInfinity);
  for (float x : {-87.34f, -104.0f, -1e4f, -3e38f, -kInfinity}) EXPECT_EQ(at(kExp, x), 0.0f);
  EXPECT_TRUE(std::isnan(at(kExp, kNaN)));
}

TEST(Simd, ExpOfDoublesIsTheLibrarys) {
  const Vec<double> x([](auto lane) { return -3.0 + static_cast<double>(lane); });
  for (std::size_t lane = 0; lane < x.size(); ++lane) EXPECT_EQ(exp(x)[lane], std::exp(x[lane]));
}

TEST(Simd, Exp2IsWithinTwoAndAHalfUlps) {
  const auto exact = [](double x) { return std::exp2(x); };
  EXPECT_LE(worst_ulps(kExp2, exact, -125.9f, 0.0f), 2.5);
  EXPECT_LE(worst_ulps(kExp2, exact, -1.0f, 0.0f), 2.5);
  EXPECT_LE(worst_ulps(kExp2, exact, -1e-3f, 0.0f), 1.0);
}

TEST(Simd, Exp2AtTheEdges) {
  EXPECT_EQ(at(kExp2, 0.0f), 1.0f);
  EXPECT_EQ(at(kExp2, -0.0f), 1.0f);
  EXPECT_EQ(at(kExp2, -1.0f), 0.5f);
  EXPECT_EQ(at(kExp2, -126.0f), 0x1p-126f);
  EXPECT_EQ(at(kExp2, -0x1p-23f), 1.0f - 0x1p-24f);  // the decay closest to 1
  for (float x : {-127.0f, -150.0f, -1e10f, -3.4e38f, -kInfinity}) EXPECT_EQ(at(kExp2, x), 0.0f);
  EXPECT_TRUE(std::isnan(at(kExp2, kNaN)));
}

TEST(Simd, SoftplusIsAccurateForEveryInput) {
  EXPECT_LE(worst_ulps(kSoftplus, exact_softplus, -87.3f, -20.0f), 4.0);
  EXPECT_LE(worst_ulps(kSoftplus, exact_softplus, -20.0f, 25.0f), 4.0);
  EXPECT_LE(worst_ulps(kSoftplus, exact_softplus, 25.0f, 1e4f), 0.5);
  for (float x : {20.0f, 20.001f, 89.0f, 1e4f, kInfinity}) EXPECT_FLOAT_EQ(at(kSoftplus, x), x);
  for (float x : {-88.0f, -104.0f, -1e4f, -kInfinity}) EXPECT_NEAR(at(kSoftplus, x), 0.0f, 1e-38f);
  EXPECT_TRUE(std::isnan(at(kSoftplus, kNaN)));
}

TEST(Simd, SoftplusOfDoublesIsExactAndSwitchesAtTwenty) {
  for (double x : {-700.0, -20.0, -9.21, 0.0, 19.999, 20.0}) {
    EXPECT_DOUBLE_EQ(softplus(Vec<double>(x))[0], exact_softplus(x)) << x;
  }
  EXPECT_EQ(softplus(Vec<double>(20.001))[0], 20.001);
}

TEST(Simd, SigmoidIsAccurateForEveryInput) {
  const auto exact = [](double x) { return 1 / (1 + std::exp(-x)); };
  EXPECT_LE(worst_ulps(kSigmoid, exact, -87.0f, -20.0f), 4.0);
  EXPECT_LE(worst_ulps(kSigmoid, exact, -20.0f, 20.0f), 4.0);
  for (float x : {20.0f, 1e4f, kInfinity}) EXPECT_FLOAT_EQ(at(kSigmoid, x), 1.0f);
  for (float x : {-104.0f, -1e4f, -kInfinity}) EXPECT_EQ(at(kSigmoid, x), 0.0f);
  EXPECT_TRUE(std::isnan(at(kSigmoid, kNaN)));
}

template <class T>
class SimdOfType : public testing::Test {};
using Types = testing::Types<float, double>;
TYPED_TEST_SUITE(SimdOfType, Types);

TYPED_TEST(SimdOfType, SumsOfRows) {
  using T = TypeParam;
  constexpr auto kWidth = static_cast<std::size_t>(kLanes<T>);
  std::vector<T> rows(kWidth * kWidth);
  for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<T>(i * i % 1009);
  const Vec<T> sums = sums_of_rows(rows.data());
  for (std::size_t row = 0; row < kWidth; ++row) {
    T want = 0;
    for (std::size_t lane = 0; lane < kWidth; ++lane) want += rows[row * kWidth + lane];
    EXPECT_EQ(sums[row], want) << row;
  }
}

TYPED_TEST(SimdOfType, PartsOfVectors) {
  using T = TypeParam;
  std::vector<T> memory(static_cast<std::size_t>(kLanes<T>), T(7));
  for (std::int64_t count = 0; count <= kLanes<T> + 1; ++count) {
    const Vec<T> part = load(memory.data(), count);
    std::vector<T> copy(memory.size(), T(1));
    store(Vec<T>(T(5)), copy.data(), count);
    for (std::int64_t lane = 0; lane < kLanes<T>; ++lane) {
      EXPECT_EQ(part[static_cast<std::size_t>(lane)], lane < count ? T(7) : T(0));
      EXPECT_EQ(copy[static_cast<std::size_t>(lane)], lane < count ? T(5) : T(1));
    }
  }
}

}  // namespace
}  // namespace jiboia::simd
