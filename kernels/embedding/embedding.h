#pragma once
#include "core/op.h"

namespace jiboia {

/// Looks rows up: x[b, l] = weight[tokens[b, l]].
/// Shapes: tokens (B, L) i32, every one in [0, V) (whoever reads them from a disk checks that);
/// weight (V, E) of dtype T; x (B, L, E) of accumulator_of(T): the residual stream. Saves nothing;
/// backward reads tokens. Gradient: grad_weight[v] = sum of grad_x over the positions of v, in
/// order of position. Errors: infer() throws InvalidArgument when shapes or dtypes differ.
struct Embedding {
  static constexpr const char* kName = "embedding";
  static constexpr const char* kInputs[] = {"tokens", "weight"};
  static constexpr const char* kOutputs[] = {"x"};
  template <class T = Tensor>
  struct In {
    T tokens, weight;
  };
  template <class T = Tensor>
  struct Out {
    T x;
  };
  using Attrs = NoAttrs;
  static constexpr In<InputKind> kInputKinds{.tokens = InputKind::kIndex,
                                             .weight = InputKind::kWeight};
  static constexpr In<bool> kBackwardReadsInputs{.tokens = true, .weight = false};
  static constexpr Out<bool> kBackwardReadsOutputs{.x = false};

  static Out<Spec> infer(const In<Spec>& in, const Attrs&);
  static std::int64_t scratch_bytes(const CudaExec&, Pass pass, const In<Spec>& in, const Attrs&);
  static void forward(CpuExec& cpu, const ForwardArgs<Embedding>& args);
  static void forward(CudaExec& gpu, const ForwardArgs<Embedding>& args);
  static void backward(CpuExec& cpu, const BackwardArgs<Embedding>& args);
  static void backward(CudaExec& gpu, const BackwardArgs<Embedding>& args);
};

}  // namespace jiboia
