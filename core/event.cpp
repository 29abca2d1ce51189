#include "core/event.h"

#include <chrono>

namespace jiboia {
namespace {

/// All work is done when it is asked for, so a moment is all there is to an event.
struct Moment : Event::Recorded {
  void wait() const override {}
  double seconds_since(const Recorded& earlier) const override {
    return std::chrono::duration<double>(time - static_cast<const Moment&>(earlier).time).count();
  }
  std::chrono::steady_clock::time_point time = std::chrono::steady_clock::now();
};

}  // namespace

void Event::record(CpuExec&) { recorded_ = std::make_unique<Moment>(); }

}  // namespace jiboia
