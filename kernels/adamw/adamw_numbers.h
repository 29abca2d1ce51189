#pragma once
#include "kernels/adamw/adamw.h"

namespace jiboia {

/// What every update does to every element, in the dtype T that it computes in. Passed to kernels
/// by value.
template <class T>
struct AdamWNumbers {
  explicit AdamWNumbers(const AdamWUpdate& args)
      : beta1(static_cast<T>(args.betas.beta1)),
        one_minus_beta1(static_cast<T>(1 - args.betas.beta1)),
        beta2(static_cast<T>(args.betas.beta2)),
        one_minus_beta2(static_cast<T>(1 - args.betas.beta2)),
        eps(static_cast<T>(args.eps)),
        gradient_scale(args.gradient_scale),
        grad_clip(args.grad_clip) {}

  /// gradient_scale * clip, for a finite norm of the gradient. constexpr, so that GPUs run it too.
  constexpr T gradient_factor(double norm) const {
    if (grad_clip <= 0) return static_cast<T>(gradient_scale);
    const double clip = grad_clip / (gradient_scale * norm + 1e-6);
    return static_cast<T>(gradient_scale * (clip < 1 ? clip : 1));
  }

  T beta1, one_minus_beta1, beta2, one_minus_beta2, eps;
  double gradient_scale, grad_clip;
};

/// Errors: InvalidArgument when sizes or dtypes differ.
void require_consistent(const AdamWUpdate& args);

}  // namespace jiboia
