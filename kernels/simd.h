#pragma once
#include <bit>
#include <cmath>
#include <cstdint>
#include <experimental/simd>
#include <limits>

/// Vectors of the CPU backend: as wide as the machine that the code is compiled for, so a file that
/// includes this header may give other last bits on another kind of CPU, never on the same kind.
namespace jiboia::simd {

namespace stdx = std::experimental;

template <class T>
using Vec = stdx::native_simd<T>;

/// Elements in a Vec<T>.
template <class T>
inline constexpr std::int64_t kLanes = static_cast<std::int64_t>(Vec<T>::size());

template <class T>
Vec<T> load(const T* from) {
  return Vec<T>(from, stdx::element_aligned);
}
template <class T>
void store(const Vec<T>& value, T* to) {
  value.copy_to(to, stdx::element_aligned);
}
/// The first `count` lanes from memory, zeros in the rest.
template <class T>
Vec<T> load(const T* from, std::int64_t count) {
  if (count >= kLanes<T>) return load(from);
  return Vec<T>(
      [&](auto lane) { return static_cast<std::int64_t>(lane) < count ? from[lane] : T(0); });
}
/// The first `count` lanes to memory.
template <class T>
void store(const Vec<T>& value, T* to, std::int64_t count) {
  if (count >= kLanes<T>) return store(value, to);
  for (std::int64_t lane = 0; lane < count; ++lane)
    to[lane] = value[static_cast<std::size_t>(lane)];
}

/// e^x of every lane, f32: within 2 units in the last place, 0 below -87.3 (no denormals), infinity
/// above 88.72, NaN for NaN.
/// Method: x = n ln 2 + r with |r| <= ln(2)/2, a polynomial of degree 6 in r, times 2^n.
inline Vec<float> exp(Vec<float> x) {
  using V = Vec<float>;
  using I = stdx::rebind_simd_t<std::int32_t, V>;
  // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits of the sum.
  const V shifted = x * 1.44269504088896341f + 12582912.0f;
  const V n = shifted - 12582912.0f;
  const V r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  V p = 1.3888889e-3f;
  p = p * r + 8.3333333e-3f;
  p = p * r + 4.1666668e-2f;
  p = p * r + 1.6666667e-1f;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const I exponent = std::bit_cast<I>(shifted) << 23;
  V result = std::bit_cast<V>(std::bit_cast<I>(p) + exponent);
  stdx::where(x < -87.3f, result) = 0.0f;
  stdx::where(x > 88.0f, result) = std::numeric_limits<float>::infinity();
  stdx::where(x != x, result) = x;
  return result;
}

/// e^x of every lane, f64, by the C library: f64 is for checking, not for speed.
inline Vec<double> exp(Vec<double> x) {
  return Vec<double>([&](auto lane) { return std::exp(x[lane]); });
}

}  // namespace jiboia::simd
