#pragma once
#include <cstddef>
#include <cstdint>

#include "core/error.h"

namespace jiboia {

/// Element types of tensors and of files.
enum class Dtype : std::uint8_t { kF32, kF64, kBf16, kF16, kU8, kU16, kU32, kI32, kI64 };

constexpr std::int64_t size_of(Dtype dtype) {
  switch (dtype) {
    case Dtype::kF64:
    case Dtype::kI64: return 8;
    case Dtype::kF32:
    case Dtype::kU32:
    case Dtype::kI32: return 4;
    case Dtype::kBf16:
    case Dtype::kF16:
    case Dtype::kU16: return 2;
    case Dtype::kU8: return 1;
  }
  return 0;
}

/// "f32", "bf16", "i32", ...
constexpr const char* to_string(Dtype dtype) {
  switch (dtype) {
    case Dtype::kF32: return "f32";
    case Dtype::kF64: return "f64";
    case Dtype::kBf16: return "bf16";
    case Dtype::kF16: return "f16";
    case Dtype::kU8: return "u8";
    case Dtype::kU16: return "u16";
    case Dtype::kU32: return "u32";
    case Dtype::kI32: return "i32";
    case Dtype::kI64: return "i64";
  }
  return "?";
}

/// The dtype in which sums over values of `dtype` are kept: 16-bit floats add up in f32.
constexpr Dtype accumulator_of(Dtype dtype) {
  return dtype == Dtype::kBf16 || dtype == Dtype::kF16 ? Dtype::kF32 : dtype;
}

/// The Dtype of a C++ element type.
template <class T>
inline constexpr Dtype kDtypeOf = [] {
  static_assert(sizeof(T) == 0, "no Dtype for this type");
  return Dtype::kU8;
}();
template <>
inline constexpr Dtype kDtypeOf<float> = Dtype::kF32;
template <>
inline constexpr Dtype kDtypeOf<double> = Dtype::kF64;
template <>
inline constexpr Dtype kDtypeOf<std::uint8_t> = Dtype::kU8;
template <>
inline constexpr Dtype kDtypeOf<std::uint16_t> = Dtype::kU16;
template <>
inline constexpr Dtype kDtypeOf<std::uint32_t> = Dtype::kU32;
template <>
inline constexpr Dtype kDtypeOf<std::int32_t> = Dtype::kI32;
template <>
inline constexpr Dtype kDtypeOf<std::int64_t> = Dtype::kI64;

/// Calls `visitor.template operator()<T>()` with T = float or double, what the CPU
/// computes in.
/// Errors: Unsupported for every other dtype.
template <class Visitor>
decltype(auto) visit_float(Dtype dtype, Visitor&& visitor) {
  if (dtype == Dtype::kF32) return visitor.template operator()<float>();
  if (dtype == Dtype::kF64) return visitor.template operator()<double>();
  fail(ErrorKind::kUnsupported, "the CPU computes in f32 and f64, not in {}", to_string(dtype));
}

}  // namespace jiboia
