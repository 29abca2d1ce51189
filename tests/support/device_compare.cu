#include <algorithm>

#include "core/cuda/launch.cuh"
#include "tests/support/device_compare.h"

namespace jiboia::test {
namespace {

constexpr int kThreads = 256;
constexpr std::int64_t kMostBlocks = 256;  // a pair

// Grid: (up to kMostBlocks, pairs); block: kThreads; no shared memory. Limited by the reads, 16
// bytes a thread where both places allow it.
__global__ void __launch_bounds__(kThreads)
    note_differences_kernel(const Compared* pairs, std::uint32_t launch, std::uint32_t* first) {
  const Compared pair = pairs[blockIdx.y];
  const std::int64_t begin = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const std::int64_t step = std::int64_t{gridDim.x} * kThreads;
  const bool aligned =
      (reinterpret_cast<std::uintptr_t>(pair.now) | reinterpret_cast<std::uintptr_t>(pair.before)) %
          sizeof(uint4) ==
      0;
  const std::int64_t vectors = aligned ? pair.bytes / static_cast<std::int64_t>(sizeof(uint4)) : 0;
  unsigned difference = 0;
  for (std::int64_t i = begin; i < vectors; i += step) {
    const uint4 a = reinterpret_cast<const uint4*>(pair.now)[i];
    const uint4 b = reinterpret_cast<const uint4*>(pair.before)[i];
    difference |= (a.x ^ b.x) | (a.y ^ b.y) | (a.z ^ b.z) | (a.w ^ b.w);
  }
  const auto* now = reinterpret_cast<const unsigned char*>(pair.now);
  const auto* before = reinterpret_cast<const unsigned char*>(pair.before);
  for (std::int64_t i = vectors * static_cast<std::int64_t>(sizeof(uint4)) + begin; i < pair.bytes;
       i += step) {
    difference |= static_cast<unsigned>(now[i] ^ before[i]);
  }
  if (difference != 0) atomicMin(first + blockIdx.y, launch);
}

}  // namespace

void note_differences(CudaExec& gpu, const Compared* pairs, std::int64_t count,
                      std::int64_t most_bytes, std::uint32_t launch, std::uint32_t* first) {
  constexpr std::int64_t kBlockBytes = kThreads * sizeof(uint4);
  const std::int64_t blocks = std::min(kMostBlocks, (most_bytes + kBlockBytes - 1) / kBlockBytes);
  cuda::launch(gpu, "note_differences", note_differences_kernel,
               {.grid = dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(count)),
                .block = dim3(kThreads)},
               pairs, launch, first);
}

}  // namespace jiboia::test
