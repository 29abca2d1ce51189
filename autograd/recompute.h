#pragma once
#include <cstdint>

namespace jiboia {

/// Whether a segment of a model keeps its inner values for the backward pass or computes them
/// again.
enum class Recompute : std::uint8_t { kNone, kBlock };

}  // namespace jiboia
