#pragma once
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <math.h>

#include <atomic>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>

#include "tests/cuda_emulator/block.h"

/// What nvcc knows and g++ does not: words of the language, and functions that kernels call. In the
/// global namespace, under CUDA's names and with its meaning; what is not here, no kernel has used.
/// Float atomics are left out on purpose: they would make results vary from run to run.

#undef __global__
#undef __device__
#undef __host__
#undef __shared__
#undef __constant__
#undef __grid_constant__
#undef __launch_bounds__
#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __grid_constant__
#define __launch_bounds__(...)
#if defined(__SANITIZE_ADDRESS__)
#define __shared__ static  // thread_local variables get no red zones
#else
#define __shared__ static thread_local  // see static_shared.h
#endif

// Read-only, as in a kernel.
#define threadIdx (static_cast<const uint3&>(::jiboia::emulated::thread_index))
#define blockIdx (static_cast<const uint3&>(::jiboia::emulated::block_index))
#define blockDim (static_cast<const dim3&>(::jiboia::emulated::block_size))
#define gridDim (static_cast<const dim3&>(::jiboia::emulated::grid_size))
inline constexpr int warpSize = 32;

// Where a function waits is told by these two, which default to the line of the call.
#define JIBOIA_SITE_PARAMETERS const char *file = __builtin_FILE(), int line = __builtin_LINE()
#define JIBOIA_SITE (::jiboia::emulated::Site{file, line})

// Barriers.
inline void __syncthreads(JIBOIA_SITE_PARAMETERS) {
  jiboia::emulated::sync_block(false, JIBOIA_SITE);
}
inline int __syncthreads_count(int predicate, JIBOIA_SITE_PARAMETERS) {
  return jiboia::emulated::sync_block(predicate != 0, JIBOIA_SITE);
}
inline int __syncthreads_or(int predicate, JIBOIA_SITE_PARAMETERS) {
  return jiboia::emulated::sync_block(predicate != 0, JIBOIA_SITE) != 0;
}
inline int __syncthreads_and(int predicate, JIBOIA_SITE_PARAMETERS) {
  return jiboia::emulated::sync_block(predicate == 0, JIBOIA_SITE) == 0;
}
inline void __syncwarp(unsigned mask = ~0U, JIBOIA_SITE_PARAMETERS) {
  jiboia::emulated::collective(jiboia::emulated::Collective::kSync, mask, 0, 0, JIBOIA_SITE);
}
inline void __threadfence() { std::atomic_thread_fence(std::memory_order_seq_cst); }
inline void __threadfence_block() { std::atomic_thread_fence(std::memory_order_seq_cst); }
[[noreturn]] inline void __trap() { std::abort(); }

// Shuffles, of types of up to 8 bytes.
namespace jiboia::emulated {
template <class T>
T shuffle(unsigned mask, T value, unsigned source, Site site) {
  static_assert(sizeof(T) <= sizeof(std::uint64_t));
  std::uint64_t bits = 0;
  std::memcpy(&bits, static_cast<const void*>(&value), sizeof value);
  bits = collective(Collective::kShuffle, mask, bits, source, site);
  std::memcpy(static_cast<void*>(&value), &bits, sizeof value);
  return value;
}
}  // namespace jiboia::emulated

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = warpSize, JIBOIA_SITE_PARAMETERS) {
  const unsigned lane = jiboia::emulated::lane_index(), within = width - 1;
  return jiboia::emulated::shuffle(mask, value, (lane & ~within) | (source & within), JIBOIA_SITE);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = warpSize,
                 JIBOIA_SITE_PARAMETERS) {
  const unsigned lane = jiboia::emulated::lane_index(), within = width - 1;
  return jiboia::emulated::shuffle(mask, value, (lane & within) < delta ? lane : lane - delta,
                                   JIBOIA_SITE);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = warpSize,
                   JIBOIA_SITE_PARAMETERS) {
  const unsigned lane = jiboia::emulated::lane_index(), within = width - 1;
  return jiboia::emulated::shuffle(
      mask, value, (lane & within) + delta > within ? lane : lane + delta, JIBOIA_SITE);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = warpSize,
                  JIBOIA_SITE_PARAMETERS) {
  const unsigned lane = jiboia::emulated::lane_index(), within = width - 1;
  const unsigned source = lane ^ static_cast<unsigned>(lane_mask);
  return jiboia::emulated::shuffle(mask, value, source > (lane | within) ? lane : source,
                                   JIBOIA_SITE);
}

