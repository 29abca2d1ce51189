#pragma once
#include <optional>
#include <string>
#include <vector>

#include "core/exec.h"
#include "data/token_loader.h"
#include "data/tokenizer.h"
#include "train/checkpoint/checkpoint_store.h"
#include "train/checkpoint/model_weights.h"
#include "train/config/config.h"
#include "train/evaluator.h"
#include "train/generator.h"
#include "train/metrics_log.h"
#include "train/model/mamba_lm.h"
#include "train/optim/optimizer.h"
#include "train/progress.h"
#include "train/workspace.h"

namespace jiboia {

/// The data of a run, opened and checked.
struct RunData {
  TokenDataset train;
  std::optional<TokenDataset> validation;
  std::vector<CompanionFile> tokenizer_files;  ///< for the checkpoints
  std::optional<Tokenizer> tokenizer;          ///< for samples
};

/// Errors: Data, with config.data.how_to_get, when a folder of data is not there.
void require_data(const RunConfig& config);

/// Opens, verifies and checks what `config` names. Errors: Data.
RunData open_data(const RunConfig& config);

/// Why a run ended.
struct RunEnd {
  std::int64_t step = 0;
  int signal = 0;  ///< SIGTERM or SIGINT; 0 when it is finished
};

/// One training run: resumes or starts, steps, validates, saves, stops.
class Trainer {
 public:
  /// All arguments must outlive the trainer.
  Trainer(const RunConfig& config, RunFolder& folder, RunData& data, Exec& exec);

  /// Goes on from the newest checkpoint of the folder, else from step 0, and says which.
  /// Errors: Checkpoint.
  void start(DataChange data_change);
  /// Steps until max_steps or a signal. Errors: Numerics when loss or gradient are not finite;
  /// whatever data, disks and memory throw. The last checkpoint is intact then.
  RunEnd run();
  /// Time by op of all steps so far; only with measure_ops().
  std::string profile() const;
  void measure_ops() { op_timer_.emplace(); }

 private:
  struct StepResult {
    double loss = 0, z_loss = 0, grad_norm = 0, lr = 0, epoch = 0, data_wait_s = 0;
  };

  StepResult step();
  nlohmann::ordered_json metrics_of(const StepResult& result, double step_s) const;
  void validate(nlohmann::ordered_json& line);
  void load_first_weights();
  void prepare_samples();
  void say_sample();
  void save();
  void show(const StepResult& result, double step_s);
  std::int64_t tokens_per_step() const {
    return config_.train.global_batch_size * config_.data.seq_len;
  }

  const RunConfig& config_;
  RunFolder& folder_;
  RunData& data_;
  Exec& exec_;
  MambaLm model_;
  MemoryPlan plan_;
  ParameterStore parameters_;
  Workspace workspace_;
  Optimizer optimizer_;
  CheckpointStore checkpoints_;
  std::vector<std::int32_t> sample_prompt_;  // empty: no samples
  std::optional<Generator> generator_;
  TrainerState state_;
  std::optional<TokenLoader> loader_;
  std::optional<MetricsLog> metrics_;
  Progress progress_;
  std::optional<OpTimer> op_timer_;
  double steps_s_ = 0;      // all steps' time
  double mean_step_s_ = 0;  // recent steps', for the display only
};

}  // namespace jiboia
