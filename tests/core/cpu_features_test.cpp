#include "core/cpu_features.h"

#include <gtest/gtest.h>

namespace jiboia {
namespace {

TEST(CpuFeatures, ThisCpuHasWhatTheProgramsWereCompiledFor) {
  EXPECT_EXIT((require_cpu_features(), std::_Exit(0)), testing::ExitedWithCode(0), "");
}

}  // namespace
}  // namespace jiboia
