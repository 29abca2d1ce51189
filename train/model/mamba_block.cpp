#include "train/model/mamba_block.h"

#include <cmath>

#include "kernels/add_rms_norm/add_rms_norm.h"
#include "kernels/causal_conv1d/causal_conv1d.h"
#include "kernels/linear/linear.h"
#include "kernels/selective_scan/selective_scan.h"
#include "train/model/recurrent_state.h"

namespace jiboia {
namespace {

using Kind = Initializer::Kind;
using enum ParameterRole;

/// PyTorch's default for a linear layer or a convolution with `fan_in` inputs per output.
Initializer uniform_for(std::int64_t fan_in) {
  return {Kind::kUniform, 1 / std::sqrt(static_cast<double>(fan_in))};
}

class Declarer {
 public:
  Declarer(std::vector<ParameterSpec>& specs, std::string prefix)
      : specs_(specs), prefix_(std::move(prefix)) {}

  ParameterId operator()(const std::string& name, const Shape& shape,
                         const Initializer& initializer, ParameterRole role) {
    std::vector<std::int64_t> file_shape;
    for (int i = 0; i < shape.rank(); ++i) file_shape.push_back(shape[i]);
    specs_.push_back({prefix_ + name, shape, file_shape, initializer, role});
    return static_cast<ParameterId>(specs_.size() - 1);
  }
  ParameterSpec& last() { return specs_.back(); }

