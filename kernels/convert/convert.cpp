#include "kernels/convert/convert.h"

#include "core/check.h"

namespace jiboia {

void require_convertible(const Tensor& from, const Tensor& to) {
  expect("convert", "from", from, Dtype::kF32, from.shape, "(n)");
  expect("convert", "to", to, Dtype::kBf16, from.shape, "(n)");
}

}  // namespace jiboia
