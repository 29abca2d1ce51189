#include "autograd/op_timer.h"

#include <algorithm>
#include <vector>

namespace jiboia {

void OpTimer::collect(std::size_t count) {
  const auto end = pending_.begin() + static_cast<std::ptrdiff_t>(count);
  for (auto measured = pending_.begin(); measured != end; ++measured) {
    Entry& entry = entries_[measured->key];
    ++entry.calls;
    entry.seconds += measured->end.seconds_since(measured->begin);
  }
  pending_.erase(pending_.begin(), end);
}

std::string to_text(const OpTimer& timer, double total_s) {
  std::vector<std::pair<OpTimer::Key, OpTimer::Entry>> rows(timer.entries().begin(),
                                                            timer.entries().end());
  std::stable_sort(rows.begin(), rows.end(), [](const auto& a, const auto& b) {
    return a.second.seconds > b.second.seconds;
  });
  std::string text =
      fmt::format("{:<18}{:<10}{:>8}{:>12}{:>8}\n", "op", "pass", "calls", "ms", "share");
  if (rows.empty()) return text;
  double rest = total_s;
  for (const auto& [key, entry] : rows) {
    text += fmt::format("{:<18}{:<10}{:>8}{:>12.2f}{:>7.1f}%\n", key.first,
                        key.second == Pass::kForward ? "forward" : "backward", entry.calls,
                        entry.seconds * 1e3, 100 * entry.seconds / total_s);
    rest -= entry.seconds;
  }
  text += fmt::format("{:<36}{:>12.2f}{:>7.1f}%\n", "everything else", rest * 1e3,
                      100 * rest / total_s);
  text += fmt::format("{:<36}{:>12.2f}\n", "total", total_s * 1e3);
  return text;
}

}  // namespace jiboia
