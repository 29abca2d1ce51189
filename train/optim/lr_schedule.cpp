#include "train/optim/lr_schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "core/error.h"

namespace jiboia {
namespace {

/// How far `step` is on the way from `begin` to `end`: 0 before, 1 after.
double progress(std::int64_t step, std::int64_t begin, std::int64_t end) {
  if (step >= end) return 1;
  if (step <= begin) return 0;
  return static_cast<double>(step - begin) / static_cast<double>(end - begin);
}

double half_cosine(double from, double to, double progress) {
  return to + (from - to) * 0.5 * (1 + std::cos(std::numbers::pi * progress));
}

}  // namespace

double learning_rate(const ScheduleConfig& schedule, double base_lr, std::int64_t step,
                     std::int64_t max_steps) {
  require(step >= 0, ErrorKind::kInvalidArgument, "learning_rate: step is {}, expected 0 or more",
          step);
  const std::int64_t warmup = schedule.warmup_steps;
  if (step < warmup) {
    const std::int64_t done = schedule.indexing == ScheduleIndexing::kOpenLm ? step + 1 : step;
    return base_lr * static_cast<double>(done) / static_cast<double>(warmup);
  }
  const std::int64_t cooldown_begin = std::max(warmup, max_steps - schedule.cooldown_steps);
  switch (schedule.name) {
    case ScheduleName::kCosine:
      return half_cosine(base_lr, schedule.min_lr, progress(step, warmup, max_steps));
    case ScheduleName::kCosineCooldown:
      return half_cosine(base_lr, schedule.min_lr, progress(step, cooldown_begin, max_steps));
    case ScheduleName::kWsd:
      return std::lerp(base_lr, schedule.min_lr, progress(step, cooldown_begin, max_steps));
    case ScheduleName::kConstant: return base_lr;
  }
  fail(ErrorKind::kInternal, "learning_rate: unknown schedule");
}

}  // namespace jiboia
