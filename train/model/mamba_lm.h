#pragma once
#include <cstdint>
#include <vector>

#include "train/model/mamba_block.h"
#include "train/model/recurrent_state.h"

namespace jiboia {

/// One micro-step's input, as tensors on the device: tokens and targets (B, L) i32; document_start
/// (B, L) i32, optional.
struct TokenTensors {
  Tensor tokens, targets, document_start;
};

/// What the loss op gives, as values on the tape.
struct LossVars {
  Var loss, cross_entropy, lse_squared;
};

/// A Mamba-1 language model: embedding, blocks, final norm, head. It declares parameters and runs
/// on tapes; it owns no memory and knows no device.
class MambaLm {
 public:
  /// `config` must be resolved().
  explicit MambaLm(const ModelConfig& config);

  const ModelConfig& config() const { return config_; }
  /// The parameters in order of their ids.
  const std::vector<ParameterSpec>& parameters() const { return specs_; }

  /// Loss of one micro-batch. On a training tape it leaves everything for Tape::backward().
  LossVars loss(Tape& tape, const TokenTensors& batch, double z_loss, Recompute recompute) const;

  /// What the head reads, (B, L, E), for a whole batch.
  Var hidden(Tape& tape, const Tensor& tokens) const;
  /// The same for the next piece of the sequences that `state` has seen so far.
  Var hidden(Tape& tape, const Tensor& tokens, RecurrentState& state) const;
  /// Logits (B, L, V): as large as they sound.
  Var logits(Tape& tape, const Var& hidden) const;

 private:
  Var embed(Tape& tape, const Tensor& tokens) const;
  Var final_norm(Tape& tape, const BlockState& state) const;
  ParameterId head() const { return config_.tie_word_embeddings ? embedding_ : *head_; }

  ModelConfig config_;
  std::vector<ParameterSpec> specs_;
  ParameterId embedding_{}, norm_f_{};
  std::optional<ParameterId> head_;
  std::vector<MambaBlock> blocks_;
};

/// FLOPs of the forward pass of one token, matrix products, convolution and scan counted: a
/// multiply and an add are two.
double forward_flops_per_token(const ModelConfig& config);

}  // namespace jiboia