// Votes and reductions of a warp.
inline unsigned __ballot_sync(unsigned mask, int predicate, JIBOIA_SITE_PARAMETERS) {
  return static_cast<unsigned>(jiboia::emulated::collective(jiboia::emulated::Collective::kBallot,
                                                            mask, predicate != 0, 0, JIBOIA_SITE));
}
inline int __any_sync(unsigned mask, int predicate, JIBOIA_SITE_PARAMETERS) {
  return __ballot_sync(mask, predicate, file, line) != 0;
}
inline int __all_sync(unsigned mask, int predicate, JIBOIA_SITE_PARAMETERS) {
  return __ballot_sync(mask, !predicate, file, line) == 0;
}
#define JIBOIA_WARP_REDUCTION(name, kind)                                                        \
  template <class T>                                                                             \
  T name(unsigned mask, T value, JIBOIA_SITE_PARAMETERS) {                                       \
    static_assert(std::is_same_v<T, int> || std::is_same_v<T, unsigned>);                        \
    const std::int64_t number = value;                                                           \
    return static_cast<T>(jiboia::emulated::collective(jiboia::emulated::Collective::kind, mask, \
                                                       static_cast<std::uint64_t>(number), 0,    \
                                                       JIBOIA_SITE));                            \
  }
JIBOIA_WARP_REDUCTION(__reduce_add_sync, kAdd)
JIBOIA_WARP_REDUCTION(__reduce_min_sync, kMin)
JIBOIA_WARP_REDUCTION(__reduce_max_sync, kMax)
#undef JIBOIA_WARP_REDUCTION
#undef JIBOIA_SITE
#undef JIBOIA_SITE_PARAMETERS

// Loads and stores with a word on caching. A store takes the pointer's type: the value converts.
#define JIBOIA_LOAD(name)    \
  template <class T>         \
  T name(const T* address) { \
    return *address;         \
  }
#define JIBOIA_STORE(name)                               \
  template <class T>                                     \
  void name(T* address, std::type_identity_t<T> value) { \
    *address = value;                                    \
  }
JIBOIA_LOAD(__ldg)
JIBOIA_LOAD(__ldca)
JIBOIA_LOAD(__ldcg)
JIBOIA_LOAD(__ldcs)
JIBOIA_LOAD(__ldlu)
JIBOIA_LOAD(__ldcv)
JIBOIA_STORE(__stcg)
JIBOIA_STORE(__stcs)
JIBOIA_STORE(__stwb)
JIBOIA_STORE(__stwt)
#undef JIBOIA_LOAD
#undef JIBOIA_STORE

// Atomics on integers. Kernels run on one OS thread.
#define JIBOIA_ATOMIC(name, expression)                     \
  template <class T>                                        \
  T name(T* address, std::type_identity_t<T> value) {       \
    static_assert(std::is_integral_v<T> && sizeof(T) >= 4); \
    const T old = *address;                                 \
    *address = static_cast<T>(expression);                  \
    return old;                                             \
  }
JIBOIA_ATOMIC(atomicAdd, old + value)
JIBOIA_ATOMIC(atomicSub, old - value)
JIBOIA_ATOMIC(atomicExch, value)
JIBOIA_ATOMIC(atomicMin, old < value ? old : value)
JIBOIA_ATOMIC(atomicMax, old > value ? old : value)
JIBOIA_ATOMIC(atomicAnd, old& value)
JIBOIA_ATOMIC(atomicOr, old | value)
JIBOIA_ATOMIC(atomicXor, old ^ value)
#undef JIBOIA_ATOMIC
template <class T>
T atomicCAS(T* address, std::type_identity_t<T> compare, std::type_identity_t<T> value) {
  static_assert(std::is_integral_v<T>);
  const T old = *address;
  if (old == compare) *address = value;
  return old;
}

