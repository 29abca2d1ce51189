#pragma once
#include <gtest/gtest.h>

#include <cstdlib>
#include <string>

#include "core/error.h"
#include "core/exec.h"

/// The GPU for tests. A test case that needs one begins with JIBOIA_SKIP_WITHOUT_GPU() and is in a
/// suite whose name ends in "Cuda", so that CTest runs it under the label `gpu` (jiboia_test(...
/// GPU)). Calls of CUDA overloads outside of check_op_cuda() and OpRun stand within
/// #if JIBOIA_WITH_CUDA: builds without the backend do not have them.
namespace jiboia::test {

/// Why this process has no GPU to test on; "" when it has one.
inline const std::string& why_no_gpu() {
#if JIBOIA_WITH_CUDA
  static const std::string why = CudaExec::device_count() > 0 ? "" : "no GPU was found";
#else
  static const std::string why = "built without the CUDA backend";
#endif
  return why;
}

/// GPU 0, made when first asked for; never destroyed, since the driver may be gone before.
/// Errors: Cuda without one.
inline CudaExec& gpu() {
  require(why_no_gpu().empty(), ErrorKind::kCuda, "tests: {}", why_no_gpu());
#if JIBOIA_WITH_CUDA
  static auto* exec = new CudaExec(0);
  return *exec;
#else
  std::abort();
#endif
}

/// Whether the GPU is the emulator, which is slow: for choosing smaller shapes.
inline bool gpu_is_emulated() {
#if JIBOIA_WITH_CUDA
  return gpu().gpu().name == "emulated GPU";
#else
  return false;
#endif
}

/// Whether an environment variable is set to something else than 0.
inline bool is_set(const char* variable) {
  const char* value = std::getenv(variable);
  return value && *value && std::string(value) != "0";
}

/// Whether only small shapes are wanted, for tools that slow kernels down (JIBOIA_SMALL_SHAPES=1).
inline bool only_small_shapes() { return is_set("JIBOIA_SMALL_SHAPES"); }

}  // namespace jiboia::test

/// Leaves a test where there is no GPU: skipped, or failed with JIBOIA_REQUIRE_GPU=1.
#define JIBOIA_SKIP_WITHOUT_GPU()                                                    \
  do {                                                                               \
    if (!::jiboia::test::why_no_gpu().empty()) {                                     \
      if (::jiboia::test::is_set("JIBOIA_REQUIRE_GPU")) {                            \
        FAIL() << "JIBOIA_REQUIRE_GPU is set, but " << ::jiboia::test::why_no_gpu(); \
      }                                                                              \
      GTEST_SKIP() << ::jiboia::test::why_no_gpu();                                  \
    }                                                                                \
  } while (false)
