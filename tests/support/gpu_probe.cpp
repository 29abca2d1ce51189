#include <cstdio>

#include "tests/support/gpu.h"

// For tests that are not in C++: prints what GPU the backend has and ends with 0, or why there is
// none and 77.
int main() {
  using namespace jiboia::test;
  if (!why_no_gpu().empty()) {
    std::puts(why_no_gpu().c_str());
    return 77;
  }
#if JIBOIA_WITH_CUDA
  std::puts(gpu().gpu().name.c_str());
#endif
  return 0;
}
