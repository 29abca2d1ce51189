#include "core/exec.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <stdexcept>
#include <vector>

#include "core/error.h"

namespace jiboia {
namespace {

TEST(CpuExec, RunsEveryTileOnce) {
  for (int threads : {1, 2, 7}) {
    CpuExec cpu(threads);
    EXPECT_EQ(cpu.threads(), threads);
    for (std::int64_t tiles : {0, 1, 2, 5, 1000}) {
      std::vector<std::atomic<int>> calls(static_cast<std::size_t>(tiles));
      cpu.parallel_for(tiles, [&](std::int64_t i) { ++calls[static_cast<std::size_t>(i)]; });
      for (const auto& count : calls) EXPECT_EQ(count, 1);
    }
  }
}

TEST(CpuExec, SurvivesManyShortRuns) {
  CpuExec cpu(4);
  std::atomic<std::int64_t> sum{0};
  for (int i = 0; i < 2'000; ++i) cpu.parallel_for(3, [&](std::int64_t tile) { sum += tile; });
  EXPECT_EQ(sum, 6'000);
}

TEST(CpuExec, RethrowsAndGoesOn) {
  CpuExec cpu(3);
  for (int i = 0; i < 100; ++i) {
    EXPECT_THROW(cpu.parallel_for(50,
                                  [](std::int64_t tile) {
                                    if (tile == 20) throw std::runtime_error("tile 20");
                                  }),
                 std::runtime_error);
  }
  std::atomic<int> calls{0};
  cpu.parallel_for(10, [&](std::int64_t) { ++calls; });
  EXPECT_EQ(calls, 10);
}

/// In a process of its own: lets it have 100 MiB more, too few for the stacks of 64 threads.
[[noreturn]] void start_threads_without_memory() {
  rlim_t pages = 0;
  std::ifstream("/proc/self/statm") >> pages;
  const rlim_t bytes = pages * static_cast<rlim_t>(sysconf(_SC_PAGESIZE)) + (rlim_t{100} << 20);
  const rlimit limit{.rlim_cur = bytes, .rlim_max = bytes};
  if (setrlimit(RLIMIT_AS, &limit) != 0) std::exit(1);
  try {
    const CpuExec cpu(64);
    std::cerr << "all threads have started" << std::endl;
  } catch (const Error& error) {
    std::cerr << to_string(error.kind()) << ": " << error.what() << std::endl;
  }
  std::exit(0);
}

TEST(CpuExec, StopsTheThreadsThatStartedWhenOneDoesNot) {
  EXPECT_EXIT(start_threads_without_memory(), testing::ExitedWithCode(0),
              testing::HasSubstr("out of memory: the system starts only "));
}

}  // namespace
}  // namespace jiboia
