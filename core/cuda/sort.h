#pragma once
#include <cstddef>
#include <cstdint>
#include <span>

#include "core/cuda/cuda_exec.h"

namespace jiboia::cuda {

/// Sorts (key, value) pairs by key; pairs of equal keys stay in order.
struct SortPairs {
  const std::int32_t* keys = nullptr;  ///< not negative
  std::int32_t* sorted_keys = nullptr;
  const std::int32_t* values = nullptr;
  std::int32_t* sorted_values = nullptr;
  std::int64_t count = 0;
  std::int64_t key_limit = 0;  ///< every key is below it
};

/// Scratch that sort_pairs() wants: a function of `count` and `key_limit` alone.
std::int64_t sort_pairs_scratch_bytes(std::int64_t count, std::int64_t key_limit);
/// All pointers are to GPU memory. `op` names who asks, for errors. Errors: Cuda.
void sort_pairs(CudaExec& gpu, const char* op, const SortPairs& pairs,
                std::span<std::byte> scratch);

}  // namespace jiboia::cuda
