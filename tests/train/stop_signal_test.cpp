#include "train/stop_signal.h"

#include <gtest/gtest.h>

#include <csignal>
#include <thread>

namespace jiboia {
namespace {

using Handler = void (*)(int);

void do_nothing(int) {}

Handler handler_of(int signal) {
  struct sigaction action = {};
  sigaction(signal, nullptr, &action);
  return action.sa_handler;
}

class StopSignalTest : public testing::TestWithParam<int> {
 protected:
  ~StopSignalTest() override { std::signal(GetParam(), before_); }

 private:
  Handler before_ = std::signal(GetParam(), SIG_DFL);
};

TEST_P(StopSignalTest, IsHeardOnAnyThread) {
  const StopSignal stop;
  EXPECT_EQ(stop.received(), 0);
  std::thread([] { std::raise(GetParam()); }).join();  // raise() signals the thread that calls it
  EXPECT_EQ(stop.received(), GetParam());
}

TEST_P(StopSignalTest, IsForgottenByTheNext) {
  {
    const StopSignal stop;
    std::raise(GetParam());
  }
  EXPECT_EQ(StopSignal().received(), 0);
}

TEST_P(StopSignalTest, StaysIgnoredWhereItWasButForSigterm) {
  std::signal(GetParam(), SIG_IGN);
  {
    const StopSignal stop;
    std::raise(GetParam());
    EXPECT_EQ(stop.received(), GetParam() == SIGTERM ? SIGTERM : 0);
  }
  EXPECT_EQ(handler_of(GetParam()), SIG_IGN);
}

TEST_P(StopSignalTest, IsAfterwardsHandledAsBefore) {
  for (const Handler before : {Handler{SIG_DFL}, Handler{do_nothing}}) {
    std::signal(GetParam(), before);
    {
      const StopSignal stop;
      EXPECT_NE(handler_of(GetParam()), before);
      std::raise(GetParam());
    }
    EXPECT_EQ(handler_of(GetParam()), before);
  }
}

INSTANTIATE_TEST_SUITE_P(, StopSignalTest, testing::Values(SIGTERM, SIGINT, SIGHUP));

}  // namespace
}  // namespace jiboia
