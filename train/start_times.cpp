#include "train/start_times.h"

#include <fmt/format.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <iterator>
#include <sstream>

namespace jiboia {
namespace {

/// Seconds since the machine was started.
double now_s() {
  timespec time{};
  ::clock_gettime(CLOCK_BOOTTIME, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

/// When this process was started, on the clock of now_s(), to a hundredth; now, where Linux does
/// not say. The 22nd field of /proc/self/stat; the second, in parentheses, may hold anything.
double started_s() {
  std::ifstream file("/proc/self/stat");
  const std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  const double now = now_s();
  const std::size_t name_end = text.rfind(')');
  if (name_end == std::string::npos) return now;
  std::istringstream fields(text.substr(name_end + 1));
  std::string skipped;
  for (int field = 3; field < 22; ++field) fields >> skipped;
  double ticks = 0;
  if (!(fields >> ticks)) return now;
  return std::min(now, ticks / static_cast<double>(::sysconf(_SC_CLK_TCK)));
}

}  // namespace

StartTimes::StartTimes() : start_s_(started_s()) { end("program"); }

double StartTimes::total_s() const { return now_s() - start_s_; }

void StartTimes::end(const char* what) {
  double before = 0;
  for (const auto& [unused, seconds] : parts_) before += seconds;
  parts_.emplace_back(what, total_s() - before);
}

std::string StartTimes::text() const {
  std::string text;
  for (const auto& [what, seconds] : parts_) {
    text += fmt::format("{}{} {:.2f}{}", text.empty() ? "" : ", ", what, seconds,
                        text.empty() ? " s" : "");
  }
  return text;
}

}  // namespace jiboia
