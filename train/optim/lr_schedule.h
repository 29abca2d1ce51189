#pragma once
#include <array>
#include <cstdint>

#include "train/config/option.h"

namespace jiboia {

/// How the learning rate moves after the warmup.
enum class ScheduleName {
  kCosine,          ///< half a cosine from the peak to the floor at the last step
  kCosineCooldown,  ///< the peak, then half a cosine over the last cooldown steps
  kConstant,        ///< the peak
  kWsd,             ///< warmup, stable, decay: the peak, then a line over the last cooldown steps
};
template <>
inline constexpr std::array kEnumNames<ScheduleName>{"cosine", "cosine_cooldown", "constant",
                                                     "wsd"};

/// Which update of the warmup is the first to move: the two published conventions.
enum class ScheduleIndexing {
  kHuggingFace,  ///< update k has lr * k / W: the first update moves nothing
  kOpenLm,       ///< update s has lr * (s + 1) / W: the last one of the warmup has the peak
};
template <>
inline constexpr std::array kEnumNames<ScheduleIndexing>{"huggingface", "open_lm"};

struct ScheduleConfig {
  ScheduleName name = ScheduleName::kCosine;
  ScheduleIndexing indexing = ScheduleIndexing::kHuggingFace;
  std::int64_t warmup_steps = 0;
  double min_lr = 0;
  std::int64_t cooldown_steps = 0;  ///< of cosine_cooldown and wsd

  bool operator==(const ScheduleConfig&) const = default;
};

/// The learning rate of update `step` (from 0) of `max_steps`, a pure function. With W warmup
/// steps, T = max_steps, peak b = base_lr, floor m = min_lr and C cooldown steps:
///   step < W: b * step / W (huggingface) or b * (step + 1) / W (open_lm);
///   cosine: m + (b - m) * (1 + cos(pi * (step - W) / (T - W))) / 2;
///   cosine_cooldown: b, and from T - C on cosine's formula with T - C for W;
///   wsd: b, and from T - C on b + (m - b) * (step - (T - C)) / C.
/// The floor belongs to step T: the last update is one step above it. Steps from T on get it.
/// Sources: transformers' get_cosine_schedule_with_warmup (m = 0); open_lm's scheduler.py
/// (cosine_lr); Hu et al. 2024, arXiv:2404.06395 (wsd). Errors: InvalidArgument for a step below 0.
double learning_rate(const ScheduleConfig& schedule, double base_lr, std::int64_t step,
                     std::int64_t max_steps);

}  // namespace jiboia
