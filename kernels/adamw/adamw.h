#pragma once
#include <cstdint>

#include "core/exec.h"
#include "core/tensor.h"

namespace jiboia {

/// How slowly the moments forget.
struct AdamWBetas {
  double beta1 = 0.9, beta2 = 0.95;
};

/// What changes from update to update, as adamw() reads it where the exec computes: f64, in the
/// order of the members. So an update that is recorded once goes on with new ones.
struct AdamWRates {
  double keep = 1;             ///< 1 - lr weight_decay
  double step = 0;             ///< lr / (1 - beta1^t)
  double root_correction = 1;  ///< 1 / sqrt(1 - beta2^t)
};
inline constexpr std::int64_t kAdamWRates = sizeof(AdamWRates) / sizeof(double);

/// The rates of update t = 1, 2, ...
struct AdamWSchedule {
  double lr = 0;
  double weight_decay = 0;
  std::int64_t update = 1;  ///< t
};
/// `betas` are those of the AdamWUpdate that the rates are for.
AdamWRates adamw_rates(const AdamWSchedule& schedule, const AdamWBetas& betas);

/// One AdamW update of all parameters, laid out flat. With t, lr and weight_decay of
/// `rates`, which were made with the same betas,
///   clip = min(1, grad_clip / (gradient_scale * norm + 1e-6)), or 1 when grad_clip is 0,
///   g = gradient_scale * clip * gradient,
///   m <- beta1 m + (1 - beta1) g,  v <- beta2 v + (1 - beta2) g^2,
///   w <- w (1 - lr weight_decay) - lr (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps),
/// where weight_decay counts as 0 in blocks of kDecayBlock elements that `decays` has a 0 for.
/// Nothing is changed when the norm is not finite.
/// value, gradient, exp_avg, exp_avg_sq: (n), contiguous, of one dtype, f32 or f64 (GPU: f32).
/// compute: (n) bf16, optional: gets the new values, rounded. decays: (ceil(n / kDecayBlock)) u8.
/// gradient_norm: (1) f64, the norm of `gradient`. rates: (kAdamWRates) f64. All in the exec's
/// memory.
/// Source: Loshchilov & Hutter 2019, arXiv:1711.05101, in the form of torch.optim.AdamW and
/// torch.nn.utils.clip_grad_norm_.
struct AdamWUpdate {
  Tensor value, gradient, exp_avg, exp_avg_sq;
  Tensor compute;
  Tensor decays;
  Tensor gradient_norm;
  Tensor rates;
  AdamWBetas betas;
  double eps = 1e-8;
  double grad_clip = 0;
  double gradient_scale = 1;
};

/// Elements that share one entry of AdamWUpdate::decays.
inline constexpr std::int64_t kDecayBlock = 64;

/// Errors: InvalidArgument when sizes or dtypes differ.
void adamw(CpuExec& cpu, const AdamWUpdate& args);
void adamw(CudaExec& gpu, const AdamWUpdate& args);

}  // namespace jiboia
