#pragma once
#include <cuda_bf16.h>

#include <cstdint>
#include <type_traits>

#include "core/cuda/launch.cuh"
#include "core/op.h"

/// What kernels of several ops share. Kernels store T, float or bfloat16, and compute in float.
namespace jiboia {

template <>
inline constexpr Dtype kDtypeOf<__nv_bfloat16> = Dtype::kBf16;

namespace cuda {

using bf16 = __nv_bfloat16;

/// Calls visitor.template operator()<T>() with T = float or bf16, the types that the GPU stores.
/// Errors: Unsupported for every other dtype.
template <class Visitor>
decltype(auto) visit_stored(Dtype dtype, Visitor&& visitor) {
  if (dtype == Dtype::kF32) return visitor.template operator()<float>();
  if (dtype == Dtype::kBf16) return visitor.template operator()<bf16>();
  fail(ErrorKind::kUnsupported, "the CUDA backend stores f32 and bf16, not {}", to_string(dtype));
}

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(bf16 x) { return __bfloat162float(x); }
/// Rounds to nearest, ties to even.
template <class T>
__device__ T from_float(float x) {
  if constexpr (std::is_same_v<T, float>) {
    return x;
  } else {
    return __float2bfloat16_rn(x);
  }
}

/// The rows of a tensor, which may be a slice of columns: rows[i] is the start of row i. Passed to
/// kernels by value.
template <class T>
struct Rows {
  Rows() = default;
  explicit Rows(const Tensor& tensor)
      : data(tensor ? tensor.as<std::remove_const_t<T>>() : nullptr), stride(tensor.row_stride) {}
  __device__ T* operator[](std::int64_t row) const { return data + row * stride; }

  T* data = nullptr;  ///< null when the tensor is absent
  std::int64_t stride = 0;
};

/// Where a gradient of T goes; null when nobody wants it.
template <class T>
struct GradRows : Rows<T> {
  GradRows() = default;
  explicit GradRows(const Grad& grad) : Rows<T>(grad), mode(grad.mode) {}
  GradMode mode = GradMode::kOverwrite;
};

/// Writes or adds a value to an element of a gradient.
template <class T>
__device__ void put(GradMode mode, T& element, float value) {
  element = from_float<T>(mode == GradMode::kAdd ? to_float(element) + value : value);
}

}  // namespace cuda
}  // namespace jiboia
