#pragma once
#include <cstddef>
#include <memory>

namespace jiboia::emulated {

/// A function with a stack of its own that hands control back in the middle: a thread of a kernel
/// between two barriers.
class Fiber {
 public:
  /// `body(context)` starts at the first resume(). It may not return and may not throw.
  Fiber(void (*body)(void* context), void* context);
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  /// Runs the body until it calls suspend().
  void resume();
  /// Called by the body: returns from resume(); returns itself at the next resume().
  void suspend();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace jiboia::emulated
