#pragma once
#include <cstdint>
#include <span>

#include "core/event.h"
#include "core/memory.h"
#include "train/optim/optimizer.h"

namespace jiboia {

/// The numbers of one training step on their way to the host: copied in order with the step's work
/// and read when they are there, so that the exec never waits for the host.
class StepReport {
 public:
  /// Errors: OutOfMemory.
  StepReport(Exec& exec, std::int64_t micro_batches);

  /// The losses of one micro-batch, f32.
  void add(std::int64_t micro_batch, const Tensor& loss, const Tensor& lse_squared);
  /// Marks the step's end.
  void end(const Optimizer::Findings& findings);

  /// After end(): waits until the step is done. Errors: Cuda.
  void wait() const { end_.wait(); }
  // After wait().
  /// Means over the micro-batches.
  double loss() const { return mean(0); }
  double lse_squared() const { return mean(micro_batches_); }
  /// Of the summed gradients.
  double gradient_norm() const { return *reinterpret_cast<const double*>(memory_.data()); }
  std::int64_t first_not_finite() const {
    return *reinterpret_cast<const std::int64_t*>(memory_.data() + sizeof(double));
  }
  /// The step's end, where the exec computes.
  const Event& end_mark() const { return end_; }

 private:
  static constexpr std::int64_t kLosses = 16;  // offset in bytes
  float* losses() const { return reinterpret_cast<float*>(memory_.data() + kLosses); }
  double mean(std::int64_t first) const;

  Exec& exec_;
  std::int64_t micro_batches_;
  Buffer memory_;  // norm, first_not_finite, losses, squares
  Event end_;
};

}  // namespace jiboia
