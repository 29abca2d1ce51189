#include <cmath>

#include "core/half.h"
#include "kernels/adamw/adamw_numbers.h"
#include "kernels/cpu_tiles.h"

namespace jiboia {
namespace {

static_assert(kDecayBlock % simd::kLanes<float> == 0, "a vector has one weight decay");

template <class T>
void update_as(CpuExec& cpu, const AdamWUpdate& args) {
  using V = simd::Vec<T>;
  const double norm = *args.gradient_norm.as<double>();
  if (!std::isfinite(norm)) return;
  const AdamWNumbers<T> numbers(args);
  const T factor = numbers.gradient_factor(norm);
  const auto& rates = *static_cast<const AdamWRates*>(args.rates.data);
  const T decayed = static_cast<T>(rates.keep), step = static_cast<T>(rates.step);
  const T root_correction = static_cast<T>(rates.root_correction);
  T *value = args.value.as<T>(), *exp_avg = args.exp_avg.as<T>();
  T* exp_avg_sq = args.exp_avg_sq.as<T>();
  const T* gradient = args.gradient.as<T>();
  const std::uint8_t* decays = args.decays.as<std::uint8_t>();
  auto* compute = static_cast<std::uint16_t*>(args.compute.data);

  // A multiple of kDecayBlock, so that no vector reaches into the next block.
  constexpr std::int64_t kTile = 1 << 14;
  parallel_ranges(cpu, args.value.size(), kTile, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; i += simd::kLanes<T>) {
      const std::int64_t count = end - i;
      const T keep = decays[i / kDecayBlock] ? decayed : T(1);
      const V g = simd::load(gradient + i, count) * factor;
      const V m = numbers.beta1 * simd::load(exp_avg + i, count) + numbers.one_minus_beta1 * g;
      const V v =
          numbers.beta2 * simd::load(exp_avg_sq + i, count) + numbers.one_minus_beta2 * g * g;
      const V w = simd::load(value + i, count) * keep;
      simd::store(m, exp_avg + i, count);
      simd::store(v, exp_avg_sq + i, count);
      simd::store(w - step * m / (simd::stdx::sqrt(v) * root_correction + numbers.eps), value + i,
                  count);
    }
    for (std::int64_t i = begin; compute && i < end; ++i) {
      compute[i] = bf16_from_float(static_cast<float>(value[i]));
    }
  });
}

}  // namespace

void adamw(CpuExec& cpu, const AdamWUpdate& args) {
  require_consistent(args);
  visit_float(args.value.dtype, [&]<class T>() { update_as<T>(cpu, args); });
}

}  // namespace jiboia
