#include "kernels/add_rms_norm/add_rms_norm.h"

#include "core/check.h"

namespace jiboia {

AddRmsNorm::Out<Spec> AddRmsNorm::infer(const In<Spec>& in, const Attrs& attrs) {
  expect_float(kName, "residual", in.residual, in.residual.shape.rank(), "(..., E)");
  const Dtype dtype = in.residual.dtype;
  expect(kName, "residual", in.residual, dtype, in.residual.shape, "(..., E)");
  const bool bf16 = attrs.activations == Activations::kBf16;
  require(!bf16 || dtype == Dtype::kF32, ErrorKind::kInvalidArgument,
          "{}: residual is {}, expected f32 beside bf16 activations", kName,
          in.residual.to_string());
  const Dtype activation = bf16 ? Dtype::kBf16 : dtype;
  if (in.update) expect(kName, "update", in.update, activation, in.residual.shape, "(..., E)");
  expect(kName, "weight", in.weight, dtype, {in.residual.columns()}, "(E)");
  require(attrs.eps >= 0, ErrorKind::kInvalidArgument, "{}: eps is {}, expected at least 0", kName,
          attrs.eps);
  return {.sum = in.update ? in.residual.packed() : Spec(),
          .normed = Spec(activation, in.residual.shape),
          .rstd = Spec(dtype, {in.residual.rows()})};
}

}  // namespace jiboia