// Bits.
inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline float __int_as_float(int x) { return std::bit_cast<float>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline long long __double_as_longlong(double x) { return std::bit_cast<long long>(x); }
inline double __longlong_as_double(long long x) { return std::bit_cast<double>(x); }
inline int __popc(unsigned x) { return std::popcount(x); }
inline int __popcll(unsigned long long x) { return std::popcount(x); }
inline int __clz(int x) { return std::countl_zero(static_cast<unsigned>(x)); }
inline int __clzll(long long x) { return std::countl_zero(static_cast<unsigned long long>(x)); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>((std::uint64_t{a} * b) >> 32);
}

// Floats. One operation, never contracted with another.
#define JIBOIA_ROUNDED(name, T, operation) \
  inline T name(T a, T b) {                \
    T result = a operation b;              \
    asm("" : "+m"(result));                \
    return result;                         \
  }
JIBOIA_ROUNDED(__fadd_rn, float, +)
JIBOIA_ROUNDED(__fsub_rn, float, -)
JIBOIA_ROUNDED(__fmul_rn, float, *)
JIBOIA_ROUNDED(__fdiv_rn, float, /)
JIBOIA_ROUNDED(__dadd_rn, double, +)
JIBOIA_ROUNDED(__dsub_rn, double, -)
JIBOIA_ROUNDED(__dmul_rn, double, *)
JIBOIA_ROUNDED(__ddiv_rn, double, /)
#undef JIBOIA_ROUNDED
inline float __fmaf_rn(float a, float b, float c) { return std::fmaf(a, b, c); }
inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }
inline float __frcp_rn(float x) { return 1.0F / x; }
inline float __fsqrt_rn(float x) { return std::sqrt(x); }
inline float __frsqrt_rn(float x) {
  return static_cast<float>(1.0 / std::sqrt(static_cast<double>(x)));
}
inline float rsqrtf(float x) { return __frsqrt_rn(x); }
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }
inline float __saturatef(float x) { return x > 0 ? (x < 1 ? x : 1.0F) : 0.0F; }
inline float __fdividef(float a, float b) { return a / b; }
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __log2f(float x) { return std::log2(x); }
inline int __float2int_rn(float x) { return static_cast<int>(std::nearbyint(x)); }
inline int __float2int_rz(float x) { return static_cast<int>(x); }
inline int __float2int_rd(float x) { return static_cast<int>(std::floor(x)); }
inline int __float2int_ru(float x) { return static_cast<int>(std::ceil(x)); }
inline float __int2float_rn(int x) { return static_cast<float>(x); }
inline float __uint2float_rn(unsigned x) { return static_cast<float>(x); }
inline float __double2float_rn(double x) { return static_cast<float>(x); }

// min and max of any two numbers; of floats, the one that is not NaN.
namespace jiboia::emulated {
template <class A, class B>
using Common =
    std::enable_if_t<std::is_arithmetic_v<A> && std::is_arithmetic_v<B>, std::common_type_t<A, B>>;
}  // namespace jiboia::emulated
template <class A, class B>
jiboia::emulated::Common<A, B> min(A a, B b) {
  using T = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<T>) return std::fmin(static_cast<T>(a), static_cast<T>(b));
  return static_cast<T>(b) < static_cast<T>(a) ? static_cast<T>(b) : static_cast<T>(a);
}
template <class A, class B>
jiboia::emulated::Common<A, B> max(A a, B b) {
  using T = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<T>) return std::fmax(static_cast<T>(a), static_cast<T>(b));
  return static_cast<T>(b) > static_cast<T>(a) ? static_cast<T>(b) : static_cast<T>(a);
}

// bfloat16: what cuda_bf16.h has for the GPU alone. One rounding, as there.
inline __nv_bfloat16 __hfma(__nv_bfloat16 a, __nv_bfloat16 b, __nv_bfloat16 c) {
  // The product of two bfloat16 is a float without rounding, and the sum a double without.
  return __double2bfloat16(static_cast<double>(__bfloat162float(a)) * __bfloat162float(b) +
                           __bfloat162float(c));
}
inline __nv_bfloat162 __hfma2(__nv_bfloat162 a, __nv_bfloat162 b, __nv_bfloat162 c) {
  return __halves2bfloat162(__hfma(__low2bfloat16(a), __low2bfloat16(b), __low2bfloat16(c)),
                            __hfma(__high2bfloat16(a), __high2bfloat16(b), __high2bfloat16(c)));
}
