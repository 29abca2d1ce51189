#pragma once
#include "core/op.h"

namespace jiboia {

/// Residual addition and root-mean-square norm, one pass over the rows:
///   sum = residual + update,  normed = weight * sum * rstd,  rstd = 1 / sqrt(mean(sum^2) + eps).
/// Shapes: residual, update, sum, normed (..., E); weight (E); rstd (rows). `update` and `normed`
/// have the dtype that attrs give activations, all else is f32 or f64. `update` may be absent: then
/// sum is absent too and `normed` is the norm of the residual itself.
/// Saves rstd; backward reads sum (or residual), weight and rstd.
/// Gradients, with x = sum, xh = x * rstd and a = weight * grad_normed:
///   grad_residual = grad_update = grad_sum + rstd * (a - xh * mean(a * xh)),
///   grad_weight = sum over rows of grad_normed * xh.
/// Errors: infer() throws InvalidArgument when shapes or dtypes differ or E is 0.
/// Source: Zhang & Sennrich 2019, arXiv:1910.07467; fused as in Gu & Dao's Mamba blocks.
struct AddRmsNorm {
  static constexpr const char* kName = "add_rms_norm";
  static constexpr const char* kInputs[] = {"residual", "update", "weight"};
  static constexpr const char* kOutputs[] = {"sum", "normed", "rstd"};
  template <class T = Tensor>
  struct In {
    T residual, update, weight;
  };
  template <class T = Tensor>
  struct Out {
    T sum, normed, rstd;
  };
  struct Attrs {
    double eps = 1e-5;
    Activations activations = Activations::kFull;
  };
  static constexpr In<InputKind> kInputKinds{
      .residual = InputKind::kFull, .update = InputKind::kActivation, .weight = InputKind::kFull};
  // The residual is read only where there is no update. With one, declaring it costs nothing: it
  // is the sum that the norm before keeps anyway.
  static constexpr In<bool> kBackwardReadsInputs{.residual = true, .update = false, .weight = true};
  static constexpr Out<bool> kBackwardReadsOutputs{.sum = true, .normed = false, .rstd = true};

  /// The inputs that give the same `normed` and `rstd` from what backward reads.
  template <class T>
  static In<T> again(const In<T>& in, const Out<T>& out) {
    return {.residual = in.update ? out.sum : in.residual, .update = {}, .weight = in.weight};
  }

  static Out<Spec> infer(const In<Spec>& in, const Attrs& attrs);
  static void forward(CpuExec& cpu, const ForwardArgs<AddRmsNorm>& args);
  static void forward(CudaExec& gpu, const ForwardArgs<AddRmsNorm>& args);
  static void backward(CpuExec& cpu, const BackwardArgs<AddRmsNorm>& args);
  static void backward(CudaExec& gpu, const BackwardArgs<AddRmsNorm>& args);
  static std::int64_t scratch_bytes(const CpuExec&, Pass pass, const In<Spec>& in, const Attrs&);
  static std::int64_t scratch_bytes(const CudaExec&, Pass pass, const In<Spec>& in, const Attrs&);
};

}  // namespace jiboia
