#pragma once

namespace jiboia {

/// Turns SIGTERM and SIGINT into a wish to stop at the next step boundary. A second signal of the
/// same kind ends the process at once. One object at a time.
class StopSignal {
 public:
  StopSignal();
  ~StopSignal();
  StopSignal(const StopSignal&) = delete;
  StopSignal& operator=(const StopSignal&) = delete;

  /// The signal that came, 0 when none did.
  int received() const;
};

}  // namespace jiboia
