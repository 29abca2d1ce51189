#include "train/model/model_config.h"

#include <fmt/format.h>

#include <vector>

namespace jiboia {

ModelConfig model_defaults(Initialisation initialisation) {
  ModelConfig config;
  config.initialisation = initialisation;
  if (initialisation == Initialisation::kMambaSsm) {
    config.initializer_range = 0.02;
    config.rescale_prenorm_residual = true;
  }
  return config;
}

ModelConfig resolved(ModelConfig config) {
  if (config.time_step_rank == 0) config.time_step_rank = (config.hidden_size + 15) / 16;
  return config;
}

std::span<const Option<ModelConfig>> model_options() {
  constexpr double kLargest = 1000;  // of what weights are drawn from: their squares stay in fp32
#define FIELD(member) JIBOIA_FIELD(ModelConfig, member)
  static const std::vector<Option<ModelConfig>> kOptions = {
      {FIELD(vocab_size), .range = between(1, 1 << 30),
       .meaning = "Rows of the embedding; may exceed the tokenizer's vocabulary."},
      {FIELD(hidden_size), .range = between(1, 1 << 17), .meaning = "Width of the model.",
       .aliases = {"d_model", "n_embd", "dim"}},
      {FIELD(num_hidden_layers), .range = between(1, 1 << 12), .meaning = "Number of Mamba blocks.",
       .aliases = {"n_layer", "n_layers", "num_layers"}},
      {FIELD(state_size), .range = between(1, 1 << 16), .meaning = "States of a channel.",
       .aliases = {"d_state", "ssm_state_size"}},
      {FIELD(conv_kernel), .range = between(1, 1 << 16),
       .meaning = "Taps of the causal convolution.", .aliases = {"d_conv", "conv_size"}},
      {FIELD(expand), .range = between(1, 16), .meaning = "Inner channels per hidden channel."},
      {FIELD(time_step_rank), .range = between(0, 1 << 17),
       .meaning = "Rank of the time step's projection; 0: hidden_size / 16, rounded up.",
       .aliases = {"dt_rank"}},
      {FIELD(layer_norm_epsilon), .range = between(kFp32Min, 1),
       .meaning = "Added to the mean square in every RMSNorm.",
       .aliases = {"rms_norm_eps", "norm_epsilon", "layer_norm_eps"}},
      {FIELD(use_bias), .meaning = "Whether in_proj and out_proj have a bias."},
      {FIELD(use_conv_bias), .meaning = "Whether the convolution has a bias.",
       .aliases = {"conv_bias"}},
      {FIELD(tie_word_embeddings), .meaning = "Whether the head is the embedding.",
       .aliases = {"tie_embeddings"}},
      {FIELD(residual_in_fp32),
       .meaning = "Written to config.json; here the residual stream is fp32 either way."},
      {FIELD(initialisation),
       .meaning = "Whose initial weights to draw; decides the defaults of initializer_range and "
                  "rescale_prenorm_residual (0.1 and false for the huggingface ones).",
       .aliases = {"initialization", "init"}},
      {FIELD(initializer_range), .range = between(kFp32Min, kLargest),
       .meaning = "Standard deviation of the embedding's initial weights.",
       .aliases = {"init_std", "initializer_std"}},
      {FIELD(rescale_prenorm_residual),
       .meaning = "Whether out_proj starts divided by sqrt(num_hidden_layers)."},
      {FIELD(time_step_min), .range = between(kFp32Min, kLargest),
       .meaning = "Smallest initial time step.", .aliases = {"dt_min"}},
      {FIELD(time_step_max), .range = between(kFp32Min, kLargest),
       .meaning = "Largest initial time step.", .aliases = {"dt_max"}},
      {FIELD(time_step_floor), .range = between(kFp32Min, kLargest),
       .meaning = "Initial time steps are raised to this.", .aliases = {"dt_init_floor"}},
      {FIELD(time_step_scale), .range = between(kFp32Min, kLargest),
       .meaning = "Factor of dt_proj's initial weights.", .aliases = {"dt_scale"}},
      {FIELD(time_step_init_scheme), .meaning = "How dt_proj's initial weights are drawn.",
       .aliases = {"dt_init"}},
      {FIELD(bos_token_id), .range = at_least(-1), .meaning = "Begin of text; -1: none."},
      {FIELD(eos_token_id), .range = at_least(-1), .meaning = "End of text; -1: none."},
      {FIELD(pad_token_id), .range = at_least(-1), .meaning = "Padding; -1: none."},
  };
#undef FIELD
  return kOptions;
}

std::optional<ConfigProblem> find_problem(const ModelConfig& config) {
  if (auto problem = find_range_problem(model_options(), config)) return problem;
  if (config.time_step_min > config.time_step_max) {
    return ConfigProblem{{"time_step_min", "time_step_max"},
                         fmt::format("time_step_min is {}, above time_step_max, which is {}",
                                     config.time_step_min, config.time_step_max)};
  }
  const auto outside = [&](const char* name, std::int64_t id) -> std::optional<ConfigProblem> {
    if (id < config.vocab_size) return std::nullopt;
    return ConfigProblem{
        {name, "vocab_size"},
        fmt::format("{} is {}, not below vocab_size, which is {}", name, id, config.vocab_size)};
  };
  if (auto problem = outside("bos_token_id", config.bos_token_id)) return problem;
  if (auto problem = outside("eos_token_id", config.eos_token_id)) return problem;
  return outside("pad_token_id", config.pad_token_id);
}

}  // namespace jiboia
