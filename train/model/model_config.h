#pragma once
#include <array>
#include <cstdint>
#include <optional>
#include <span>

#include "train/config/option.h"

namespace jiboia {

/// Which library's initial weights to draw. They start training at very different losses: for
/// Mambarim's shape, near 10.6, 43 and 14 nats.
enum class Initialisation {
  kMambaSsm,        ///< state-spaces/mamba: embedding std 0.02, out_proj divided by sqrt(layers)
  kHuggingFace439,  ///< transformers 4.39: embedding std 0.1, PyTorch's own linear layers
  kHuggingFace456,  ///< transformers 4.56: also in_proj and x_proj std 0.1, conv bias 0
};
template <>
inline constexpr std::array kEnumNames<Initialisation>{"mamba_ssm", "huggingface_4_39",
                                                       "huggingface_4_56"};

/// How dt_proj's weight is drawn; r = time_step_rank^-1/2 * time_step_scale.
enum class TimeStepInitScheme {
  kRandom,    ///< uniform in [-r, r]
  kConstant,  ///< r
};
template <>
inline constexpr std::array kEnumNames<TimeStepInitScheme>{"random", "constant"};

/// The shape and the initialisation of a Mamba-1 language model, with the names and the defaults of
/// Hugging Face's MambaConfig. Source: transformers 4.56, configuration_mamba.py.
struct ModelConfig {
  std::int64_t vocab_size = 50280;      ///< V: rows of the embedding
  std::int64_t hidden_size = 768;       ///< E: width of the model
  std::int64_t num_hidden_layers = 32;  ///< number of Mamba blocks
  std::int64_t state_size = 16;         ///< N: states of a channel
  std::int64_t conv_kernel = 4;         ///< W: taps of the causal convolution
  std::int64_t expand = 2;              ///< D / E
  std::int64_t time_step_rank = 0;      ///< R; 0 means ceil(E / 16) until resolved()
  double layer_norm_epsilon = 1e-5;
  bool use_bias = false;  ///< of in_proj and out_proj
  bool use_conv_bias = true;
  bool tie_word_embeddings = true;
  bool residual_in_fp32 = true;
  Initialisation initialisation = Initialisation::kHuggingFace456;
  double initializer_range = 0.1;         ///< std of the embedding, in 4.56 also of linear layers
  bool rescale_prenorm_residual = false;  ///< out_proj divided by sqrt(num_hidden_layers)
  double time_step_min = 0.001;           ///< softplus(dt bias) starts log-uniform from here
  double time_step_max = 0.1;             ///< to here
  double time_step_floor = 1e-4;          ///< and not below
  double time_step_scale = 1;
  TimeStepInitScheme time_step_init_scheme = TimeStepInitScheme::kRandom;
  std::int64_t bos_token_id = 0;  ///< -1: the tokenizer has none, here and below
  std::int64_t eos_token_id = 0;
  std::int64_t pad_token_id = 0;

  /// D: channels inside a block.
  std::int64_t intermediate_size() const { return expand * hidden_size; }

  bool operator==(const ModelConfig&) const = default;
};

/// The default ModelConfig of an initialisation: initializer_range and rescale_prenorm_residual are
/// those that the library it is named after trains with.
ModelConfig model_defaults(Initialisation initialisation);

/// `config` with its automatic time_step_rank, if it is one, worked out.
ModelConfig resolved(ModelConfig config);

/// The table of a model's keys.
std::span<const Option<ModelConfig>> model_options();

/// What makes `config` no model, if anything: the one check of a model's sizes, for configurations
/// of runs and for config.json alike. Every size within its range keeps all counts within int64.
std::optional<ConfigProblem> find_problem(const ModelConfig& config);

}  // namespace jiboia
