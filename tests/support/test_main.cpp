#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdio>

#include "tests/support/gpu.h"

// Beside 0 and 1: 77 when every selected test was skipped, so that CTest says so; a filter that
// selects nothing is an error, but for that of GPU tests where none could be compiled.
int main(int argc, char** argv) {
  testing::InitGoogleMock(&argc, argv);
  const int result = RUN_ALL_TESTS();
  if (testing::GTEST_FLAG(list_tests)) return result;
  const testing::UnitTest& tests = *testing::UnitTest::GetInstance();
  if (tests.test_to_run_count() == 0) {
#if !JIBOIA_WITH_CUDA
    if (testing::GTEST_FLAG(filter) == "*Cuda.*" && !jiboia::test::is_set("JIBOIA_REQUIRE_GPU")) {
      std::fprintf(stderr, "%s\n", jiboia::test::why_no_gpu().c_str());
      return 77;
    }
#endif
    std::fprintf(stderr, "no test of this program matches the filter\n");
    return 1;
  }
  const bool all_skipped = tests.skipped_test_count() == tests.test_to_run_count();
  return result == 0 && all_skipped ? 77 : result;
}
