#pragma once
#include <utility>

#include "core/cuda/blas.h"
#include "core/op.h"

/// Matrix products of ops on the GPU.
namespace jiboia {

/// A tensor's rows as a matrix.
inline cuda::DeviceMatrix device_matrix(const Tensor& t) {
  return {t.data, t.dtype, t.rows(), t.columns(), t.row_stride};
}

inline cuda::DeviceMatrix transpose(cuda::DeviceMatrix m) {
  std::swap(m.rows, m.columns);
  m.transposed = !m.transposed;
  return m;
}

/// Rows [first, first + count) of a matrix that is not transposed.
inline cuda::DeviceMatrix middle_rows(cuda::DeviceMatrix m, std::int64_t first,
                                      std::int64_t count) {
  m.data = static_cast<std::byte*>(m.data) + first * m.row_stride * size_of(m.dtype);
  m.rows = count;
  return m;
}

/// to = left right, or to += left right; sums in fp32. left and right: f32 or bf16; `to`: that or
/// f32, not transposed. Asynchronous. Errors: Internal, Cuda.
inline void multiply(CudaExec& gpu, const char* op, GradMode mode, const cuda::DeviceMatrix& to,
                     const cuda::DeviceMatrix& left, const cuda::DeviceMatrix& right) {
  gpu.blas().multiply(op, {.to = to, .left = left, .right = right, .mode = mode});
}

}  // namespace jiboia
