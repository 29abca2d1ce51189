#pragma once
#include <cstdint>

#include "core/cuda/kernel.cuh"

/// Several consecutive elements in one memory access, and sums over the threads of a block.
namespace jiboia::cuda {

/// Memory of consecutive elements of any type, read and written by one access. (Of a struct of bf16
/// elements, nvcc stores each by itself.)
template <std::size_t kBytes>
struct alignas(kBytes) [[gnu::may_alias]] Words {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
  unsigned at[kBytes / 4];
};

inline bool aligned(const void* data, std::int64_t bytes) {
  return reinterpret_cast<std::uintptr_t>(data) % static_cast<std::uintptr_t>(bytes) == 0;
}

/// Whether every vector of kCount elements of a tensor can be one access: its memory begins, and
/// its rows begin and end, at multiples of a vector. Absent tensors do not matter.
template <int kCount>
bool takes_vectors(const Tensor& tensor) {
  return !tensor ||
         (aligned(tensor.data, kCount * size_of(tensor.dtype)) && tensor.columns() % kCount == 0 &&
          (tensor.rows() <= 1 || tensor.row_stride % kCount == 0));
}

/// to = kCount elements at `from`, which is aligned for all of them.
template <int kCount, class T>
__device__ void load(const T* from, float (&to)[kCount]) {
  using Memory = Words<kCount * sizeof(T)>;
  const Memory words = *reinterpret_cast<const Memory*>(from);
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    if constexpr (std::is_same_v<T, float>) {
      to[i] = __uint_as_float(words.at[i]);
    } else {  // a bfloat16 is the upper half of a float
      const unsigned word = words.at[i / 2];
      to[i] = __uint_as_float(i % 2 == 0 ? word << 16 : word & 0xFFFF0000U);
    }
  }
}
/// kCount elements at `to`, which is aligned for all of them, = from, rounded.
template <int kCount, class T>
__device__ void store(const float (&from)[kCount], T* to) {
  using Memory = Words<kCount * sizeof(T)>;
  Memory words;
  if constexpr (std::is_same_v<T, float>) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) words.at[i] = __float_as_uint(from[i]);
  } else {
#pragma unroll
    for (int i = 0; i < kCount; i += 2) {
      const __nv_bfloat162 pair = __floats2bfloat162_rn(from[i], from[i + 1]);
      words.at[i / 2] = unsigned{__bfloat16_as_ushort(pair.y)} << 16 | __bfloat16_as_ushort(pair.x);
    }
  }
  *reinterpret_cast<Memory*>(to) = words;
}
/// Writes or adds kCount values to a gradient.
template <int kCount, class T>
__device__ void put(bool add, T* to, const float (&values)[kCount]) {
  float result[kCount];
  if (add) {
    load(to, result);
#pragma unroll
    for (int i = 0; i < kCount; ++i) result[i] += values[i];
    store(result, to);
  } else {
    store(values, to);
  }
}

/// The sum over the lanes of a whole warp, the same bits in each.
template <class T>
__device__ T warp_sum(T value) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    value += __shfl_xor_sync(0xFFFFFFFFU, value, offset);
  }
  return value;
}

}  // namespace jiboia::cuda
