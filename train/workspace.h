#pragma once
#include <algorithm>

#include "core/arena.h"
#include "core/buffer.h"
#include "train/memory_plan.h"

namespace jiboia {

/// The one allocation that all tapes of a program work in.
class Workspace {
 public:
  explicit Workspace(std::int64_t bytes)
      : memory_(bytes, "activations, gradients of activations and scratch"),
        arena_(memory_.data(), bytes) {}
  Arena& arena() { return arena_; }

 private:
  HostBuffer memory_;
  Arena arena_;
};

}  // namespace jiboia
