#pragma once
#include "core/arena.h"
#include "core/memory.h"

namespace jiboia {

/// The one allocation that all tapes of a program work in.
class Workspace {
 public:
  Workspace(Exec& exec, std::int64_t bytes)
      : memory_(allocate(exec, bytes, "activations, gradients of activations and scratch")),
        arena_(memory_.data(), bytes) {}
  Arena& arena() { return arena_; }

 private:
  Buffer memory_;
  Arena arena_;
};

}  // namespace jiboia
