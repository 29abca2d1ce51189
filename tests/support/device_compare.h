#pragma once
#include <cstddef>
#include <cstdint>

#include "core/exec.h"

/// Compares GPU memory with GPU memory, so that tests need not bring either to the CPU.
namespace jiboia::test {

/// `bytes` of GPU memory at each of two places.
struct Compared {
  const std::byte* now = nullptr;
  const std::byte* before = nullptr;
  std::int64_t bytes = 0;
};

/// Of a pair that never differed.
inline constexpr std::uint32_t kNeverDiffered = ~0U;

/// first[k] = min(first[k], launch) for each k in [0, count) where pairs[k] differ in a bit. Both
/// arrays are in GPU memory; `most_bytes` is that of the largest pair. Does not wait.
/// Errors: Cuda.
void note_differences(CudaExec& gpu, const Compared* pairs, std::int64_t count,
                      std::int64_t most_bytes, std::uint32_t launch, std::uint32_t* first);

}  // namespace jiboia::test
