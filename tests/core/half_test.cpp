#include "core/half.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>

namespace jiboia {
namespace {

TEST(Half, EveryF16IsExact) {
  for (int bits = 0; bits < 0x10000; ++bits) {
    const float value = float_from_f16(static_cast<std::uint16_t>(bits));
    const int exponent = bits >> 10 & 31;
    const int mantissa = bits & 1023;
    const double magnitude =
        exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
    if (exponent < 31)
      ASSERT_EQ(value, bits & 0x8000 ? -magnitude : magnitude) << bits;
    else if (mantissa == 0)
      ASSERT_TRUE(std::isinf(value)) << bits;
    else
      ASSERT_TRUE(std::isnan(value)) << bits;
    ASSERT_EQ(std::signbit(value), bits >= 0x8000) << bits;
  }
}

TEST(Half, Bf16RoundsToNearestEven) {
  for (int bits = 0; bits < 0x10000; ++bits) {  // what is a bf16 stays so, also NaN
    const float value = float_from_bf16(static_cast<std::uint16_t>(bits));
    ASSERT_EQ(bf16_from_float(value), std::isnan(value) ? bits | 0x40 : bits);
  }
  const auto rounded = [](std::uint32_t bits) {
    return bf16_from_float(std::bit_cast<float>(bits));
  };
  EXPECT_EQ(rounded(0x3F80'7FFF), 0x3F80);
  EXPECT_EQ(rounded(0x3F80'8000), 0x3F80);  // halfway, to even
  EXPECT_EQ(rounded(0x3F80'8001), 0x3F81);
  EXPECT_EQ(rounded(0x3F81'8000), 0x3F82);  // halfway, to even
  EXPECT_EQ(rounded(0xBF81'8000), 0xBF82);
  EXPECT_EQ(rounded(0x7F7F'FFFF), 0x7F80);  // the largest float overflows
  EXPECT_EQ(rounded(0x7F80'0001), 0x7FC0);  // a NaN in the lower bits is not lost
  EXPECT_EQ(rounded(0xFFFF'FFFF), 0xFFFF);
}

}  // namespace
}  // namespace jiboia
