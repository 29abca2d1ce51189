#pragma once
#include <memory>

#include "core/exec.h"

namespace jiboia {

/// A point in an Exec's work that the host can wait for and measure from. May be recorded again,
/// on the same exec.
class Event {
 public:
  Event() = default;
  Event(Event&&) = default;
  Event& operator=(Event&&) = default;
  /// What a backend keeps of it.
  struct Recorded {
    virtual ~Recorded() = default;
    virtual void wait() const = 0;
    virtual double seconds_since(const Recorded& earlier) const = 0;
  };

  /// Marks the end of what `exec` has been asked to do so far.
  void record(CpuExec& cpu);
  void record(CudaExec& gpu);
  void record(Exec& exec) {
    std::visit([&](auto& backend) { record(backend); }, exec);
  }
  /// Returns when the exec has got there; at once when nothing was recorded. Errors: Cuda.
  void wait() const {
    if (recorded_) recorded_->wait();
  }
  /// Seconds between two recorded events of one exec; waits for both. Errors: Cuda.
  double seconds_since(const Event& earlier) const {
    return recorded_->seconds_since(*earlier.recorded_);
  }

 private:
  std::unique_ptr<Recorded> recorded_;
};

}  // namespace jiboia
