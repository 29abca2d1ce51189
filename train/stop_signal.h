#pragma once
#include <array>
#include <csignal>

namespace jiboia {

/// Turns SIGTERM, SIGINT and SIGHUP into a wish to stop at the next step boundary. A second SIGTERM
/// or SIGINT ends the process at once. Two stay ignored where they were: SIGHUP under nohup, SIGINT
/// of what a script starts with &. SIGTERM is heard even so: batch systems send it before they
/// kill. The destructor puts back what was there before. One object at a time.
class StopSignal {
 public:
  StopSignal();
  ~StopSignal();
  StopSignal(const StopSignal&) = delete;
  StopSignal& operator=(const StopSignal&) = delete;

  /// The signal that came, 0 when none did.
  int received() const;

 private:
  static constexpr std::array kSignals = {SIGTERM, SIGINT, SIGHUP};
  std::array<struct sigaction, kSignals.size()> before_{};
};

}  // namespace jiboia
