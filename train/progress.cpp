#include "train/progress.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "core/log.h"

namespace jiboia {
namespace {

void write_text(const std::string& text) {
  std::fwrite(text.data(), 1, text.size(), stderr);
  std::fflush(stderr);
}

}  // namespace

std::string duration_text(double seconds) {
  const auto total = static_cast<std::int64_t>(std::llround(std::max(0.0, seconds)));
  const std::int64_t h = total / 3600, m = total / 60 % 60, s = total % 60;
  return h ? fmt::format("{}:{:02}:{:02}", h, m, s) : fmt::format("{}:{:02}", m, s);
}

Progress::Progress(std::int64_t every) : every_(every), terminal_(isatty(STDERR_FILENO) != 0) {}

Progress::~Progress() {
  if (line_shown_) write_text("\n");
}

void Progress::show(const Step& step) {
  const bool due = step.step % every_ == 0 || step.step == step.max_steps || step.step == 1;
  if (!terminal_ && !due) return;
  const std::string text = fmt::format(
      "step {}/{}  loss {:.4f}  lr {:.2e}  grad norm {:.3f}  {:.1f}k tokens/s{}{}  ETA {}",
      step.step, step.max_steps, step.loss, step.lr, step.grad_norm, step.tokens_per_second / 1000,
      step.share_of_peak > 0 ? fmt::format("  MFU {:.1f}%", 100 * step.share_of_peak) : "",
      step.memory.empty() ? "" : "  " + step.memory, duration_text(step.eta_s));
  write_text(log::line_start() + text + (terminal_ ? "" : "\n"));
  line_shown_ = terminal_;
}

void Progress::say(const std::string& text) {
  log::info("{}", text);
  line_shown_ = false;
}

}  // namespace jiboia
