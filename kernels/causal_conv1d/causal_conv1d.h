#pragma once
#include "core/op.h"

namespace jiboia {

/// Causal convolution of each channel by itself (depthwise), then SiLU:
///   s_t = bias + sum over k of weight[k] * x_(t - W + 1 + k),  u = s * sigmoid(s).
/// The last weight belongs to the current step. Before the row's beginning stand zeros, or history.
/// Shapes: x, u (B, L, D), the rows of x maybe a slice of columns; weight (D, W); bias (D),
/// optional; history (B, W - 1, D), optional: the steps before the row, the latest last. It is a
/// constant: no gradient reaches it. x, u and history have one dtype T, weight and bias
/// accumulator_of(T).
/// document_start (B, L), i32, optional: the index within the row of the first token of the
/// document that the token belongs to, 0 when that began earlier. Steps before it do not count,
/// and history counts for tokens where it is 0.
/// Saves nothing: backward computes s again.
/// Gradients, with ds = grad_u * silu'(s) and terms that the forward pass left out left out:
///   grad_x_t = sum over k of weight[k] * ds_(t + W - 1 - k),  grad_bias = sum of ds,
///   grad_weight[k] = sum over B and L of ds_t * x_(t - W + 1 + k).
/// Errors: infer() throws InvalidArgument when shapes or dtypes disagree or D or W is 0.
/// Source: Gu & Dao 2023, arXiv:2312.00752, Figure 3 (the convolution of the Mamba block).
struct CausalConv1d {
  static constexpr const char* kName = "causal_conv1d";
  static constexpr const char* kInputs[] = {"x", "weight", "bias", "document_start", "history"};
  static constexpr const char* kOutputs[] = {"u"};
  template <class T = Tensor>
  struct In {
    T x, weight, bias, document_start, history;
  };
  template <class T = Tensor>
  struct Out {
    T u;
  };
  using Attrs = NoAttrs;
  static constexpr In<InputKind> kInputKinds{.x = InputKind::kActivation,
                                             .weight = InputKind::kFull,
                                             .bias = InputKind::kFull,
                                             .document_start = InputKind::kIndex,
                                             .history = InputKind::kActivation};
  static constexpr In<bool> kBackwardReadsInputs{
      .x = true, .weight = true, .bias = true, .document_start = true, .history = true};
  static constexpr Out<bool> kBackwardReadsOutputs{.u = false};

  static Out<Spec> infer(const In<Spec>& in, const Attrs&);
  static void forward(CpuExec& cpu, const ForwardArgs<CausalConv1d>& args);
  static void forward(CudaExec& gpu, const ForwardArgs<CausalConv1d>& args);
  static void backward(CpuExec& cpu, const BackwardArgs<CausalConv1d>& args);
  static void backward(CudaExec& gpu, const BackwardArgs<CausalConv1d>& args);
  static std::int64_t scratch_bytes(const CpuExec&, Pass pass, const In<Spec>& in, const Attrs&);
  static std::int64_t scratch_bytes(const CudaExec&, Pass pass, const In<Spec>& in, const Attrs&);
};

}  // namespace jiboia
