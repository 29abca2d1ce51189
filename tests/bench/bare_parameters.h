#pragma once
#include <span>
#include <vector>

#include "autograd/grad_sink.h"
#include "tests/bench/bench_tensors.h"
#include "train/optim/parameter_store.h"

namespace jiboia::bench {

/// What a model's forward and backward passes take and no more: values in the dtypes that ops read,
/// without fp32 masters, and gradients, without moments. So a large model fits that could not be
/// trained in the same memory.
class BareParameters : public GradSink {
 public:
  /// Values of the size that the initialisers give. Errors: OutOfMemory.
  BareParameters(Exec& exec, std::span<const ParameterSpec> specs, Activations activations);

  /// By ParameterId.
  std::span<const Tensor> values() const { return values_; }
  /// The next gradients overwrite.
  void begin_gradients() { has_gradient_.assign(values_.size(), false); }

  Grad acquire(ParameterId id) override;
  void ready(ParameterId) override {}

  /// What it takes, without making it.
  static ParameterStore::Plan plan(std::span<const ParameterSpec> specs, Activations activations);

 private:
  BenchTensors tensors_;
  std::vector<Tensor> values_, gradients_;
  std::vector<bool> has_gradient_;
};

}  // namespace jiboia::bench
