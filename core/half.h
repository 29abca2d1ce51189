#pragma once
#include <bit>
#include <cstdint>

namespace jiboia {

/// The float that a bfloat16 stands for: its bits are the upper half of the float's.
constexpr float float_from_bf16(std::uint16_t bits) {
  return std::bit_cast<float>(std::uint32_t{bits} << 16);
}

/// The nearest bfloat16, ties to even; infinities and NaNs stay what they are (NaNs become quiet).
constexpr std::uint16_t bf16_from_float(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const bool is_nan = (bits & 0x7FFF'FFFF) > 0x7F80'0000;
  const std::uint32_t rounded = bits + 0x7FFF + (bits >> 16 & 1);
  return static_cast<std::uint16_t>((is_nan ? bits | 0x40'0000 : rounded) >> 16);
}

/// The float that an IEEE binary16 stands for; exact, also for subnormal numbers when the CPU is
/// set to flush those of its own.
constexpr float float_from_f16(std::uint16_t bits) {
  const std::uint32_t sign = (bits & 0x8000U) << 16;
  const std::uint32_t exponent = bits >> 10 & 0x1FU;
  const std::uint32_t mantissa = bits & 0x3FFU;
  const std::uint32_t small = std::bit_cast<std::uint32_t>(static_cast<float>(mantissa) * 0x1p-24f);
  const std::uint32_t biased = exponent == 31 ? 255 : exponent + (127 - 15);
  const std::uint32_t magnitude = exponent == 0 ? small : biased << 23 | mantissa << 13;
  return std::bit_cast<float>(sign | magnitude);
}

}  // namespace jiboia
