#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "core/arena.h"
#include "core/exec.h"
#include "train/config/config.h"
#include "train/model/mamba_lm.h"
#include "train/optim/parameter_store.h"

namespace jiboia {

/// The memory of a training run, measured by a dry run of its own code: exact, nothing allocated.
struct MemoryPlan {
  ParameterStore::Plan parameters;
  std::int64_t step_arena_bytes = 0;         ///< peak of one micro-step, gaps included
  std::int64_t validation_arena_bytes = 0;   ///< of a validation, whatever a micro-step recomputes
  std::int64_t arena_bytes = 0;              ///< the larger of both
  std::vector<Arena::Usage> blocks_at_peak;  ///< what fills the arena at the peak of a micro-step
  /// Uploaded batches, the optimizer's tables, workspaces of libraries.
  std::int64_t other_bytes = 0;
  std::int64_t rows = 0;                   ///< of a micro-step
  Recompute recompute = Recompute::kNone;  ///< what the micro-step computes again
  std::int64_t total_bytes() const { return parameters.total() + arena_bytes + other_bytes; }
};

/// Plans a run on `exec`, which nothing was allocated for yet: everything that will be.
MemoryPlan plan_memory(const RunConfig& config, const MambaLm& model, Exec& exec);

/// Peak arena bytes of `run(tape)`, a dry run of an evaluation of f32 masters.
template <class Run>
std::int64_t plan_evaluation(const MambaLm& model, Activations activations, Exec& exec, Run run);

/// The plan as text: parameters, bytes by category, the largest tensors.
std::string to_text(const MemoryPlan& plan);

/// Errors: OutOfMemory, with what takes it and what to change, when the exec cannot hold the plan.
void require_memory(const MemoryPlan& plan, const Exec& exec);

/// "1.50 GiB"
std::string byte_text(std::int64_t bytes);

/// The parameters as a dry run wants them: specs without memory.
std::vector<Tensor> planned_parameters(const MambaLm& model, Dtype dtype,
                                       Activations activations = Activations::kFull);

template <class Run>
std::int64_t plan_evaluation(const MambaLm& model, Activations activations, Exec& exec, Run run) {
  Arena arena;
  const std::vector<Tensor> parameters = planned_parameters(model, Dtype::kF32, activations);
  {
    Tape tape(exec, arena, parameters, nullptr, TapeMode::kEvaluate);
    run(tape);
  }
  return arena.peak_bytes();
}

}  // namespace jiboia
