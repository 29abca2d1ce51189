#pragma once
#include <vector>

#include "core/arena.h"
#include "core/rng.h"
#include "train/memory_plan.h"
#include "train/model/initialise.h"
#include "train/model/mamba_lm.h"
#include "train/token_tensors.h"
#include "train/workspace.h"

namespace jiboia::test {

/// A model with odd sizes and every optional part.
inline ModelConfig tiny_config() {
  ModelConfig config = model_defaults(Initialisation::kMambaSsm);
  config.vocab_size = 13;
  config.hidden_size = 6;
  config.num_hidden_layers = 2;
  config.state_size = 3;
  config.conv_kernel = 3;
  config.time_step_rank = 2;
  config.use_bias = true;
  return resolved(config);
}

/// Random tokens, the next ones as targets, the last target of each row ignored.
inline TokenBatch random_batch(const ModelConfig& config, std::int64_t rows, std::int64_t seq_len,
                               std::uint64_t seed = 1) {
  TokenBatch batch{.rows = rows, .seq_len = seq_len, .data_rows = rows};
  const Philox random(seed, RandomPurpose::kTest);
  for (std::int64_t i = 0; i < rows * seq_len; ++i) {
    const double u = random.uniform(static_cast<std::uint64_t>(i));
    batch.tokens.push_back(static_cast<std::int32_t>(u * static_cast<double>(config.vocab_size)));
  }
  for (std::int64_t i = 0; i < rows * seq_len; ++i) {
    const bool last = i % seq_len == seq_len - 1;
    batch.targets.push_back(last ? kIgnoredTarget : batch.tokens[static_cast<std::size_t>(i + 1)]);
  }
  return batch;
}

/// Loss and gradients of one micro-batch, in memory planned by a dry run.
struct LossRun {
  double loss = 0;
  std::int64_t planned_bytes = 0, peak_bytes = 0, live_blocks = 0;
};
inline LossRun run_loss(const MambaLm& model, ParameterStore& parameters, const TokenBatch& batch,
                        double z_loss, Recompute recompute, Exec& exec) {
  TokenUploader uploader(exec, batch.rows, batch.seq_len);
  const TokenTensors tensors = uploader.upload(batch);
  LossRun result;
  {
    Arena measuring;
    const auto planned = planned_parameters(model, parameters.dtype(), parameters.activations());
    {
      Tape tape(exec, measuring, planned, nullptr, TapeMode::kTrain);
      model.loss(tape, planned_tokens(batch.rows, batch.seq_len, !batch.document_start.empty()),
                 z_loss, recompute);
      tape.backward();
    }
    result.planned_bytes = measuring.peak_bytes();
  }
  Workspace workspace(exec, result.planned_bytes);
  parameters.begin_gradients();
  {
    Tape tape(exec, workspace.arena(), parameters.values(), &parameters, TapeMode::kTrain);
    const LossVars losses = model.loss(tape, tensors, z_loss, recompute);
    tape.backward();
    result.loss = read_scalar(exec, tape.value(losses.loss));
    result.live_blocks = workspace.arena().live_blocks();
  }
  parameters.end_gradients();
  result.peak_bytes = workspace.arena().peak_bytes();
  return result;
}

}  // namespace jiboia::test
