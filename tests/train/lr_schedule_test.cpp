#include "train/optim/lr_schedule.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numbers>

#include "core/error.h"

namespace jiboia {
namespace {

TEST(LearningRate, FollowsHuggingFacesCosine) {
  const ScheduleConfig cosine;  // no warmup, floor 0, as the Mambarim notebook
  const std::int64_t steps = 94'803;
  EXPECT_DOUBLE_EQ(learning_rate(cosine, 5e-5, 0, steps), 5e-5);
  // The last update is not zero but about lr * (pi / 2T)^2.
  const double angle = std::numbers::pi / (2.0 * static_cast<double>(steps));
  EXPECT_NEAR(learning_rate(cosine, 5e-5, steps - 1, steps), 5e-5 * angle * angle, 1e-20);
  EXPECT_DOUBLE_EQ(learning_rate(cosine, 5e-5, steps, steps), 0);
  // cos(pi / 3) = 1/2, so a third of the way leaves three quarters.
  EXPECT_NEAR(learning_rate(cosine, 5e-5, steps / 3, steps), 0.75 * 5e-5, 1e-18);
}

TEST(LearningRate, WarmsUpFromZeroInHuggingFacesIndexing) {
  const ScheduleConfig warm{.warmup_steps = 4};
  const double expected[] = {0, 0.25, 0.5, 0.75, 1.0};
  for (int step = 0; step < 5; ++step) {
    EXPECT_DOUBLE_EQ(learning_rate(warm, 1.0, step, 12), expected[step]) << step;
  }
  EXPECT_DOUBLE_EQ(learning_rate(warm, 1.0, 8, 12), 0.5);  // halfway between 4 and 12
}

TEST(LearningRate, FollowsOpenLmsSchedule) {  // Mamba-7B's numbers
  const ScheduleConfig open_lm{
      .indexing = ScheduleIndexing::kOpenLm, .warmup_steps = 2000, .min_lr = 1e-5};
  const std::int64_t steps = 572'204;
  const double peak = 3e-4;
  EXPECT_DOUBLE_EQ(learning_rate(open_lm, peak, 0, steps), 1.5e-7);
  EXPECT_DOUBLE_EQ(learning_rate(open_lm, peak, 999, steps), 1.5e-4);
  EXPECT_DOUBLE_EQ(learning_rate(open_lm, peak, 1999, steps), peak);
  EXPECT_DOUBLE_EQ(learning_rate(open_lm, peak, 2000, steps), peak);  // two at the peak
  EXPECT_LT(learning_rate(open_lm, peak, 2001, steps), peak);
  EXPECT_NEAR(learning_rate(open_lm, peak, (2000 + steps) / 2, steps), 1.55e-4, 1e-18);
  EXPECT_GT(learning_rate(open_lm, peak, steps - 1, steps), 1e-5);  // above the floor, just
  EXPECT_NEAR(learning_rate(open_lm, peak, steps - 1, steps), 1e-5, 1e-14);
  EXPECT_DOUBLE_EQ(learning_rate(open_lm, peak, steps, steps), 1e-5);
  EXPECT_DOUBLE_EQ(learning_rate(open_lm, peak, steps + 7, steps), 1e-5);
}

TEST(LearningRate, HoldsThePeakUntilTheCooldown) {
  ScheduleConfig schedule{.name = ScheduleName::kCosineCooldown,
                          .warmup_steps = 10,
                          .min_lr = 0.2,
                          .cooldown_steps = 40};
  EXPECT_DOUBLE_EQ(learning_rate(schedule, 1.0, 5, 100), 0.5);
  for (int step : {10, 35, 60}) EXPECT_DOUBLE_EQ(learning_rate(schedule, 1.0, step, 100), 1.0);
  EXPECT_NEAR(learning_rate(schedule, 1.0, 70, 100), 0.2 + 0.8 * (2 + std::sqrt(2.0)) / 4, 1e-15);
  EXPECT_NEAR(learning_rate(schedule, 1.0, 80, 100), 0.6, 1e-15);
  EXPECT_DOUBLE_EQ(learning_rate(schedule, 1.0, 100, 100), 0.2);

  schedule.name = ScheduleName::kWsd;
  for (int step : {10, 35, 60}) EXPECT_DOUBLE_EQ(learning_rate(schedule, 1.0, step, 100), 1.0);
  EXPECT_NEAR(learning_rate(schedule, 1.0, 61, 100), 0.98, 1e-15);
  EXPECT_NEAR(learning_rate(schedule, 1.0, 70, 100), 0.8, 1e-15);
  EXPECT_NEAR(learning_rate(schedule, 1.0, 99, 100), 0.22, 1e-15);
  EXPECT_DOUBLE_EQ(learning_rate(schedule, 1.0, 100, 100), 0.2);
}

TEST(LearningRate, StaysConstantAfterTheWarmup) {
  const ScheduleConfig constant{.name = ScheduleName::kConstant,
                                .indexing = ScheduleIndexing::kOpenLm,
                                .warmup_steps = 2,
                                .min_lr = 0.1};
  EXPECT_DOUBLE_EQ(learning_rate(constant, 1.0, 0, 10), 0.5);
  for (int step : {1, 2, 9, 10}) EXPECT_DOUBLE_EQ(learning_rate(constant, 1.0, step, 10), 1.0);
}

TEST(LearningRate, CanBeAllWarmup) {
  const ScheduleConfig warm{.indexing = ScheduleIndexing::kOpenLm, .warmup_steps = 10};
  EXPECT_DOUBLE_EQ(learning_rate(warm, 1.0, 9, 10), 1.0);
  EXPECT_DOUBLE_EQ(learning_rate(warm, 1.0, 10, 10), 0.0);
}

TEST(LearningRate, RefusesANegativeStep) { EXPECT_THROW(learning_rate({}, 1.0, -1, 10), Error); }

}  // namespace
}  // namespace jiboia
