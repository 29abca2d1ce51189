#include "kernels/causal_conv1d/causal_conv1d.h"

#include "core/check.h"

namespace jiboia {

CausalConv1d::Out<Spec> CausalConv1d::infer(const In<Spec>& in, const Attrs&) {
  expect_float(kName, "x", in.x, 3, "(B, L, D)");
  expect_float(kName, "weight", in.weight, 2, "(D, W)");
  const Dtype dtype = in.x.dtype, full = accumulator_of(dtype);
  const std::int64_t B = in.x.shape[0], L = in.x.shape[1], D = in.x.shape[2];
  const std::int64_t W = in.weight.shape[1];
  expect(kName, "weight", in.weight, full, {D, W}, "(D, W)");
  if (in.bias) expect(kName, "bias", in.bias, full, {D}, "(D)");
  if (in.document_start) {
    expect(kName, "document_start", in.document_start, Dtype::kI32, {B, L}, "(B, L)");
  }
  if (in.history) {
    expect(kName, "history", in.history, dtype, {B, W - 1, D}, "(B, W - 1, D), W from weight,");
  }
  return {.u = in.x.packed()};
}

}  // namespace jiboia
