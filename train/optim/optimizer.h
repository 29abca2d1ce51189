#pragma once
#include <string>
#include <vector>

#include "core/memory.h"
#include "core/upload.h"
#include "kernels/adamw/adamw.h"
#include "train/config/config.h"
#include "train/optim/parameter_store.h"

namespace jiboia {

/// AdamW over a ParameterStore, with decay groups and clipping by the global norm.
class Optimizer {
 public:
  /// Parameters that share a weight decay.
  struct Group {
    std::string name;
    double weight_decay = 0;
    std::vector<std::size_t> parameters;
    std::int64_t elements = 0;
  };
  /// What an update found, where the exec computes.
  struct Findings {
    Tensor gradient_norm;     ///< (1) f64: of the gradients as the store holds them, summed
    Tensor first_not_finite;  ///< (1) i64: element of the flat gradients, -1 when all are finite
  };

  /// `parameters` must have been made with kValuesAndTraining and must outlive the optimizer.
  /// Errors: OutOfMemory.
  Optimizer(const OptimConfig& config, ParameterStore& parameters);

  const std::vector<Group>& groups() const { return groups_; }
  /// The groups as lines for the start of a run.
  std::string describe() const;

  /// Brings what is particular to update `update`, from 1, to where the exec computes: for the next
  /// apply(). Errors: Cuda.
  void set_rates(double lr, std::int64_t update);
  /// One update with the rates that were set, always the same work. The store's gradients are sums
  /// over `micro_batches`; the step uses their mean, scaled by min(1, grad_clip / (norm + 1e-6)) as
  /// in PyTorch's clip_grad_norm_. Where the norm is not finite nothing is updated: the host learns
  /// of it from the findings().
  void apply(std::int64_t micro_batches);
  /// Of the last apply(), until the next one or values_are_finite(); always at the same addresses.
  Findings findings() const;

  /// Whether masters and second moments are finite. Waits for the exec.
  bool values_are_finite();

  /// Throws Error{Numerics} for an update whose norm was not finite, with the parameter of the
  /// gradients' first bad element.
  [[noreturn]] void fail_on_gradient(std::int64_t update, std::int64_t first_not_finite) const;

  /// Bytes that it takes where `exec` computes, beside the store's.
  static std::int64_t planned_bytes(const Exec& exec, std::int64_t flat_size);

 private:
  static constexpr int kRateSlots = 3;
  void find_norm(const Tensor& flat);

  OptimConfig config_;
  AdamWBetas betas_;
  ParameterStore& parameters_;
  std::vector<Group> groups_;
  Buffer decays_, findings_, scratch_;
  std::unique_ptr<UploadRing> rates_;
};

}  // namespace jiboia
