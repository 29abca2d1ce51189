#pragma once
#include <cstdint>

#include "core/exec.h"
#include "core/op.h"

namespace jiboia {

/// A row-major matrix in memory, or its transpose.
template <class T>
struct Matrix {
  T* data = nullptr;
  std::int64_t rows = 0, columns = 0;
  std::int64_t row_stride = 0;  ///< elements between the starts of rows in memory
  bool transposed = false;      ///< rows and columns are those of the transpose

  Matrix<T> transpose() const { return {data, columns, rows, row_stride, !transposed}; }
  Matrix<T> middle_rows(std::int64_t first, std::int64_t count) const {
    return {data + first * (transposed ? 1 : row_stride), count, columns, row_stride, transposed};
  }
};

/// A tensor's rows as a matrix.
template <class T>
Matrix<T> matrix_of(const Tensor& t) {
  return {t.as<T>(), t.rows(), t.columns(), t.row_stride};
}

/// to = left right, or to += left right. One thread computes a tile of `to` whole, tiles are cut by
/// shape. `to` is not transposed and overlaps neither operand. T: float or double.
template <class T>
void multiply(CpuExec& cpu, GradMode mode, const Matrix<T>& to, const Matrix<T>& left,
              const Matrix<T>& right);

}  // namespace jiboia
