#pragma once
#include "core/op.h"

namespace jiboia {

/// y = x weight^T + bias.
/// Shapes: x (..., K), possibly a slice of columns; weight (M, K); bias (M), optional,
/// of accumulator_of(the others' dtype); y (..., M).
/// Saves nothing; backward reads x and weight.
/// Gradients: grad_x = grad_y weight, grad_weight = grad_y^T x, grad_bias = sum of grad_y's rows.
/// Errors: infer() throws InvalidArgument when shapes or dtypes differ.
struct Linear {
  static constexpr const char* kName = "linear";
  static constexpr const char* kInputs[] = {"x", "weight", "bias"};
  static constexpr const char* kOutputs[] = {"y"};
  template <class T = Tensor>
  struct In {
    T x, weight, bias;
  };
  template <class T = Tensor>
  struct Out {
    T y;
  };
  using Attrs = NoAttrs;
  static constexpr In<InputKind> kInputKinds{
      .x = InputKind::kActivation, .weight = InputKind::kWeight, .bias = InputKind::kFull};
  static constexpr In<bool> kBackwardReadsInputs{.x = true, .weight = true, .bias = false};
  static constexpr Out<bool> kBackwardReadsOutputs{.y = false};

  static Out<Spec> infer(const In<Spec>& in, const Attrs&);
  static void forward(CpuExec& cpu, const ForwardArgs<Linear>& args);
  static void forward(CudaExec& gpu, const ForwardArgs<Linear>& args);
  static void backward(CpuExec& cpu, const BackwardArgs<Linear>& args);
  static void backward(CudaExec& gpu, const BackwardArgs<Linear>& args);
  static std::int64_t scratch_bytes(const CpuExec&, Pass pass, const In<Spec>& in, const Attrs&);
  static std::int64_t scratch_bytes(const CudaExec&, Pass pass, const In<Spec>& in, const Attrs&);
};

}  // namespace jiboia
