#include "core/check.h"

namespace jiboia {

void expect_rows(const char* op, const char* name, const Spec& got, Dtype dtype, const Shape& shape,
                 const char* letters) {
  if (got && got.dtype == dtype && got.shape == shape) return;
  fail(ErrorKind::kInvalidArgument, "{}: {} is {}, expected {} = {}", op, name, got.to_string(),
       letters, Spec(dtype, shape).to_string());
}

void expect(const char* op, const char* name, const Spec& got, Dtype dtype, const Shape& shape,
            const char* letters) {
  expect_rows(op, name, got, dtype, shape, letters);
  require(got.contiguous(), ErrorKind::kInvalidArgument,
          "{}: {} has a row stride of {}, expected contiguous rows of {}", op, name, got.row_stride,
          got.columns());
}

void expect_float(const char* op, const char* name, const Spec& got, int rank,
                  const char* letters) {
  const bool is_float = got.dtype == Dtype::kF32 || got.dtype == Dtype::kF64 ||
                        got.dtype == Dtype::kBf16 || got.dtype == Dtype::kF16;
  if (got && is_float && rank >= 1 && got.shape.rank() == rank && got.columns() > 0) return;
  fail(ErrorKind::kInvalidArgument, "{}: {} is {}, expected a floating-point tensor {}", op, name,
       got.to_string(), letters);
}

}  // namespace jiboia
