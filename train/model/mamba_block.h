#pragma once
#include <optional>
#include <string>
#include <vector>

#include "autograd/tape.h"
#include "train/model/model_config.h"
#include "train/model/parameter_spec.h"

namespace jiboia {

/// What a Mamba block carries from one piece of a sequence to the next, for generation.
struct LayerState {
  Tensor conv_history;  ///< (B, W - 1, D): the last inputs of the convolution
  Tensor scan_state;    ///< (B, N, D)
};

/// What flows through the blocks. `update` is what the block before adds to the residual stream;
/// absent before the first block.
struct BlockState {
  Var residual, update, document_start;
};

/// One Mamba-1 block: residual norm, in_proj, causal convolution, selective scan, out_proj.
/// Owns no memory: it knows the ids of its parameters.
/// Source: Gu & Dao 2023, arXiv:2312.00752, Figure 3; names as in Hugging Face's MambaMixer.
class MambaBlock {
 public:
  /// Declares the block's parameters at the end of `specs`.
  MambaBlock(const ModelConfig& config, std::int64_t layer, std::vector<ParameterSpec>& specs);

  /// The block as a segment of a tape.
  static BlockState run(Tape& tape, const MambaBlock& block, const BlockState& in);
  /// The same going on from `state`, which it updates. For tapes that only evaluate.
  static BlockState run_from(Tape& tape, const MambaBlock& block, const BlockState& in,
                             const LayerState& state);

 private:
  static BlockState run_block(Tape& tape, const MambaBlock& block, const BlockState& in,
                              const LayerState* state);

  ModelConfig config_;
  ParameterId norm_{}, in_proj_{}, conv_weight_{}, x_proj_{}, dt_proj_{}, dt_bias_{}, a_log_{},
      d_skip_{}, out_proj_{};
  std::optional<ParameterId> in_proj_bias_, conv_bias_, out_proj_bias_;
};

}  // namespace jiboia
