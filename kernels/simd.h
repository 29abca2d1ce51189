#pragma once
#include <bit>
#include <cmath>
#include <cstdint>
#include <experimental/simd>
#include <limits>
#include <utility>

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
namespace detail {
template <class T>
auto first_lanes(std::int64_t count) {
  return Vec<T>([](auto lane) { return static_cast<T>(lane); }) < Vec<T>(static_cast<T>(count));
}
}  // namespace detail
/// The first `count` lanes from memory, zeros in the rest.
template <class T>
Vec<T> load(const T* from, std::int64_t count) {
  if (count >= kLanes<T>) return load(from);
  Vec<T> value = T(0);
  stdx::where(detail::first_lanes<T>(count), value).copy_from(from, stdx::element_aligned);
  return value;
}
/// The first `count` lanes to memory.
template <class T>
void store(const Vec<T>& value, T* to, std::int64_t count) {
  if (count >= kLanes<T>) return store(value, to);
  stdx::where(detail::first_lanes<T>(count), value).copy_to(to, stdx::element_aligned);
}

/// e^x of every lane, f32: within 2 units in the last place; 0 where the result would be denormal
/// (x < -87.336), infinity above 88.7228, NaN for NaN.
/// Method: x = n ln 2 + r with |r| <= ln(2)/2, a minimax polynomial of degree 6, times 2^n.
inline Vec<float> exp(Vec<float> x) {
  using V = Vec<float>;
  using Bits = stdx::rebind_simd_t<std::uint32_t, V>;
  // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits of the sum.
  const V shifted = x * 1.44269504088896341f + 12582912.0f;
  const V n = shifted - 12582912.0f;
  const V r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  V p = 1.381454e-3f;
  p = p * r + 8.368745e-3f;
  p = p * r + 4.166839e-2f;
  p = p * r + 0.16666521f;
  p = p * r + 0.49999994f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const Bits exponent = std::bit_cast<Bits>(shifted) << 23;
  V result = std::bit_cast<V>(std::bit_cast<Bits>(p) + exponent);
  stdx::where(x < -87.33654f, result) = 0.0f;
  stdx::where(x > 88.72283f, result) = std::numeric_limits<float>::infinity();
  stdx::where(x != x, result) = x;
  return result;
}

/// e^x of every lane, f64, by the C library: f64 is for checking, not for speed.
inline Vec<double> exp(Vec<double> x) {
  return Vec<double>([&](auto lane) { return std::exp(x[lane]); });
}

/// 2^x of every lane for x <= 0, f32: within 2.5 units in the last place, or 2^-126 where that is
/// more; 0 below -127 and for -infinity, NaN for NaN. Meaningless for x > 0.
/// Method: a minimax polynomial of degree 5 that is exact at 0, so that 1 - 2^x is good as well.
inline Vec<float> exp2_nonpositive(Vec<float> x) {
  using V = Vec<float>;
  using Bits = stdx::rebind_simd_t<std::uint32_t, V>;
  stdx::where(x < -127.0f, x) = -127.0f;
  // As in exp(), but the integer comes out as n + 127: the exponent bits of 2^n, none for n = -127.
  const V shifted = x + (12582912.0f + 127.0f);
  const V r = x - (shifted - (12582912.0f + 127.0f));
  V p = 1.3264727e-3f;
  p = p * r + 9.671513e-3f;
  p = p * r + 5.5507336e-2f;
  p = p * r + 0.24022242f;
  p = p * r + 0.693147f;
  p = p * r + 1.0f;
  return p * std::bit_cast<V>(std::bit_cast<Bits>(shifted) << 23);
}
inline Vec<double> exp2_nonpositive(Vec<double> x) {
  return Vec<double>([&](auto lane) { return std::exp2(x[lane]); });
}

/// 1 / (1 + e^-x) of every lane.
template <class T>
Vec<T> sigmoid(Vec<T> x) {
  return T(1) / (T(1) + exp(-x));
}

/// log(1 + e^x) of every lane, f32, good to the last digits for every x whose result is normal.
/// Method: max(x, 0) + log1p(e) with e = e^-|x| <= 1, and log1p(e) = 2 atanh(e / (2 + e)).
inline Vec<float> softplus(Vec<float> x) {
  using V = Vec<float>;
  const V e = exp(-stdx::abs(x));
  const V s = e / (2.0f + e);
  const V z = s * s;
  V p = 0.14005993f;
  p = p * z + 0.14000903f;
  p = p * z + 0.20010763f;
  p = p * z + 0.3333321f;
  p = p * z + 1.0f;
  V positive = x;
  stdx::where(x < 0.0f, positive) = 0.0f;
  return 2.0f * s * p + positive;
}
inline Vec<double> softplus(Vec<double> x) {
  return Vec<double>([&](auto lane) {
    const double q = x[lane];
    return q <= 20 ? std::log1p(std::exp(q)) : q;
  });
}

namespace detail {
/// One step of sums_of_rows(): each run of `kRun` lanes of `a` and of `b` is folded to its half.
/// The halves that came from `a` and from `b` take turns.
template <std::size_t kRun, class T, std::size_t... kLane>
Vec<T> fold(Vec<T> a, Vec<T> b, std::index_sequence<kLane...>) {
  constexpr std::size_t kHalf = kRun / 2, kWidth = sizeof...(kLane);
  constexpr auto source = [](std::size_t lane) {
    const std::size_t half = lane / kHalf;
    return half % 2 * kWidth + half / 2 * kRun + lane % kHalf;
  };
  using Raw [[gnu::vector_size(sizeof(Vec<T>))]] = T;
  const Raw x = std::bit_cast<Raw>(a), y = std::bit_cast<Raw>(b);
  return std::bit_cast<Vec<T>>(__builtin_shufflevector(x, y, source(kLane)...) +
                               __builtin_shufflevector(x, y, (source(kLane) + kHalf)...));
}

template <std::size_t kRun, class T>
void fold_rows(Vec<T>* rows) {
  if constexpr (kRun > 1) {
    for (std::size_t i = 0; i < kRun / 2; ++i) {
      rows[i] =
          fold<kRun, T>(rows[i], rows[i + kRun / 2], std::make_index_sequence<Vec<T>::size()>());
    }
    fold_rows<kRun / 2, T>(rows);
  }
}
}  // namespace detail

/// Lane i of the result is the sum of the lanes of `rows`[i], for kLanes<T> consecutive vectors.
template <class T>
Vec<T> sums_of_rows(const T* rows) {
  Vec<T> vectors[Vec<T>::size()];
  for (std::int64_t i = 0; i < kLanes<T>; ++i) vectors[i] = load(rows + i * kLanes<T>);
  detail::fold_rows<Vec<T>::size(), T>(vectors);
  return vectors[0];
}

}  // namespace jiboia::simd
