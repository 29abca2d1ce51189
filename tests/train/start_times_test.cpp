#include "train/start_times.h"

#include <fmt/format.h>
#include <gmock/gmock.h>

#include <chrono>
#include <cstdio>
#include <thread>

namespace jiboia {
namespace {

using Clock = std::chrono::steady_clock;
const Clock::time_point kFirst = Clock::now();  // before main()

double seconds_since_first() {
  return std::chrono::duration<double>(Clock::now() - kFirst).count();
}

TEST(StartTimes, CountFromTheStartOfTheProcess) {
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  const StartTimes times;
  const double here = seconds_since_first(), total = times.total_s();
  EXPECT_GT(total, here - 0.02);  // Linux counts in hundredths
  EXPECT_LT(total, here + 60);    // and not from the start of the machine, say
}

TEST(StartTimes, NameTheirPartsAndLeaveNothingOut) {
  StartTimes times;
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  times.end("device");
  times.end("data");
  const double total = times.total_s();
  double program = 0, device = 0, data = 0;
  ASSERT_EQ(std::sscanf(times.text().c_str(), "program %lf s, device %lf, data %lf", &program,
                        &device, &data),
            3)
      << times.text();
  EXPECT_GE(device, 0.2);
  EXPECT_LT(data, device);
  EXPECT_NEAR(program + device + data, total, 0.05);
  EXPECT_EQ(times.text(),
            fmt::format("program {:.2f} s, device {:.2f}, data {:.2f}", program, device, data));
}

}  // namespace
}  // namespace jiboia
