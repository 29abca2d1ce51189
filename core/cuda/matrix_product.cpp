#include "core/cuda/blas.h"
#include "core/error.h"

namespace jiboia::cuda {
namespace {

bool rows_overlap(const DeviceMatrix& m) {
  const std::int64_t stored_rows = m.transposed ? m.columns : m.rows;
  const std::int64_t stored_columns = m.transposed ? m.rows : m.columns;
  return stored_rows > 1 && m.row_stride < stored_columns;
}

}  // namespace

std::string to_string(const MatrixProduct& product) {
  const auto& [to, left, right, mode] = product;
  return fmt::format("({}, {}) {} ({}, {}) {} {} ({}, {}) {}", left.rows, left.columns,
                     to_string(left.dtype), right.rows, right.columns, to_string(right.dtype),
                     mode == GradMode::kAdd ? "added to" : "->", to.rows, to.columns,
                     to_string(to.dtype));
}

void require_product(const char* op, const MatrixProduct& product) {
  const auto& [to, left, right, mode] = product;
  if (left.columns != right.rows || to.rows != left.rows || to.columns != right.columns) {
    fail(ErrorKind::kInternal, "{}: shapes of a matrix product do not fit: {}", op,
         to_string(product));
  }
  const bool operands_fit =
      (left.dtype == Dtype::kF32 || left.dtype == Dtype::kBf16) && right.dtype == left.dtype;
  if (!operands_fit || (to.dtype != left.dtype && to.dtype != Dtype::kF32)) {
    fail(ErrorKind::kInternal,
         "{}: dtypes of a matrix product are {}, expected f32 or bf16 on the left and right, and "
         "that or f32 as result",
         op, to_string(product));
  }
  if (to.transposed || rows_overlap(to) || rows_overlap(left) || rows_overlap(right)) {
    fail(ErrorKind::kInternal,
         "{}: a matrix product {} with row strides {}, {} -> {}: rows must not overlap, nor the "
         "result be transposed",
         op, to_string(product), left.row_stride, right.row_stride, to.row_stride);
  }
}

}  // namespace jiboia::cuda
