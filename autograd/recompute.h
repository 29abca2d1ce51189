#pragma once
#include <cstdint>

namespace jiboia {

/// What a segment of a model computes again in the backward pass instead of keeping it.
enum class Recompute : std::uint8_t {
  kNone,       ///< nothing
  kSelective,  ///< the values that it releases as cheap
  kBlock,      ///< all its inner values
};

/// What it takes to compute a value again, beside the memory that it takes to keep it.
enum class RecomputeCost : std::uint8_t { kHigh, kLow };

}  // namespace jiboia
