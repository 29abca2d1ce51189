#include "train/model/mamba_lm.h"

#include <cmath>

#include "kernels/add_rms_norm/add_rms_norm.h"
#include "kernels/cross_entropy/cross_entropy.h"
#include "kernels/embedding/embedding.h"
#include "kernels/linear/linear.h"

namespace jiboia {

MambaLm::MambaLm(const ModelConfig& config) : config_(config) {
  using Kind = Initializer::Kind;
  const std::int64_t V = config.vocab_size, E = config.hidden_size;
  const Initializer normal{Kind::kNormal, config.initializer_range};
  const auto declare = [&](const char* name, const Shape& shape,
                           std::vector<std::int64_t> file_shape, const Initializer& initializer,
                           ParameterRole role) {
    specs_.push_back({name, shape, std::move(file_shape), initializer, role});
    return static_cast<ParameterId>(specs_.size() - 1);
  };

  embedding_ =
      declare("backbone.embeddings.weight", {V, E}, {V, E}, normal, ParameterRole::kMatrix);
  for (std::int64_t i = 0; i < config.num_hidden_layers; ++i)
    blocks_.emplace_back(config, i, specs_);
  norm_f_ =
      declare("backbone.norm_f.weight", {E}, {E}, {Kind::kConstant, 1}, ParameterRole::kOther);
  if (!config.tie_word_embeddings) {
    const bool is_normal = config.initialisation == Initialisation::kHuggingFace456;
    const Initializer linear{Kind::kUniform, 1 / std::sqrt(static_cast<double>(E))};
    head_ = declare("lm_head.weight", {V, E}, {V, E}, is_normal ? normal : linear,
                    ParameterRole::kMatrix);
  }
}

Var MambaLm::embed(Tape& tape, const Tensor& tokens) const {
  return tape
      .apply<Embedding>({.tokens = tape.constant(tokens), .weight = tape.parameter(embedding_)})
      .x;
}

Var MambaLm::final_norm(Tape& tape, const BlockState& state) const {
  const auto norm = tape.apply<AddRmsNorm>(
      {.residual = state.residual, .update = state.update, .weight = tape.parameter(norm_f_)},
      {.eps = config_.layer_norm_epsilon,
       .activations = activations_beside(tape.parameter(head()).dtype)});
  if (state.update) tape.release(state.residual);
  tape.release(state.update);
  tape.release(norm.sum);
  return norm.normed;
}

LossVars MambaLm::loss(Tape& tape, const TokenTensors& batch, double z_loss,
                       Recompute recompute) const {
  BlockState state{.residual = embed(tape, batch.tokens),
                   .document_start = tape.constant(batch.document_start)};
  for (const MambaBlock& block : blocks_) {
    state = tape.segment(recompute, &MambaBlock::run, block, state);
  }
  const Var hidden = final_norm(tape, state);
  const auto loss = tape.apply_loss<CrossEntropy>(
      {.x = hidden, .weight = tape.parameter(head()), .targets = tape.constant(batch.targets)},
      {.z_loss = z_loss});
  tape.release(hidden);
  return {loss.loss, loss.cross_entropy, loss.lse_squared};
}

Var MambaLm::hidden(Tape& tape, const Tensor& tokens) const {
  BlockState state{.residual = embed(tape, tokens)};
  for (const MambaBlock& block : blocks_) {
    state = tape.segment(Recompute::kNone, &MambaBlock::run, block, state);
  }
  return final_norm(tape, state);
}

Var MambaLm::hidden(Tape& tape, const Tensor& tokens, RecurrentState& recurrent) const {
  BlockState state{.residual = embed(tape, tokens)};
  for (std::size_t i = 0; i < blocks_.size(); ++i) {
    state = MambaBlock::run_from(tape, blocks_[i], state, recurrent.layer(i));
  }
  return final_norm(tape, state);
}

Var MambaLm::logits(Tape& tape, const Var& hidden) const {
  return tape.apply<Linear>({.x = hidden, .weight = tape.parameter(head())}).y;
}

double forward_flops_per_token(const ModelConfig& config) {
  const double E = static_cast<double>(config.hidden_size);
  const double D = static_cast<double>(config.intermediate_size());
  const double N = static_cast<double>(config.state_size);
  const double R = static_cast<double>(config.time_step_rank);
  const double W = static_cast<double>(config.conv_kernel);
  const double V = static_cast<double>(config.vocab_size);
  const double products = E * 2 * D + D * (R + 2 * N) + R * D + D * E;
  // The scan, per state: decay, its product with the state, the input's, and the output's sum.
  const double layer = 2 * products + 2 * D * W + 7 * D * N;
  return static_cast<double>(config.num_hidden_layers) * layer + 2 * V * E;
}

}  // namespace jiboia
