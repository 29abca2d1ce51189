#include "tests/core/cuda_faults.h"

#include <gmock/gmock.h>

#include <cstdio>
#include <cstdlib>

#include "core/memory.h"
#include "tests/support/gpu.h"

namespace jiboia::test {
namespace {

using testing::AllOf;
using testing::HasSubstr;

class FaultsCuda : public testing::Test {
 protected:
  void SetUp() override { JIBOIA_SKIP_WITHOUT_GPU(); }
};

TEST_F(FaultsCuda, ARefusedLaunchNamesOpFileAndLine) {
  try {
    launch_too_many_threads(gpu());
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kCuda);
    EXPECT_THAT(error.what(), AllOf(HasSubstr("refused_op ("),
                                    HasSubstr(fmt::format("{}:{})", kFaultsFile, kRefusedLine)),
                                    HasSubstr("cudaErrorInvalid")));
  }
  // Nothing was lost.
  const Buffer buffer = allocate(gpu(), sizeof(float), "a test");
  launch_write(gpu(), reinterpret_cast<float*>(buffer.data()), 7);
  float value = 0;
  copy(gpu(), Tensor(Spec(Dtype::kF32, {1}), buffer.data()),
       Tensor(Spec(Dtype::kF32, {1}), &value));
  EXPECT_NO_THROW(gpu().wait());
  EXPECT_EQ(value, 7);
}

/// Ends the process: 3 when wait() says that a kernel failed, which goes to stderr.
[[noreturn]] void wait_for_a_fault() {
  int code = 1;
  launch_write(gpu(), nullptr, 7);
  try {
    gpu().wait();
  } catch (const Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    code = error.kind() == ErrorKind::kCuda ? 3 : 2;
  }
  std::_Exit(code);
}

TEST_F(FaultsCuda, AKernelThatFailsIsReportedByTheWaitThatFollows) {
  if (gpu_is_emulated()) GTEST_SKIP() << "a null pointer ends the process on an emulated GPU";
  // The child begins anew: a fork of this process could not use the GPU.
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(wait_for_a_fault(), testing::ExitedWithCode(3),
              "cudaErrorIllegalAddress.*CUDA_LAUNCH_BLOCKING=1");
  EXPECT_NO_THROW(gpu().wait());  // the fault was the child's
}

}  // namespace
}  // namespace jiboia::test
