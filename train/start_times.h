#pragma once
#include <string>
#include <utility>
#include <vector>

namespace jiboia {

/// Where the time goes from the start of this process to a point in its work.
class StartTimes {
 public:
  /// What has passed already belongs to the loading of the program.
  StartTimes();

  /// What went on since the last call was `what`, which must outlive this.
  void end(const char* what);
  /// Seconds since the process was started.
  double total_s() const;
  /// "program 0.11 s, device 0.85, data 0.02", in their order.
  std::string text() const;

 private:
  double start_s_;                                     // since the machine was started
  std::vector<std::pair<const char*, double>> parts_;  // seconds
};

}  // namespace jiboia
