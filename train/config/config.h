#pragma once
#include <array>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "autograd/recompute.h"
#include "core/graph.h"
#include "train/config/option.h"
#include "train/device.h"
#include "train/model/model_config.h"
#include "train/optim/lr_schedule.h"

namespace jiboia {

template <>
inline constexpr std::array kEnumNames<Recompute>{"none", "selective", "block"};

template <>
inline constexpr std::array kEnumNames<GraphUse>{"auto", "never"};

/// Which parameters decay: all, or all but A_log, D, biases and norms.
enum class WeightDecayScope { kDefault, kAll };
template <>
inline constexpr std::array kEnumNames<WeightDecayScope>{"default", "all"};

/// Relative paths, here and in RunConfig, are relative to the working directory.
struct DataConfig {
  std::string train;       ///< folder of token shards
  std::string validation;  ///< folder of token shards; empty: no validation
  std::int64_t seq_len = 0;
  bool reset_at_document_starts = false;
  std::string how_to_get;  ///< said when a folder is not there

  bool operator==(const DataConfig&) const = default;
};

struct TrainConfig {
  std::int64_t micro_batch_size = 0;   ///< rows
  std::int64_t global_batch_size = 0;  ///< rows, a multiple of micro_batch_size
  std::int64_t max_steps = 0;
  Recompute recompute = Recompute::kNone;
  GraphUse cuda_graphs = GraphUse::kAuto;

  std::int64_t micro_batches() const { return global_batch_size / micro_batch_size; }
  bool operator==(const TrainConfig&) const = default;
};

struct OptimConfig {
  double lr = 0;
  Pair betas = {0.9, 0.95};
  double eps = 1e-8;
  double weight_decay = 0.1;
  double grad_clip = 1;  ///< global L2 norm; 0: off
  WeightDecayScope weight_decay_scope = WeightDecayScope::kDefault;

  bool operator==(const OptimConfig&) const = default;
};

struct LossConfig {
  double z_loss = 0;

  bool operator==(const LossConfig&) const = default;
};

/// What a checkpoint holds beside the model: what a run needs to go on, or nothing.
enum class CheckpointContents { kAll, kWeights };
template <>
inline constexpr std::array kEnumNames<CheckpointContents>{"all", "weights"};

struct CheckpointConfig {
  std::int64_t every = 1000;  ///< steps; 0: only after the last
  std::int64_t keep = 3;      ///< newest checkpoints kept; 0: all
  CheckpointContents contents = CheckpointContents::kAll;

  bool operator==(const CheckpointConfig&) const = default;
};

struct EvalConfig {
  std::int64_t every = 0;     ///< steps; 0: never
  std::int64_t max_rows = 0;  ///< 0: all
  std::string sample_prompt;
  std::int64_t sample_tokens = 0;

  bool operator==(const EvalConfig&) const = default;
};

struct LogConfig {
  std::int64_t every = 1;  ///< steps

  bool operator==(const LogConfig&) const = default;
};

/// Everything that decides a training run.
struct RunConfig {
  std::string output_dir;
  std::int64_t seed = 0;
  DeviceChoice device = DeviceChoice::kAuto;
  std::int64_t threads = 0;  ///< 0: all cores
  Precision precision = Precision::kFp32;
  std::string init_from;  ///< model whose weights to start from; empty: draw them

  ModelConfig model = model_defaults(Initialisation::kMambaSsm);
  DataConfig data;
  TrainConfig train;
  OptimConfig optim;
  ScheduleConfig schedule;
  LossConfig loss;
  CheckpointConfig checkpoint;
  EvalConfig eval;
  LogConfig log;

  bool operator==(const RunConfig&) const = default;
};

/// The table of a run's keys; the model's are those of model_options(), under "model.".
std::span<const Option<RunConfig>> run_options();

/// What makes `config` impossible to run, if anything; keys that do not go together are both named.
std::optional<ConfigProblem> find_problem(const RunConfig& config);

/// Reads a configuration of YAML (see read_yaml()) and applies overrides "section.key=value" in
/// their order. The result is checked and resolved. Reads nothing but that file.
/// Errors: Config. Every message begins with a place, "file:line:column" or "--set key=value", and
/// an unknown key's names the key that was likely meant.
RunConfig load_config(const std::filesystem::path& path,
                      const std::vector<std::string>& overrides = {});

/// load_config() of a text, called `source` in messages.
RunConfig parse_config(std::string_view text, const std::string& source,
                       const std::vector<std::string>& overrides = {});

/// Every key of a configuration with its value, as YAML that parse_config() reads back unchanged.
std::string to_yaml(const RunConfig& config);

/// Every key with its type, range, default and meaning, for --help.
std::string config_help();

}  // namespace jiboia
