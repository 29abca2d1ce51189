#include <cmath>

#include "core/check.h"
#include "kernels/adamw/adamw.h"
#include "kernels/cpu_tiles.h"

namespace jiboia {
namespace {

/// 1 - beta^t, exact to rounding for beta near 1 and any t.
double bias_correction(double beta, std::int64_t t) {
  return beta > 0 ? -std::expm1(static_cast<double>(t) * std::log(beta)) : 1;
}

template <class T>
void update_as(CpuExec& cpu, const AdamWUpdate& args) {
  using V = simd::Vec<T>;
  T *value = args.value.as<T>(), *exp_avg = args.exp_avg.as<T>();
  T* exp_avg_sq = args.exp_avg_sq.as<T>();
  const T* gradient = args.gradient.as<T>();
  const T scale = static_cast<T>(args.grad_scale), eps = static_cast<T>(args.eps);
  const T beta1 = static_cast<T>(args.beta1), beta2 = static_cast<T>(args.beta2);
  const T one_minus_beta1 = static_cast<T>(1 - args.beta1);
  const T one_minus_beta2 = static_cast<T>(1 - args.beta2);
  const T keep = static_cast<T>(1 - args.lr * args.weight_decay);
  const T step = static_cast<T>(args.lr / bias_correction(args.beta1, args.update));
  const T root_correction = static_cast<T>(1 / std::sqrt(bias_correction(args.beta2, args.update)));

  parallel_ranges(cpu, args.value.size(), 1 << 14, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; i += simd::kLanes<T>) {
      const std::int64_t count = end - i;
      const V g = simd::load(gradient + i, count) * scale;
      const V m = beta1 * simd::load(exp_avg + i, count) + one_minus_beta1 * g;
      const V v = beta2 * simd::load(exp_avg_sq + i, count) + one_minus_beta2 * g * g;
      const V w = simd::load(value + i, count) * keep;
      simd::store(m, exp_avg + i, count);
      simd::store(v, exp_avg_sq + i, count);
      simd::store(w - step * m / (simd::stdx::sqrt(v) * root_correction + eps), value + i, count);
    }
  });
}

}  // namespace

void adamw(CpuExec& cpu, const AdamWUpdate& args) {
  const Dtype dtype = args.value.dtype;
  const Shape shape = args.value.shape;
  expect("adamw", "value", args.value, dtype, shape, "(n)");
  expect("adamw", "gradient", args.gradient, dtype, shape, "(n)");
  expect("adamw", "exp_avg", args.exp_avg, dtype, shape, "(n)");
  expect("adamw", "exp_avg_sq", args.exp_avg_sq, dtype, shape, "(n)");
  visit_float(dtype, [&]<class T>() { update_as<T>(cpu, args); });
}

}  // namespace jiboia
