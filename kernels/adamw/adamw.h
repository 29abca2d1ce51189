#pragma once
#include <cstdint>

#include "core/exec.h"
#include "core/tensor.h"

namespace jiboia {

/// One AdamW update of a run of parameters that share a weight decay. With g = grad_scale *
/// gradient and update number t = 1, 2, ...:
///   m <- beta1 m + (1 - beta1) g,  v <- beta2 v + (1 - beta2) g^2,
///   w <- w (1 - lr weight_decay) - lr (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps).
/// All tensors are contiguous, of one size and one dtype (f32 or f64).
/// Source: Loshchilov & Hutter 2019, arXiv:1711.05101, in the form of torch.optim.AdamW.
struct AdamWUpdate {
  Tensor value, gradient, exp_avg, exp_avg_sq;
  double lr = 0;
  double beta1 = 0.9, beta2 = 0.95;
  double eps = 1e-8;
  double weight_decay = 0;
  double grad_scale = 1;
  std::int64_t update = 1;  ///< t
};
/// Errors: InvalidArgument when sizes or dtypes differ.
void adamw(CpuExec& cpu, const AdamWUpdate& args);

}  // namespace jiboia
