#include "train/memory_plan.h"

#include <gmock/gmock.h>

#include <algorithm>

#include "tests/support/gpu.h"
#include "tests/support/tiny_model.h"

namespace jiboia::test {
namespace {

using testing::HasSubstr;
using testing::Not;

constexpr std::int64_t kMoreThanThereIs = std::int64_t{1} << 60;

/// The error of a plan that `change` makes too large for any machine.
template <class Change>
std::string refused(std::int64_t rows, Recompute recompute, Change change) {
  Exec exec = CpuExec(1);
  RunConfig config;
  config.model = tiny_config();
  config.train.recompute = recompute;
  config.train.micro_batch_size = rows;
  config.data.seq_len = 50;
  MemoryPlan plan = plan_memory(config, MambaLm(config.model), exec);
  EXPECT_NO_THROW(require_memory(plan, exec));
  change(plan);
  plan.arena_bytes = std::max(plan.step_arena_bytes, plan.validation_arena_bytes);
  try {
    require_memory(plan, exec);
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kOutOfMemory);
    return error.what();
  }
  return "nothing was refused";
}

constexpr const char* kLower = "to give; lower train.micro_batch_size";
constexpr const char* kLast = "to give; lower data.seq_len or choose a smaller model\n";

TEST(MemoryPlan, ProposesWhatIsNotSetYetForAStepThatDoesNotFit) {
  const auto refused_step = [](std::int64_t rows, Recompute recompute) {
    return refused(rows, recompute,
                   [](MemoryPlan& plan) { plan.step_arena_bytes = kMoreThanThereIs; });
  };
  const std::string lower = kLower;
  EXPECT_THAT(refused_step(2, Recompute::kNone),
              HasSubstr(lower + " or set train.recompute to selective or block\n"));
  EXPECT_THAT(refused_step(2, Recompute::kSelective),
              HasSubstr(lower + " or set train.recompute to block\n"));
  EXPECT_THAT(refused_step(2, Recompute::kBlock), HasSubstr(lower + "\n"));
  EXPECT_THAT(refused_step(1, Recompute::kSelective),
              HasSubstr("to give; set train.recompute to block\n"));
  EXPECT_THAT(refused_step(1, Recompute::kBlock), HasSubstr(kLast));
}

TEST(MemoryPlan, ProposesNoRecomputeForAValidationThatDoesNotFit) {
  const auto refused_validation = [](std::int64_t rows) {
    return refused(rows, Recompute::kNone,
                   [](MemoryPlan& plan) { plan.validation_arena_bytes = kMoreThanThereIs; });
  };
  EXPECT_THAT(refused_validation(2), HasSubstr(std::string(kLower) + "\n"));
  EXPECT_THAT(refused_validation(1), HasSubstr(kLast));
}

TEST(MemoryPlan, ProposesNoSmallerBatchForAModelThatDoesNotFit) {
  for (std::int64_t ParameterStore::Plan::*part :
       {&ParameterStore::Plan::values, &ParameterStore::Plan::moments}) {
    const std::string error = refused(
        2, Recompute::kNone, [&](MemoryPlan& plan) { plan.parameters.*part = kMoreThanThereIs; });
    EXPECT_THAT(error, HasSubstr("to give; weights, gradients and moments alone are 1073741824.00 "
                                 "GiB; choose a smaller model or a device with more memory\n"));
    EXPECT_THAT(error, Not(HasSubstr("train.")));
  }
}

#if JIBOIA_WITH_CUDA

TEST(MemoryPlanCuda, IsWhatAMicroStepUses) {
  JIBOIA_SKIP_WITHOUT_GPU();
  Exec exec = CudaExec(0);
  for (Recompute recompute : {Recompute::kNone, Recompute::kSelective, Recompute::kBlock}) {
    for (Precision precision : {Precision::kFp32, Precision::kBf16}) {
      for (bool starts : {false, true}) {
        RunConfig config;
        config.model = tiny_config();
        config.precision = precision;
        config.train.recompute = recompute;
        config.train.micro_batch_size = 2;
        config.data.seq_len = 50;
        config.data.reset_at_document_starts = starts;
        const MambaLm model(config.model);
        const MemoryPlan plan = plan_memory(config, model, exec);
        ParameterStore parameters(exec, model.parameters(), Dtype::kF32,
                                  StoreContents::kValuesAndTraining,
                                  activations_for(exec, precision));
        initialise(parameters, 1);
        TokenBatch batch = random_batch(config.model, 2, 50);
        if (starts) {
          batch.document_start.assign(100, 0);
          for (std::size_t i = 9; i < 50; ++i) batch.document_start[i] = 9;
        }
        const LossRun run = run_loss(model, parameters, batch, config.loss.z_loss, recompute, exec);
        EXPECT_EQ(run.peak_bytes, plan.arena_bytes)
            << "recompute " << static_cast<int>(recompute) << ", bf16 "
            << (precision == Precision::kBf16) << ", document starts " << starts;
        EXPECT_EQ(run.planned_bytes, plan.arena_bytes);
        EXPECT_GT(run.loss, 0);
      }
    }
  }
}

#endif

}  // namespace
}  // namespace jiboia::test
