#include "core/cpu_features.h"

#include <gtest/gtest.h>

#include <cstring>
#include <string>

namespace jiboia {
namespace {

bool compiled_for(const char* name) {
  for (const auto* feature = detail::kCpuFeatures; feature->name; ++feature) {
    if (std::strcmp(feature->name, name) == 0) return feature->compiled;
  }
  return false;
}

TEST(CpuFeatures, KnowsWhatTheCompilerWasTold) {
#ifdef __AVX2__
  EXPECT_TRUE(compiled_for("avx2"));
#else
  EXPECT_FALSE(compiled_for("avx2"));
#endif
#ifdef __AVX512F__
  EXPECT_TRUE(compiled_for("avx512f"));
#else
  EXPECT_FALSE(compiled_for("avx512f"));
#endif
}

TEST(CpuFeatures, NamesTheFirstThatIsMissing) {
  const detail::CpuFeature features[] = {
      {"avx", true}, {"gfni", false}, {"avx2", true}, {"avx512f", true}, {nullptr, false}};
  const auto everything = [](const char*) { return true; };
  const auto old_cpu = [](const char* name) { return std::string(name) == "avx"; };
  EXPECT_EQ(detail::missing_feature(features, everything), nullptr);
  EXPECT_STREQ(detail::missing_feature(features, old_cpu), "avx2");
}

TEST(CpuFeatures, ThisCpuHasWhatTheTestsWereCompiledFor) {
  EXPECT_EXIT((require_cpu_features(), std::_Exit(0)), testing::ExitedWithCode(0), "");
}

}  // namespace
}  // namespace jiboia
