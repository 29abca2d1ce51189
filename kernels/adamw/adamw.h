#pragma once
#include <cstdint>

#include "core/exec.h"
#include "core/tensor.h"

namespace jiboia {

/// One AdamW update of all parameters, laid out flat. With t = `update` = 1, 2, ...,
///   clip = min(1, grad_clip / (gradient_scale * norm + 1e-6)), or 1 when grad_clip is 0,
///   g = gradient_scale * clip * gradient,
///   m <- beta1 m + (1 - beta1) g,  v <- beta2 v + (1 - beta2) g^2,
///   w <- w (1 - lr weight_decay) - lr (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps),
/// where weight_decay counts as 0 in blocks of kDecayBlock elements that `decays` has a 0 for.
/// Nothing is changed when the norm is not finite.
/// value, gradient, exp_avg, exp_avg_sq: (n), contiguous, of one dtype, f32 or f64 (GPU: f32).
/// compute: (n) bf16, optional: gets the new values, rounded. decays: (ceil(n / kDecayBlock)) u8.
/// gradient_norm: (1) f64, the norm of `gradient`, in the exec's memory like all the others.
/// Source: Loshchilov & Hutter 2019, arXiv:1711.05101, in the form of torch.optim.AdamW and
/// torch.nn.utils.clip_grad_norm_.
struct AdamWUpdate {
  Tensor value, gradient, exp_avg, exp_avg_sq;
  Tensor compute;
  Tensor decays;
  Tensor gradient_norm;
  double lr = 0;
  double beta1 = 0.9, beta2 = 0.95;
  double eps = 1e-8;
  double weight_decay = 0;
  double grad_clip = 0;
  double gradient_scale = 1;
  std::int64_t update = 1;  ///< t
};

/// Elements that share one entry of AdamWUpdate::decays.
inline constexpr std::int64_t kDecayBlock = 64;

/// Errors: InvalidArgument when sizes or dtypes differ.
void adamw(CpuExec& cpu, const AdamWUpdate& args);
void adamw(CudaExec& gpu, const AdamWUpdate& args);

}  // namespace jiboia
