#include "kernels/embedding/embedding.h"

#include "core/check.h"

namespace jiboia {

Embedding::Out<Spec> Embedding::infer(const In<Spec>& in, const Attrs&) {
  require(in.tokens.shape.rank() == 2, ErrorKind::kInvalidArgument,
          "{}: tokens is {}, expected (B, L)", kName, in.tokens.to_string());
  expect(kName, "tokens", in.tokens, Dtype::kI32, in.tokens.shape, "(B, L)");
  expect_float(kName, "weight", in.weight, 2, "(V, E)");
  expect(kName, "weight", in.weight, in.weight.dtype, in.weight.shape, "(V, E)");
  return {.x = Spec(accumulator_of(in.weight.dtype),
                    {in.tokens.shape[0], in.tokens.shape[1], in.weight.shape[1]})};
}

}  // namespace jiboia
