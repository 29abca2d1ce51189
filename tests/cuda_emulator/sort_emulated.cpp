#include <algorithm>
#include <cstdint>
#include <span>

#include "core/cuda/sort.h"
#include "core/error.h"
#include "tests/cuda_emulator/capture.h"
#include "tests/cuda_emulator/gpu_memory.h"
#include "tests/cuda_emulator/trace.h"

namespace jiboia::cuda {
namespace {

void sort(const char* op, const SortPairs& pairs, std::span<std::byte> scratch) {
  emulated::trace("launch {}", op);
  const emulated::GpuMemoryAccess access;
  for (std::int64_t i = 0; i < pairs.count; ++i) {
    require(pairs.keys[i] >= 0 && pairs.keys[i] < pairs.key_limit, ErrorKind::kInternal,
            "{}: key {} of pair {} is not in [0, {})", op, pairs.keys[i], i, pairs.key_limit);
  }
  auto* order = reinterpret_cast<std::int32_t*>(scratch.data());
  for (std::int64_t i = 0; i < pairs.count; ++i) order[i] = static_cast<std::int32_t>(i);
  std::stable_sort(order, order + pairs.count,
                   [&](std::int32_t a, std::int32_t b) { return pairs.keys[a] < pairs.keys[b]; });
  for (std::int64_t i = 0; i < pairs.count; ++i) {
    pairs.sorted_keys[i] = pairs.keys[order[i]];
    pairs.sorted_values[i] = pairs.values[order[i]];
  }
}

}  // namespace

std::int64_t sort_pairs_scratch_bytes(std::int64_t count, std::int64_t) {
  return count * static_cast<std::int64_t>(sizeof(std::int32_t));
}

void sort_pairs(CudaExec& gpu, const char* op, const SortPairs& pairs,
                std::span<std::byte> scratch) {
  const auto wanted = sort_pairs_scratch_bytes(pairs.count, pairs.key_limit);
  require(static_cast<std::int64_t>(scratch.size()) >= wanted, ErrorKind::kInternal,
          "{}: sorting {} pairs needs {} bytes of scratch, got {}", op, pairs.count, wanted,
          scratch.size());
  emulated::ask(gpu.stream(), [=] {
    sort(op, pairs, scratch);
    return cudaSuccess;
  });
}

}  // namespace jiboia::cuda
