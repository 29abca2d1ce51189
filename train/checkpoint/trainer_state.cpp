#include "train/checkpoint/trainer_state.h"

#include <algorithm>
#include <array>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "core/error.h"
#include "core/log.h"
#include "data/json.h"

namespace jiboia {
namespace {

/// The keys that decide the tensors' shapes and what is computed from them.
constexpr std::array<std::string_view, 11> kModelKeys{
    "model.vocab_size",        "model.hidden_size",
    "model.num_hidden_layers", "model.state_size",
    "model.conv_kernel",       "model.expand",
    "model.use_bias",          "model.time_step_rank",
    "model.use_conv_bias",     "model.tie_word_embeddings",
    "model.layer_norm_epsilon"};
/// The keys that, with the data itself, decide which row has which global position.
constexpr std::array<std::string_view, 2> kDataKeys{"seed", "data.seq_len"};

bool contains(std::span<const std::string_view> keys, std::string_view key) {
  return std::ranges::find(keys, key) != keys.end();
}

std::string value_or_none(const std::map<std::string, std::string>& config,
                          const std::string& key) {
  const auto found = config.find(key);
  return found == config.end() ? "(none)" : found->second;
}

}  // namespace

RunInputs make_run_inputs(const RunConfig& config, std::string data_fingerprint) {
  RunInputs inputs{.data_fingerprint = std::move(data_fingerprint)};
  RunConfig copy = config;
  for (const Option<RunConfig>& option : run_options())
    inputs.config[option.path] = print_field(option.field(copy));
  return inputs;
}

void check_inputs(const RunInputs& saved, const RunInputs& now, DataChange data_change) {
  auto keys = saved.config;
  keys.insert(now.config.begin(), now.config.end());
  std::vector<std::string> model, data, other;
  for (const auto& [key, unused] : keys) {
    const std::string before = value_or_none(saved.config, key);
    const std::string after = value_or_none(now.config, key);
    if (before == after) continue;
    auto& kind = contains(kModelKeys, key) ? model : contains(kDataKeys, key) ? data : other;
    kind.push_back(fmt::format("{}: {} -> {}", key, before, after));
  }
  if (saved.data_fingerprint != now.data_fingerprint)
    data.push_back(fmt::format("fingerprint of the training data: {} -> {}", saved.data_fingerprint,
                               now.data_fingerprint));

  require(model.empty(), ErrorKind::kCheckpoint,
          "the checkpoint is of another model (checkpoint -> configuration):\n  {}",
          fmt::join(model, "\n  "));
  require(data.empty() || data_change == DataChange::kAllow, ErrorKind::kCheckpoint,
          "the run would go on with other rows than it began with (checkpoint -> configuration); "
          "--allow-data-change permits that:\n  {}",
          fmt::join(data, "\n  "));
  other.insert(other.end(), data.begin(), data.end());
  for (const std::string& change : other) log::info("changed since the checkpoint: {}", change);
}

std::string to_text(const TrainerState& state) {
  const nlohmann::ordered_json json = {{"step", state.step},
                                       {"tokens", state.tokens},
                                       {"next_row", state.next_row},
                                       {"data_fingerprint", state.inputs.data_fingerprint},
                                       {"config", state.inputs.config}};
  return json.dump(2) + "\n";
}

TrainerState read_trainer_state(const std::filesystem::path& folder) {
  const std::filesystem::path path = folder / TrainerState::kFileName;
  const nlohmann::json value = read_json_file(path, ErrorKind::kCheckpoint);
  const JsonObject json(value, {path.string(), ErrorKind::kCheckpoint});
  TrainerState state;
  state.step = json.get_int64("step");
  state.tokens = json.get_int64("tokens");
  state.next_row = json.get_int64("next_row");
  state.inputs.data_fingerprint = json.get_string("data_fingerprint");
  // A step takes at least a row, and a row has at least a token; sums of such numbers fit int64.
  constexpr std::int64_t kMost = std::int64_t{1} << 62;
  if (state.tokens < 0 || state.tokens > kMost)
    json.fail_at("tokens", fmt::format("{}, expected 0 to 2^62", state.tokens));
  if (state.next_row < 0 || state.next_row > state.tokens)
    json.fail_at("next_row",
                 fmt::format("{}, expected 0 to the {} tokens", state.next_row, state.tokens));
  if (state.step < 0 || state.step > state.next_row)
    json.fail_at("step", fmt::format("{}, expected 0 to the {} rows", state.step, state.next_row));
  const JsonObject config = json.get_object("config");
  for (const auto& member : json.at("config").items())
    state.inputs.config[member.key()] = config.get_string(member.key());
  return state;
}

}  // namespace jiboia
