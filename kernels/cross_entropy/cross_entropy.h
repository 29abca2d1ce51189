#pragma once
#include "core/op.h"

namespace jiboia {

/// The head and the loss of a language model. With logits = x weight^T, of which only a chunk of
/// rows exists at a time, lse = log(sum over V of exp(logits)) and M = B * L rows,
///   cross_entropy = mean over rows with a target of (lse - logits[target]),
///   lse_squared   = mean over all M rows of lse^2,
///   loss          = cross_entropy + z_loss * lse_squared.
/// Shapes: x (B, L, E); weight (V, E); targets (B, L) i32 in [0, V), or kIgnoredTarget for a row
/// that has none; loss, cross_entropy, lse_squared (1), of accumulator_of(the others' dtype).
/// Without any target cross_entropy is 0. All V rows of the weight take part, those that pad a
/// vocabulary too. Gradients, of `loss`, formed beside the loss itself so that logits are computed
/// once:
///   grad_logits[i, v] = p (has_target / targets + 2 z_loss lse / M) - (v == target) / targets,
///   grad_x = grad_logits weight, grad_weight = grad_logits^T x.
/// Errors: infer() throws InvalidArgument when shapes or dtypes differ.
/// Source: the z-loss and its averaging over all rows follow open_lm's losses.py.
struct CrossEntropy {
  static constexpr const char* kName = "cross_entropy";
  static constexpr const char* kInputs[] = {"x", "weight", "targets"};
  static constexpr const char* kOutputs[] = {"loss", "cross_entropy", "lse_squared"};
  static constexpr bool kIsLoss = true;
  template <class T = Tensor>
  struct In {
    T x, weight, targets;
  };
  template <class T = Tensor>
  struct Out {
    T loss, cross_entropy, lse_squared;
  };
  static constexpr In<InputKind> kInputKinds{
      .x = InputKind::kActivation, .weight = InputKind::kWeight, .targets = InputKind::kIndex};
  struct Attrs {
    double z_loss = 0;
  };

  static Out<Spec> infer(const In<Spec>& in, const Attrs& attrs);
  static void forward(CpuExec& cpu, const ForwardArgs<CrossEntropy>& args);
  static void forward(CudaExec& gpu, const ForwardArgs<CrossEntropy>& args);
  static void forward_backward(CpuExec& cpu, const LossArgs<CrossEntropy>& args);
  static void forward_backward(CudaExec& gpu, const LossArgs<CrossEntropy>& args);
  static std::int64_t scratch_bytes(const CpuExec&, Pass, const In<Spec>& in, const Attrs&);
  static std::int64_t scratch_bytes(const CudaExec&, Pass, const In<Spec>& in, const Attrs&);
};

}  // namespace jiboia
