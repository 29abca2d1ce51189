#pragma once
#include <array>
#include <deque>
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
#include "train/memory_plan.h"
#include "train/metrics_log.h"
#include "train/model/mamba_lm.h"
#include "train/optim/optimizer.h"
#include "train/progress.h"
#include "train/start_times.h"
#include "train/step_report.h"
#include "train/stop_signal.h"
#include "train/token_tensors.h"
#include "train/training_step.h"
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
RunData open_data(const RunConfig& config, Verification verification);

/// Why a run ended.
struct RunEnd {
  std::int64_t step = 0;
  int signal = 0;  ///< SIGTERM, SIGINT or SIGHUP; 0 when it is finished
};

/// One training run: resumes or starts, steps, validates, saves, stops.
class Trainer {
 public:
  /// `model` is that of `config`, and `plan` its plan_memory() on `exec`. All arguments must
  /// outlive the trainer. `times` get the trainer's part of the program's start.
  Trainer(const RunConfig& config, const MambaLm& model, const MemoryPlan& plan, RunFolder& folder,
          RunData& data, Exec& exec, StartTimes& times);

  /// Goes on from the newest checkpoint of the folder, else from step 0, and says which.
  /// Errors: Checkpoint.
  void start(DataChange data_change);
  /// Steps until max_steps or a signal. Errors: Numerics when loss or gradient are not finite;
  /// whatever data, disks and memory throw. The last checkpoint is intact then.
  RunEnd run();
  /// Time by op of all steps so far; only with measure_ops().
  std::string profile() const;
  void measure_ops();

 private:
  /// A step that the exec was asked for, and what the host knows of it.
  struct Step {
    std::int64_t number = 0;  ///< from 1
    std::int64_t tokens = 0;  ///< of all steps so far
    double lr = 0, epoch = 0, data_wait_s = 0;
    std::size_t measured_ops = 0;  ///< of the timer, when there is one
    const Event* begin = nullptr;  ///< where its time begins
    StepReport* report = nullptr;
  };

  /// Asks for the next step.
  void launch_step();
  /// Reads the oldest step that is under way. Errors: Numerics.
  nlohmann::ordered_json finish_step();
  /// Reads and logs steps until no more than `left` are under way.
  void finish_steps(std::size_t left);
  nlohmann::ordered_json metrics_of(const Step& step, double step_s) const;
  void validate(nlohmann::ordered_json& line);
  void load_first_weights();
  void prepare_samples();
  /// Says less when a signal comes.
  void say_sample(const StopSignal& stop);
  void save();
  std::int64_t saves_to_come() const;  // without a signal's
  /// No step comes after the last update to show that its weights are of use: one batch is scored
  /// with them. Errors: Numerics.
  void require_working_weights();
  void show(const Step& step, double step_s);
  void say_how_the_start_went();
  /// Bytes that the run holds where it computes.
  std::int64_t allocated_bytes() const;
  /// Share of the GPU's peak that the model's own FLOPs take; 0 when the peak is not known.
  double share_of_peak(double tokens_per_second) const;
  std::int64_t micro_batches() const { return config_.train.micro_batches(); }
  std::int64_t tokens_per_step() const {
    return config_.train.global_batch_size * config_.data.seq_len;
  }

  const RunConfig& config_;
  RunFolder& folder_;
  RunData& data_;
  Exec& exec_;
  StartTimes& start_times_;
  const MambaLm& model_;
  const MemoryPlan& plan_;
  ParameterStore parameters_;
  Workspace workspace_;
  Optimizer optimizer_;
  TrainingStep training_step_;
  TokenUploader uploader_;
  /// Steps that a GPU is given before the numbers of the one before them are read.
  static constexpr std::size_t kStepsAhead = 1;
  std::array<StepReport, kStepsAhead + 2> reports_;  // one of them is that of the last step read
  std::deque<Step> under_way_;                       // oldest first
  Event begin_;                                      // of a step that follows no other directly
  const Event* last_end_ = nullptr;                  // of the step that the next one follows
  CheckpointStore checkpoints_;
  std::vector<std::int32_t> sample_prompt_;  // empty: no samples
  std::optional<Generator> generator_;
  TrainerState state_;
  std::optional<TokenLoader> loader_;
  std::optional<MetricsLog> metrics_;
  Progress progress_;
  std::optional<OpTimer> op_timer_;
  bool has_finished_step_ = false;
  double steps_s_ = 0;      // all steps' time
  double mean_step_s_ = 0;  // recent steps', for the display only
};

}  // namespace jiboia
