#pragma once

namespace jiboia {

/// Turns SIGTERM, SIGINT and SIGHUP into a wish to stop at the next step boundary. A second SIGTERM
/// or SIGINT ends the process at once. SIGHUP stays ignored where it was, as nohup has it. One
/// object at a time.
class StopSignal {
 public:
  StopSignal();
  ~StopSignal();
  StopSignal(const StopSignal&) = delete;
  StopSignal& operator=(const StopSignal&) = delete;

  /// The signal that came, 0 when none did.
  int received() const;

 private:
  bool heeds_hangup_;
};

}  // namespace jiboia
