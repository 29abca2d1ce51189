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

/// kCount elements of T in memory.
template <class T, int kCount>
using Vector = Words<kCount * sizeof(T)>;

/// To be given a copy: from memory itself, nvcc would load each word for itself.
template <class T, int kCount>
__device__ void unpack(const Vector<T, kCount>& words, float (&to)[kCount]) {
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
/// Rounds.
template <class T, int kCount>
__device__ Vector<T, kCount> pack(const float (&from)[kCount]) {
  Vector<T, kCount> words;
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
  return words;
}

/// to = kCount elements at `from`, which is aligned for all of them.
template <int kCount, class T>
__device__ void load(const T* from, float (&to)[kCount]) {
  if constexpr (kCount == 1) {
    to[0] = to_float(*from);
  } else {
    const Vector<T, kCount> words = *reinterpret_cast<const Vector<T, kCount>*>(from);
    unpack<T>(words, to);
  }
}
/// kCount elements at `to`, which is aligned for all of them, = from, rounded.
template <int kCount, class T>
__device__ void store(const float (&from)[kCount], T* to) {
  if constexpr (kCount == 1) {
    *to = from_float<T>(from[0]);
  } else {
    const Vector<T, kCount> words = pack<T>(from);
    *reinterpret_cast<Vector<T, kCount>*>(to) = words;
  }
}
/// Writes or adds kCount values to a gradient.
template <int kCount, class T>
__device__ void put(GradMode mode, T* to, const float (&values)[kCount]) {
  float result[kCount];
  if (mode == GradMode::kAdd) {
    load(to, result);
#pragma unroll
    for (int i = 0; i < kCount; ++i) result[i] += values[i];
    store(result, to);
  } else {
    store(values, to);
  }
}

struct Sum {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return a + b;
  }
};

/// combine() over the values of the blockDim.x threads that share a threadIdx.y, whole warps, in a
/// fixed order; the same bits in each. To be called by all threads of the block. `shared` has an
/// element for each warp of the block; a barrier must come before it is used otherwise.
template <class T, class Combine>
__device__ T over_row(T value, Combine combine, T* shared) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    value = combine(value, __shfl_xor_sync(0xFFFFFFFFU, value, offset));
  }
  if (blockDim.x == 32) return value;
  const unsigned warps = blockDim.x / 32;
  shared += threadIdx.y * warps;
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = value;
  __syncthreads();
  T result = shared[0];
  for (unsigned warp = 1; warp < warps; ++warp) result = combine(result, shared[warp]);
  return result;
}

}  // namespace jiboia::cuda
