#pragma once
#include "kernels/selective_scan/selective_scan_tiles.h"
#include "tests/support/gpu.h"
#include "tests/support/op_run.h"

/// Inputs of selective scans, for the tests of both backends.
namespace jiboia::test {

using Scan = SelectiveScan;

/// Whether the GPU has too little shared memory for the fast kernels; false without a GPU.
inline bool gpu_is_small_for_fast_scan() {
#if JIBOIA_WITH_CUDA
  return why_no_gpu().empty() && gpu().gpu().shared_bytes_per_block < scan_tiles::kSharedBytes;
#else
  return false;
#endif
}

/// Leaves a test of the fast kernels where they cannot run.
#define JIBOIA_SKIP_WITHOUT_FAST_SCAN()                                                \
  do {                                                                                 \
    JIBOIA_SKIP_WITHOUT_GPU();                                                         \
    if (::jiboia::test::gpu_is_small_for_fast_scan()) GTEST_SKIP() << "a smaller GPU"; \
  } while (false)

/// Ordinary values of these shapes.
inline OpCheck<Scan> scan_check(std::int64_t B, std::int64_t L, std::int64_t D, std::int64_t N) {
  return {.inputs = {.u = {.shape = {B, L, D}, .low = -1, .high = 1},
                     .dt = {.shape = {B, L, D}, .low = -3, .high = 2},
                     .a_log = {.shape = {D, N}, .low = -2, .high = 2},
                     .b = {.shape = {B, L, N}, .low = -1, .high = 1},
                     .c = {.shape = {B, L, N}, .low = -1, .high = 1},
                     .d_skip = {.shape = {D}, .low = -1, .high = 1},
                     .z = {.shape = {B, L, D}, .low = -3, .high = 3},
                     .dt_bias = {.shape = {D}, .low = -2, .high = 1}},
          .saved_outputs = {"states"}};
}

/// Cases of which `few` go through every path of the kernels: alone where kernels are slowed down
/// (JIBOIA_SMALL_SHAPES), which launches by the thousand are too many for.
template <class Case>
std::vector<Case> cases(std::vector<Case> few, const std::vector<Case>& more) {
  if (!only_small_shapes()) few.insert(few.end(), more.begin(), more.end());
  return few;
}

/// Where documents begin.
using Starts = std::vector<std::int32_t>;

/// Gives every row documents that begin at the given steps.
inline void pack_documents(OpCheck<Scan>& check, const std::vector<std::int32_t>& starts) {
  const Shape shape = check.inputs.u.shape;
  TestInput& input = check.inputs.document_start;
  input.shape = {shape[0], shape[1]};
  for (std::int64_t row = 0; row < shape[0]; ++row) {
    std::int32_t start = 0;
    for (std::int32_t t = 0; t < shape[1]; ++t) {
      if (std::find(starts.begin(), starts.end(), t) != starts.end()) start = t;
      input.integers.push_back(start);
    }
  }
}

/// Steps [begin, end) of a run's inputs, to be run by themselves.
inline OpRun<Scan> part_of(const OpRun<Scan>& whole, std::int64_t begin, std::int64_t end) {
  OpRun<Scan> part = whole;
  for (TestTensor Scan::In<TestTensor>::*member :
       {&Scan::In<TestTensor>::u, &Scan::In<TestTensor>::dt, &Scan::In<TestTensor>::b,
        &Scan::In<TestTensor>::c, &Scan::In<TestTensor>::z}) {
    part.in.*member = steps_of(whole.in.*member, begin, end);
  }
  part.in.document_start = {};
  part.in.initial_state = {};
  return part;
}

}  // namespace jiboia::test
