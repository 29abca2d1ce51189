#include "train/tools/child_process.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <csignal>
#include <stdexcept>

#include "core/error.h"

namespace jiboia {
namespace {

TEST(ChildProcess, TellsNothingWhenAllIsWell) {
  int here = 1;
  EXPECT_EQ(run_in_child([&] { here = 2; }), "");
  EXPECT_EQ(here, 1);  // the task ran elsewhere
}

TEST(ChildProcess, PassesMessagesOn) {
  EXPECT_EQ(run_in_child([] { throw std::runtime_error("row 5"); }), "row 5");
  const std::string longer_than_a_pipe(1 << 20, 'x');
  EXPECT_EQ(run_in_child([&] { throw std::runtime_error(longer_than_a_pipe); }),
            longer_than_a_pipe);
}

TEST(ChildProcess, TellsFailuresOfTheSystemFromOthers) {
  EXPECT_EQ(run_in_child([] { fail(ErrorKind::kData, "row 5"); }), "row 5");
  try {
    run_in_child([] { fail(ErrorKind::kIo, "no descriptor"); });
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kIo);
    EXPECT_STREQ(error.what(), "no descriptor");
  }
}

TEST(ChildProcess, OutlivesCrashes) {
  for (const int signal : {SIGSEGV, SIGABRT, SIGKILL}) {
    EXPECT_THAT(run_in_child([&] {
                  std::signal(signal, SIG_DFL);  // sanitizers have handlers of their own
                  std::raise(signal);
                }),
                testing::HasSubstr("crashed"))
        << signal;
  }
}

TEST(ChildProcess, OutlivesEarlyExits) {
  EXPECT_EQ(run_in_child([] { std::_Exit(5); }), "reading it failed");
}

}  // namespace
}  // namespace jiboia
