#pragma once
#include <cuda_runtime.h>

#include <cmath>
#include <cstring>

/// Instructions that CUDA C++ has no word for. Each has a fallback that says the same in C++, for
/// compilers of the CPU.
namespace jiboia::cuda {

/// 2^x, within 2 units in the last place; 0 where that is denormal. (exp2f() makes a detour for
/// these, three more instructions.)
__device__ inline float exp2_approx(float x) {
#ifdef __CUDA_ARCH__
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
#else
  const float result = std::exp2(x);
  return result < 0x1p-126f ? 0.f : result;  // NaN as well
#endif
}

/// 1 / x, within 1 unit in the last place; 0 where that is denormal, infinite where x is.
__device__ inline float reciprocal_approx(float x) {
#ifdef __CUDA_ARCH__
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
#else
  if (std::fabs(x) < 0x1p-126f) x = std::copysign(0.f, x);
  const float result = 1 / x;
  return std::fabs(result) < 0x1p-126f ? std::copysign(0.f, x) : result;
#endif
}

/// The larger one; NaN if either is. (fmaxf() drops it.)
__device__ inline float max_or_nan(float a, float b) {
#ifdef __CUDA_ARCH__
  float result;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
  return result;
#else
  return a > b || a != a ? a : b;
#endif
}

/// Writes kWords words where `present`, past the caches as far as that goes: nobody reads them
/// soon, this kernel never: the compiler may move other accesses across. `to` is aligned for all of
/// them.
template <int kWords>
__device__ inline void store_streaming(void* to, const unsigned (&words)[kWords], bool present) {
  static_assert(kWords == 1 || kWords == 2 || kWords == 4);
#ifdef __CUDA_ARCH__
  // By predicate, since a branch would part what is computed before it from what comes behind.
  const int store = present;
  if constexpr (kWords == 4) {
    asm volatile(
        "{.reg .pred p; setp.ne.b32 p, %5, 0; @p st.global.cs.v4.b32 [%0], {%1, %2, %3, %4};}" ::
            "l"(to),
        "r"(words[0]), "r"(words[1]), "r"(words[2]), "r"(words[3]), "r"(store));
  } else if constexpr (kWords == 2) {
    asm volatile(
        "{.reg .pred p; setp.ne.b32 p, %3, 0; @p st.global.cs.v2.b32 [%0], {%1, %2};}" ::"l"(to),
        "r"(words[0]), "r"(words[1]), "r"(store));
  } else {
    asm volatile("{.reg .pred p; setp.ne.b32 p, %2, 0; @p st.global.cs.b32 [%0], %1;}" ::"l"(to),
                 "r"(words[0]), "r"(store));
  }
#else
  if (present) std::memcpy(to, words, sizeof words);
#endif
}

/// Starts to copy kBytes from global to shared memory, both aligned to kBytes; or to fill with
/// zeros there where the source is not `present`, which is not read then. Other threads see the
/// copy after this one's async_copies_wait() and a barrier.
template <int kBytes>
__device__ inline void async_copy(void* shared, const void* global, bool present) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
#ifdef __CUDA_ARCH__
  const auto to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  const int bytes = present ? kBytes : 0;
  if constexpr (kBytes == 16) {  // past the first cache: only these may
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(bytes)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(global),
                 "n"(kBytes), "r"(bytes)
                 : "memory");
  }
#else
  if (present) {
    std::memcpy(shared, global, kBytes);
  } else {
    std::memset(shared, 0, kBytes);
  }
#endif
}

/// Makes a group of the copies that this thread has started since the last group; it may be empty.
__device__ inline void async_copies_commit() {
#ifdef __CUDA_ARCH__
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

/// Waits until at most kGroups of this thread's latest groups are not there yet.
template <int kGroups>
__device__ inline void async_copies_wait() {
#ifdef __CUDA_ARCH__
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
#endif
}

/// Says that the next kernel of the stream may begin if it was launched early (Launch::early).
__device__ inline void let_next_kernel_begin() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/// Writes what other blocks read by load_acquire(): these then see all that was written before.
__device__ inline void store_release(int* to, int value) {
#ifdef __CUDA_ARCH__
  asm volatile("st.release.gpu.global.s32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
#else
  *to = value;
#endif
}
__device__ inline int load_acquire(const int* from) {
#ifdef __CUDA_ARCH__
  int value;
  asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
  return value;
#else
  return *from;
#endif
}

}  // namespace jiboia::cuda
