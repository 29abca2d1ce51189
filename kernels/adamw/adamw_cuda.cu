#include <cmath>

#include "kernels/adamw/adamw_numbers.h"
#include "kernels/vectors.cuh"

namespace jiboia {
namespace {

using cuda::bf16;

constexpr int kThreads = 256;
constexpr int kWidth = 4;  ///< elements of a thread
static_assert(kDecayBlock % kWidth == 0, "a thread has one weight decay");

struct Buffers {
  explicit Buffers(const AdamWUpdate& args)
      : value(args.value.as<float>()),
        gradient(args.gradient.as<float>()),
        exp_avg(args.exp_avg.as<float>()),
        exp_avg_sq(args.exp_avg_sq.as<float>()),
        compute(args.compute ? args.compute.as<bf16>() : nullptr),
        decays(args.decays.as<std::uint8_t>()),
        norm(args.gradient_norm.as<double>()),
        rates(static_cast<const AdamWRates*>(args.rates.data)),
        n(args.value.size()) {
    vectors = true;
    for (const void* data :
         {args.value.data, args.gradient.data, args.exp_avg.data, args.exp_avg_sq.data}) {
      vectors &= cuda::aligned(data, kWidth * sizeof(float));
    }
    vectors &= cuda::aligned(compute, kWidth * sizeof(bf16));
  }

  float* value;
  const float* gradient;
  float *exp_avg, *exp_avg_sq;
  bf16* compute;  ///< may be null
  const std::uint8_t* decays;
  const double* norm;
  const AdamWRates* rates;
  std::int64_t n;
  bool vectors;  ///< all pointers are aligned for them
};

/// Up to kWidth elements; zeros in the place of those that are not there.
__device__ void load(const float* from, bool vectors, std::int64_t count, float (&to)[kWidth]) {
  if (vectors && count >= kWidth) return cuda::load(from, to);
#pragma unroll
  for (int i = 0; i < kWidth; ++i) to[i] = i < count ? from[i] : 0;
}
template <class T>
__device__ void store(const float (&from)[kWidth], bool vectors, std::int64_t count, T* to) {
  if (vectors && count >= kWidth) return cuda::store(from, to);
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    if (i < count) to[i] = cuda::from_float<T>(from[i]);
  }
}

/// Block kThreads, one thread for kWidth consecutive elements; no shared memory. Memory bound: 28
/// bytes an element, 30 with the bf16 copy. The loads come before the test of the norm, so that
/// they do not wait for it.
__global__ void __launch_bounds__(kThreads)
    adamw_kernel(const Buffers at, const AdamWNumbers<float> numbers) {
  const std::int64_t begin = (std::int64_t{blockIdx.x} * kThreads + threadIdx.x) * kWidth;
  const std::int64_t count = at.n - begin;
  if (count <= 0) return;
  float value[kWidth], gradient[kWidth], exp_avg[kWidth], exp_avg_sq[kWidth];
  load(at.gradient + begin, at.vectors, count, gradient);
  load(at.exp_avg + begin, at.vectors, count, exp_avg);
  load(at.exp_avg_sq + begin, at.vectors, count, exp_avg_sq);
  load(at.value + begin, at.vectors, count, value);
  const AdamWRates rates = *at.rates;
  const float keep = at.decays[begin / kDecayBlock] ? static_cast<float>(rates.keep) : 1.0F;
  const auto step = static_cast<float>(rates.step);
  const auto root_correction = static_cast<float>(rates.root_correction);
  const double norm = *at.norm;
  if (!isfinite(norm)) return;
  const float factor = numbers.gradient_factor(norm);
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    const float g = gradient[i] * factor;
    exp_avg[i] = numbers.beta1 * exp_avg[i] + numbers.one_minus_beta1 * g;
    exp_avg_sq[i] = numbers.beta2 * exp_avg_sq[i] + numbers.one_minus_beta2 * g * g;
    value[i] = value[i] * keep -
               step * exp_avg[i] / (sqrtf(exp_avg_sq[i]) * root_correction + numbers.eps);
  }
  store(exp_avg, at.vectors, count, at.exp_avg + begin);
  store(exp_avg_sq, at.vectors, count, at.exp_avg_sq + begin);
  store(value, at.vectors, count, at.value + begin);
  if (at.compute) store(value, at.vectors, count, at.compute + begin);
}

}  // namespace

void adamw(CudaExec& gpu, const AdamWUpdate& args) {
  require_consistent(args);
  const Buffers buffers(args);
  const auto blocks = ceil_div(buffers.n, kThreads * kWidth);
  cuda::launch(gpu, "adamw", adamw_kernel,
               {.grid = dim3(static_cast<unsigned>(blocks)), .block = dim3(kThreads)}, buffers,
               AdamWNumbers<float>(args));
}

}  // namespace jiboia
