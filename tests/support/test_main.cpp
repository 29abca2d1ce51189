#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdio>

// Beside 0 and 1: 77 when every selected test was skipped, so that CTest says so; a filter that
// selects nothing is an error.
int main(int argc, char** argv) {
  testing::InitGoogleMock(&argc, argv);
  const int result = RUN_ALL_TESTS();
  if (testing::GTEST_FLAG(list_tests)) return result;
  const testing::UnitTest& tests = *testing::UnitTest::GetInstance();
  if (tests.test_to_run_count() == 0) {
    std::fprintf(stderr, "no test of this program matches the filter\n");
    return 1;
  }
  const bool all_skipped = tests.skipped_test_count() == tests.test_to_run_count();
  return result == 0 && all_skipped ? 77 : result;
}
