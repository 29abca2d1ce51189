#pragma once
#include "core/graph.h"
#include "train/config/config.h"
#include "train/model/mamba_lm.h"
#include "train/optim/optimizer.h"

namespace jiboia {

/// One update of a model after another: micro-steps, each forward and backward over one batch, then
/// the optimizer. Each is always the same work, so a GPU is given it as recorded graphs
/// (core/graph.h).
class TrainingStep {
 public:
  /// `config` says how (train, loss). Works in memory of `arena`; everything must outlive this.
  TrainingStep(const RunConfig& config, const MambaLm& model, ParameterStore& parameters,
               Optimizer& optimizer, Arena& arena);

  /// Where a micro-step leaves its losses, (1) f32, until the exec is asked for something else.
  struct Losses {
    Tensor loss, lse_squared;
  };
  /// Micro-step `index`, from 0, of an update: the gradients become the batch's, or from the second
  /// on have them added. Batches at the same addresses and of the same shape each time make graphs
  /// worth their while.
  Losses micro_step(const TokenTensors& batch, std::int64_t index);

  /// Update `number`, from 1, by the gradients of train.global_batch_size rows.
  Optimizer::Findings update(double lr, std::int64_t number);

  /// Measures every op from now on, and makes no graphs, which run as a whole.
  void measure_ops(OpTimer& timer);

 private:
  /// Work that finds gradients, or adds to them: they differ in what they do to the memory.
  struct MicroStep {
    Graph graph;
    TokenTensors batch{};
    Losses losses{};
  };
  Losses run_micro_step(const TokenTensors& batch, bool first);

  const RunConfig& config_;
  const MambaLm& model_;
  ParameterStore& parameters_;
  Optimizer& optimizer_;
  Arena& arena_;
  OpTimer* timer_ = nullptr;
  MicroStep first_, further_;
  Graph update_;
};

}  // namespace jiboia
