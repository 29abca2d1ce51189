#include "kernels/cross_entropy/cross_entropy.h"

#include "core/check.h"

namespace jiboia {

CrossEntropy::Out<Spec> CrossEntropy::infer(const In<Spec>& in, const Attrs& attrs) {
  expect_float(kName, "x", in.x, 3, "(B, L, E)");
  expect_float(kName, "weight", in.weight, 2, "(V, E)");
  const Dtype dtype = in.x.dtype;
  expect(kName, "x", in.x, dtype, in.x.shape, "(B, L, E)");
  expect(kName, "weight", in.weight, dtype, {in.weight.shape[0], in.x.columns()}, "(V, E)");
  expect(kName, "targets", in.targets, Dtype::kI32, {in.x.shape[0], in.x.shape[1]}, "(B, L)");
  require(attrs.z_loss >= 0, ErrorKind::kInvalidArgument, "{}: z_loss is {}, expected at least 0",
          kName, attrs.z_loss);
  const Spec scalar(accumulator_of(dtype), {1});
  return {.loss = scalar, .cross_entropy = scalar, .lse_squared = scalar};
}

}  // namespace jiboia
