#include "train/training_step.h"

#include <gmock/gmock.h>

#include "core/host_access.h"
#include "tests/support/gpu.h"
#include "tests/support/tiny_model.h"
#include "train/evaluator.h"

namespace jiboia::test {
namespace {

constexpr std::int64_t kRows = 2, kLength = 19;

RunConfig tiny_run(Precision precision, std::int64_t micro_batches) {
  RunConfig run;
  run.model = tiny_config();
  run.precision = precision;
  run.train.micro_batch_size = kRows;
  run.train.global_batch_size = micro_batches * kRows;
  run.data.seq_len = kLength;
  run.data.reset_at_document_starts = true;
  run.loss.z_loss = 1e-3;
  return run;
}

TokenBatch batch_with_documents(const RunConfig& run, std::int64_t rows, std::uint64_t seed) {
  TokenBatch batch = random_batch(run.model, rows, kLength, seed);
  const auto length = static_cast<std::int64_t>(3 + seed % 5);
  for (std::int64_t i = 0; i < rows * kLength; ++i) {
    batch.document_start.push_back(static_cast<std::int32_t>(i % kLength / length * length));
  }
  return batch;
}

/// A model in training.
struct Training {
  Training(const RunConfig& config, Exec& on)
      : run(config),
        exec(on),
        model(run.model),
        parameters(exec, model.parameters(), Dtype::kF32, StoreContents::kValuesAndTraining,
                   activations_for(exec, run.precision)),
        optimizer(run.optim, parameters),
        workspace(exec, plan_memory(run, model, exec).arena_bytes),
        uploader(exec, kRows, kLength),
        step(run, model, parameters, optimizer, workspace.arena()) {
    initialise(parameters, 1);
  }

  /// Every micro-batch and learning rate of every update is another one.
  void update(std::int64_t number, std::int64_t rows = kRows) {
    for (std::int64_t i = 0; i < run.train.micro_batches(); ++i) {
      const auto seed = static_cast<std::uint64_t>(100 * number + i);
      const auto losses =
          step.micro_step(uploader.upload(batch_with_documents(run, rows, seed)), i);
      seen.push_back(read_scalar(exec, losses.loss));
      seen.push_back(read_scalar(exec, losses.lse_squared));
    }
    const double lr = 1e-2 / static_cast<double>(number);
    seen.push_back(read_scalar(exec, step.update(lr, number).gradient_norm));
  }
  /// Masters, gradients, moments and bf16 copies, then everything that was seen.
  std::vector<double> everything() {
    HostAccess host(exec);
    std::vector<double> all;
    for (const Tensor& flat :
         {parameters.flat_values(), parameters.flat_gradients(), parameters.flat_exp_avg(),
          parameters.flat_exp_avg_sq(), parameters.flat_rounded()}) {
      if (!flat) continue;
      std::vector<float> values(static_cast<std::size_t>(flat.size()));
      host.read_as_float(flat, values);
      all.insert(all.end(), values.begin(), values.end());
    }
    all.insert(all.end(), seen.begin(), seen.end());
    return all;
  }

  RunConfig run;
  Exec& exec;
  MambaLm model;
  ParameterStore parameters;
  Optimizer optimizer;
  Workspace workspace;
  TokenUploader uploader;
  TrainingStep step;
  std::vector<double> seen;
};

#if JIBOIA_WITH_CUDA

class TrainingStepCuda : public testing::Test {
 protected:
  void SetUp() override {
    JIBOIA_SKIP_WITHOUT_GPU();
    exec_.emplace(CudaExec(0));
  }
  /// What is left after `updates(training)`, with graphs and without.
  template <class Updates>
  void expect_same_with_graphs(RunConfig run, Updates updates) {
    std::vector<double> results[2];
    for (GraphUse use : {GraphUse::kAuto, GraphUse::kNever}) {
      run.train.cuda_graphs = use;
      Training training(run, *exec_);
      updates(training);
      results[static_cast<std::size_t>(use)] = training.everything();
    }
    EXPECT_EQ(results[0], results[1]);
  }

  std::optional<Exec> exec_;
};

TEST_F(TrainingStepCuda, GraphsChangeNoBit) {
  for (Precision precision : {Precision::kFp32, Precision::kBf16}) {
    for (std::int64_t micro_batches : {1, 2, 4}) {
      for (Recompute recompute : {Recompute::kNone, Recompute::kSelective, Recompute::kBlock}) {
        RunConfig run = tiny_run(precision, micro_batches);
        run.train.recompute = recompute;
        SCOPED_TRACE(fmt::format("bf16 {}, {} micro-batches, recompute {}",
                                 precision == Precision::kBf16, micro_batches,
                                 enum_name(recompute)));
        expect_same_with_graphs(run, [](Training& training) {
          for (std::int64_t number = 1; number <= 5; ++number) training.update(number);
        });
      }
    }
  }
}

TEST_F(TrainingStepCuda, WhatRunsBetweenUpdatesChangesNoBitOfThem) {
  const RunConfig run = tiny_run(Precision::kBf16, 2);
  std::vector<double> results[2];
  for (bool between : {false, true}) {
    Training training(run, *exec_);
    for (std::int64_t number = 1; number <= 5; ++number) {
      training.update(number);
      if (!between) continue;
      const TokenTensors batch =
          training.uploader.upload(batch_with_documents(run, 1, 99));  // other shapes
      Tape tape(*exec_, training.workspace.arena(), training.parameters.values(), nullptr,
                TapeMode::kEvaluate);
      const LossVars losses = training.model.loss(tape, batch, 0, Recompute::kNone);
      EXPECT_GT(read_scalar(*exec_, tape.value(losses.loss)), 0);
      EXPECT_TRUE(training.optimizer.values_are_finite());
    }
    results[between] = training.everything();
  }
  EXPECT_EQ(results[0], results[1]);
}

TEST_F(TrainingStepCuda, BatchesOfAnotherShapeAreRecordedAnew) {
  expect_same_with_graphs(tiny_run(Precision::kFp32, 2), [](Training& training) {
    for (std::int64_t number = 1; number <= 9; ++number) {
      training.update(number, number < 4 || number > 7 ? kRows : kRows - 1);
    }
  });
}

TEST_F(TrainingStepCuda, MeasuresOpsOfStepsThatRanAsGraphs) {
  const RunConfig run = tiny_run(Precision::kFp32, 2);
  Training plain(run, *exec_), measured(run, *exec_);
  OpTimer timer;
  for (std::int64_t number = 1; number <= 6; ++number) {
    if (number == 4) measured.step.measure_ops(timer);
    plain.update(number);
    measured.update(number);
  }
  EXPECT_EQ(plain.everything(), measured.everything());
  timer.collect(timer.pending());
  EXPECT_EQ(timer.entries().at({"optimizer", Pass::kForward}).calls, 3);
  EXPECT_EQ(timer.entries().at({"embedding", Pass::kBackward}).calls, 6);
}

#endif

}  // namespace
}  // namespace jiboia::test
