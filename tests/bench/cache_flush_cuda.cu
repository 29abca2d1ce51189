#include "core/cuda/launch.cuh"
#include "tests/bench/cache_flush.h"

namespace jiboia::bench {
namespace {

constexpr int kThreads = 256, kBlocks = 1024;

/// Grid kBlocks, block kThreads. Limited by memory.
__global__ void __launch_bounds__(kThreads)
    read_kernel(const uint4* words, std::int64_t count, unsigned* result) {
  unsigned seen = 0;
  for (std::int64_t i = std::int64_t{blockIdx.x} * kThreads + static_cast<int>(threadIdx.x);
       i < count; i += std::int64_t{kBlocks} * kThreads) {
    const uint4 word = words[i];
    seen |= word.x | word.y | word.z | word.w;
  }
  if (seen != 0) *result = seen;  // never
}

}  // namespace

void read_all(CudaExec& gpu, const Buffer& much, const Buffer& result) {
  cuda::launch(gpu, "flush", read_kernel, {.grid = dim3(kBlocks), .block = dim3(kThreads)},
               reinterpret_cast<const uint4*>(much.data()),
               much.bytes() / static_cast<std::int64_t>(sizeof(uint4)),
               reinterpret_cast<unsigned*>(result.data()));
}

}  // namespace jiboia::bench
