#pragma once
#include <vector>

#include "core/memory.h"
#include "train/model/mamba_block.h"

namespace jiboia {

/// The state of all blocks between two pieces of the same sequences: constant size, whatever their
/// length so far. Starts at zero, as a sequence does.
class RecurrentState {
 public:
  /// `memory`: bytes() of it where the exec computes, all zero, which must outlive the state.
  /// dtype: that of activations.
  RecurrentState(const ModelConfig& config, std::int64_t rows, Dtype dtype, std::byte* memory);
  const LayerState& layer(std::size_t i) const { return layers_[i]; }

  static std::int64_t bytes(const ModelConfig& config, std::int64_t rows, Dtype dtype);

 private:
  std::vector<LayerState> layers_;
};

/// Makes `history` (B, W - 1, D) the last rows of `history` followed by `x` (B, L, D), whose rows
/// may be slices of columns.
void push_history(Exec& exec, const Tensor& x, const Tensor& history);

}  // namespace jiboia
