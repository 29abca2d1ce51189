#include "core/rng.h"

#include <gtest/gtest.h>

namespace jiboia {
namespace {

TEST(Philox, EqualsThePublishedVectors) {
  // Random123's known answers for philox4x32-10: counter and key of zeros, then of all ones.
  const Philox zeros(0, RandomPurpose{0}, 0);
  EXPECT_EQ(zeros.block(0), (Philox::Block{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  const Philox ones(~std::uint64_t{0}, RandomPurpose{0xffffffff}, 0xffffffff);
  EXPECT_EQ(ones.block(~std::uint64_t{0}),
            (Philox::Block{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
}

TEST(Philox, NormalsAreNormal) {
  const Philox random(1, RandomPurpose::kTest);
  double mean = 0, squares = 0, fourths = 0;
  constexpr int kCount = 200'000;
  for (int i = 0; i < kCount; ++i) {
    const double x = random.normal(static_cast<std::uint64_t>(i));
    mean += x / kCount;
    squares += x * x / kCount;
    fourths += x * x * x * x / kCount;
  }
  EXPECT_NEAR(mean, 0, 0.01);
  EXPECT_NEAR(squares, 1, 0.02);
  EXPECT_NEAR(fourths, 3, 0.1);
}

TEST(Philox, StreamsDiffer) {
  const Philox a(1, RandomPurpose::kTest, 0), b(1, RandomPurpose::kTest, 1);
  const Philox c(1, RandomPurpose::kSampling, 0), d(2, RandomPurpose::kTest, 0);
  EXPECT_NE(a.block(0), b.block(0));
  EXPECT_NE(a.block(0), c.block(0));
  EXPECT_NE(a.block(0), d.block(0));
}

}  // namespace
}  // namespace jiboia
