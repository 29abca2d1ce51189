#include "kernels/convert/convert.h"
#include "kernels/vectors.cuh"

namespace jiboia {
namespace {

constexpr int kThreads = 256;
constexpr int kWidth = 8;  ///< elements of a thread

/// Block kThreads, one thread for kWidth consecutive elements; no shared memory. Memory bound: 6
/// bytes an element.
__global__ void __launch_bounds__(kThreads)
    convert_kernel(const float* __restrict__ from, cuda::bf16* __restrict__ to, std::int64_t n,
                   bool vectors) {
  const std::int64_t begin = (std::int64_t{blockIdx.x} * kThreads + threadIdx.x) * kWidth;
  if (vectors && begin + kWidth <= n) {
    float values[kWidth];
#pragma unroll
    for (int i = 0; i < kWidth; i += 4) {
      float part[4];
      cuda::load(from + begin + i, part);
#pragma unroll
      for (int k = 0; k < 4; ++k) values[i + k] = part[k];
    }
    cuda::store(values, to + begin);
  } else {
    for (std::int64_t i = begin; i < n && i < begin + kWidth; ++i) {
      to[i] = cuda::from_float<cuda::bf16>(from[i]);
    }
  }
}

}  // namespace

void convert(CudaExec& gpu, const Tensor& from, const Tensor& to) {
  require_convertible(from, to);
  const auto blocks = ceil_div(from.size(), kThreads * kWidth);
  cuda::launch(gpu, "convert", convert_kernel,
               {.grid = dim3(static_cast<unsigned>(blocks)), .block = dim3(kThreads)},
               from.as<float>(), to.as<cuda::bf16>(), from.size(),
               cuda::aligned(from.data, 16) && cuda::aligned(to.data, 16));
}

}  // namespace jiboia
