#include "kernels/adamw/adamw.h"

#include <cmath>

#include "core/check.h"
#include "kernels/adamw/adamw_numbers.h"

namespace jiboia {
namespace {

/// 1 - beta^t, exact to rounding for beta near 1 and any t.
double bias_correction(double beta, std::int64_t t) {
  return beta > 0 ? -std::expm1(static_cast<double>(t) * std::log(beta)) : 1;
}

}  // namespace

AdamWRates adamw_rates(const AdamWSchedule& schedule, const AdamWBetas& betas) {
  return {.keep = 1 - schedule.lr * schedule.weight_decay,
          .step = schedule.lr / bias_correction(betas.beta1, schedule.update),
          .root_correction = 1 / std::sqrt(bias_correction(betas.beta2, schedule.update))};
}

void require_consistent(const AdamWUpdate& args) {
  const Dtype dtype = args.value.dtype;
  const Shape shape = args.value.shape;
  const std::int64_t blocks = ceil_div(args.value.size(), kDecayBlock);
  expect("adamw", "value", args.value, dtype, shape, "(n)");
  expect("adamw", "gradient", args.gradient, dtype, shape, "(n)");
  expect("adamw", "exp_avg", args.exp_avg, dtype, shape, "(n)");
  expect("adamw", "exp_avg_sq", args.exp_avg_sq, dtype, shape, "(n)");
  if (args.compute) {
    require(dtype == Dtype::kF32, ErrorKind::kInvalidArgument,
            "adamw: value is {}, expected f32 beside a bf16 copy", args.value.to_string());
    expect("adamw", "compute", args.compute, Dtype::kBf16, shape, "(n)");
  }
  expect("adamw", "decays", args.decays, Dtype::kU8, {blocks}, "(ceil(n / 64))");
  expect("adamw", "gradient_norm", args.gradient_norm, Dtype::kF64, {1}, "(1)");
  expect("adamw", "rates", args.rates, Dtype::kF64, {kAdamWRates}, "(3)");
}

}  // namespace jiboia