 private:
  std::vector<ParameterSpec>& specs_;
  std::string prefix_;
};

}  // namespace

MambaBlock::MambaBlock(const ModelConfig& config, std::int64_t layer,
                       std::vector<ParameterSpec>& specs)
    : config_(config) {
  const std::int64_t E = config.hidden_size, D = config.intermediate_size(), N = config.state_size;
  const std::int64_t W = config.conv_kernel, R = config.time_step_rank;
  const bool normal_linears = config.initialisation == Initialisation::kHuggingFace456;
  const Initializer normal{Kind::kNormal, config.initializer_range};
  const Initializer zero{Kind::kConstant, 0}, one{Kind::kConstant, 1};

  Initializer out_proj = uniform_for(D);
  if (config.rescale_prenorm_residual) {
    out_proj.a /= std::sqrt(static_cast<double>(config.num_hidden_layers));
  }
  const double dt_range = config.time_step_scale / std::sqrt(static_cast<double>(R));
  const Initializer dt_proj{config.time_step_init_scheme == TimeStepInitScheme::kRandom
                                ? Kind::kUniform
                                : Kind::kConstant,
                            dt_range};
  const Initializer dt_bias{Kind::kTimeStep, config.time_step_min, config.time_step_max,
                            config.time_step_floor};

  Declarer declare(specs, fmt::format("backbone.layers.{}.", layer));
  norm_ = declare("norm.weight", {E}, one, kOther);
  in_proj_ = declare("mixer.in_proj.weight", {2 * D, E}, normal_linears ? normal : uniform_for(E),
                     kMatrix);
  if (config.use_bias) in_proj_bias_ = declare("mixer.in_proj.bias", {2 * D}, zero, kOther);
  conv_weight_ = declare("mixer.conv1d.weight", {D, W}, uniform_for(W), kFilter);
  declare.last().file_shape = {D, 1, W};
  if (config.use_conv_bias) {
    conv_bias_ = declare("mixer.conv1d.bias", {D}, normal_linears ? zero : uniform_for(W), kOther);
  }
  x_proj_ = declare("mixer.x_proj.weight", {R + 2 * N, D}, normal_linears ? normal : uniform_for(D),
                    kMatrix);
  dt_proj_ = declare("mixer.dt_proj.weight", {D, R}, dt_proj, kMatrix);
  dt_bias_ = declare("mixer.dt_proj.bias", {D}, dt_bias, kOther);
  a_log_ = declare("mixer.A_log", {D, N}, {Kind::kLogStates}, kOther);
  d_skip_ = declare("mixer.D", {D}, one, kOther);
  out_proj_ = declare("mixer.out_proj.weight", {E, D}, out_proj, kMatrix);
  if (config.use_bias) out_proj_bias_ = declare("mixer.out_proj.bias", {E}, zero, kOther);
}

BlockState MambaBlock::run(Tape& tape, const MambaBlock& block, const BlockState& in) {
  return run_block(tape, block, in, nullptr);
}

BlockState MambaBlock::run_from(Tape& tape, const MambaBlock& block, const BlockState& in,
                                const LayerState& state) {
  return run_block(tape, block, in, &state);
}

BlockState MambaBlock::run_block(Tape& tape, const MambaBlock& block, const BlockState& in,
                                 const LayerState* state) {
  const ModelConfig& config = block.config_;
  const std::int64_t D = config.intermediate_size(), N = config.state_size;
  const std::int64_t R = config.time_step_rank;
  const auto weight = [&](ParameterId id) { return tape.parameter(id); };
  const auto optional = [&](const std::optional<ParameterId>& id) {
    return id ? tape.parameter(*id) : Var();
  };

  const auto norm = tape.apply<AddRmsNorm>(
      {.residual = in.residual, .update = in.update, .weight = weight(block.norm_)},
      {.eps = config.layer_norm_epsilon,
       .activations = activations_beside(weight(block.in_proj_).dtype)});
  if (in.update) tape.release(in.residual);
  tape.release(in.update);

  const Var xz = tape.apply<Linear>({.x = norm.normed,
                                     .weight = weight(block.in_proj_),
                                     .bias = optional(block.in_proj_bias_)})
                     .y;
  tape.release(norm.normed, RecomputeCost::kLow);
  const Var x = xz.column_slice(0, D), z = xz.column_slice(D, D);

  const Var u =
      tape.apply<CausalConv1d>({.x = x,
                                .weight = weight(block.conv_weight_),
                                .bias = optional(block.conv_bias_),
                                .document_start = in.document_start,
                                .history = state ? tape.constant(state->conv_history) : Var()})
          .u;
  if (state && !tape.measuring()) push_history(tape.exec(), tape.value(x), state->conv_history);

  const Var dt_b_c = tape.apply<Linear>({.x = u, .weight = weight(block.x_proj_)}).y;
  const Var dt =
      tape.apply<Linear>({.x = dt_b_c.column_slice(0, R), .weight = weight(block.dt_proj_)}).y;
  const auto scan =
      tape.apply<SelectiveScan>({.u = u,
                                 .dt = dt,
                                 .a_log = weight(block.a_log_),
                                 .b = dt_b_c.column_slice(R, N),
                                 .c = dt_b_c.column_slice(R + N, N),
                                 .d_skip = weight(block.d_skip_),
                                 .z = z,
                                 .dt_bias = weight(block.dt_bias_),
                                 .document_start = in.document_start,
                                 .initial_state = state ? tape.constant(state->scan_state) : Var()},
                                {.final_state = state ? FinalState::kReturn : FinalState::kDiscard,
                                 .kernels = SelectiveScan::kernels_for(tape.exec())});
  if (state && !tape.measuring()) {
    copy(tape.exec(), tape.value(scan.final_state), state->scan_state);
  }
  for (const Var& read : {u, dt}) tape.release(read, RecomputeCost::kLow);
  for (const Var& read : {dt_b_c, xz, scan.states, scan.final_state}) tape.release(read);

  const Var update = tape.apply<Linear>({.x = scan.y,
                                         .weight = weight(block.out_proj_),
                                         .bias = optional(block.out_proj_bias_)})
                         .y;
  tape.release(scan.y);
  return {.residual = in.update ? norm.sum : in.residual,
          .update = update,
          .document_start = in.document_start};
}

}  // namespace jiboia
