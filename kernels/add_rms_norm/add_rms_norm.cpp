#include "kernels/add_rms_norm/add_rms_norm.h"

#include "core/check.h"

namespace jiboia {

AddRmsNorm::Out<Spec> AddRmsNorm::infer(const In<Spec>& in, const Attrs& attrs) {
  expect_float(kName, "residual", in.residual, in.residual.shape.rank(), "(..., E)");
  const Dtype dtype = in.residual.dtype;
  expect(kName, "residual", in.residual, dtype, in.residual.shape, "(..., E)");
  if (in.update) expect(kName, "update", in.update, dtype, in.residual.shape, "(..., E)");
  expect(kName, "weight", in.weight, dtype, {in.residual.columns()}, "(E)");
  require(attrs.eps >= 0, ErrorKind::kInvalidArgument, "{}: eps is {}, expected at least 0", kName,
          attrs.eps);
  return {.sum = in.update ? in.residual.packed() : Spec(),
          .normed = in.residual.packed(),
          .rstd = Spec(dtype, {in.residual.rows()})};
}

}  // namespace jiboia
