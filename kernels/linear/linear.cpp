#include "kernels/linear/linear.h"

#include "core/check.h"

namespace jiboia {

Linear::Out<Spec> Linear::infer(const In<Spec>& in, const Attrs&) {
  expect_float(kName, "x", in.x, in.x.shape.rank(), "(..., K)");
  expect_float(kName, "weight", in.weight, 2, "(M, K)");
  const std::int64_t M = in.weight.shape[0], K = in.x.columns();
  expect(kName, "weight", in.weight, in.x.dtype, {M, K}, "(M, K)");
  if (in.bias) expect(kName, "bias", in.bias, accumulator_of(in.x.dtype), {M}, "(M)");
  return {.y = Spec(in.x.dtype, in.x.shape.with(-1, M))};
}

}  // namespace jiboia
