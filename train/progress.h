#pragma once
#include <cstdint>
#include <string>

namespace jiboia {

/// Shows how a run goes: in a terminal one line that is rewritten, elsewhere plain lines.
/// Writes to stderr; a closed stderr does not matter.
class Progress {
 public:
  struct Step {
    std::int64_t step = 0, max_steps = 0;
    double loss = 0, lr = 0, grad_norm = 0;
    double tokens_per_second = 0;
    double share_of_peak = 0;  ///< 0: not known
    std::string memory{};      ///< empty: not shown
    double eta_s = 0;
  };
  explicit Progress(std::int64_t every);
  ~Progress();

  /// After each step; says something for the first, every `every`-th and the last one, in a
  /// terminal for all.
  void show(const Step& step);
  /// A line of its own, under or above the progress line.
  void say(const std::string& text);

 private:
  std::int64_t every_;
  bool terminal_;
  bool line_shown_ = false;
};

/// "1:02:03", "2:03"
std::string duration_text(double seconds);

}  // namespace jiboia
