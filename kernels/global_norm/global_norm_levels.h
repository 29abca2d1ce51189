#pragma once
#include <array>
#include <cstdint>

#include "kernels/global_norm/global_norm.h"

namespace jiboia {

/// Where the partial sums of n elements go. Level 0 has one for each kNormBlock elements, each
/// further one has one for each kNormBlock of the level before, until one level has no more than
/// that. The CPU uses level 0 alone.
struct NormLevels {
  static constexpr int kMax = 5;  ///< enough for every 64-bit n
  explicit NormLevels(std::int64_t n);

  std::array<std::int64_t, kMax> counts{};
  int levels = 0;  ///< at least 1
};

/// Errors: InvalidArgument when shapes or dtypes differ.
void require_consistent(const GlobalNorm& args);

}  // namespace jiboia
