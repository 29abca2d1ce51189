#pragma once
#include <vector>

#include "core/buffer.h"
#include "core/exec.h"
#include "train/model/mamba_block.h"

namespace jiboia {

/// The state of all blocks between two pieces of the same sequences: constant size, whatever their
/// length so far. Starts at zero, as a sequence does.
class RecurrentState {
 public:
  RecurrentState(const ModelConfig& config, std::int64_t rows, Dtype dtype);
  const LayerState& layer(std::size_t i) const { return layers_[i]; }

 private:
  HostBuffer memory_;
  std::vector<LayerState> layers_;
};

/// Copies a whole tensor; both contiguous, of the same dtype and size.
void copy(Exec& exec, const Tensor& from, const Tensor& to);

/// Makes `history` (B, W - 1, D) the last rows of `history` followed by `x` (B, L, D).
void push_history(Exec& exec, const Tensor& x, const Tensor& history);

}  // namespace jiboia
