#pragma once
#include <string>
#include <vector>

#include "core/exec.h"
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

  /// `parameters` must have been made with kValuesAndTraining and must outlive the optimizer.
  Optimizer(const OptimConfig& config, ParameterStore& parameters);

  const std::vector<Group>& groups() const { return groups_; }
  /// The groups as lines for the start of a run.
  std::string describe() const;

  /// One update. The store's gradients are sums over `micro_batches`; the step uses their mean,
  /// scaled by min(1, grad_clip / (norm + 1e-6)) as in PyTorch's clip_grad_norm_. `update` counts
  /// from 1. Returns the norm of the mean gradient. Errors: Numerics, naming the first bad
  /// parameter, when the norm is not finite; nothing has been updated then.
  double step(Exec& exec, double lr, std::int64_t update, std::int64_t micro_batches);

 private:
  [[noreturn]] void fail_on_gradient(std::int64_t update) const;

  OptimConfig config_;
  ParameterStore& parameters_;
  std::vector<Group> groups_;
};

}  // namespace jiboia
