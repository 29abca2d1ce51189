#pragma once
#include "core/exec.h"

/// Kernels and launches that a GPU does not take, and one that it does.
namespace jiboia::test {

/// Where launch_too_many_threads() launches: what its error has to name.
inline constexpr const char* kFaultsFile = "cuda_faults.cu";
extern const int kRefusedLine;

/// Launches 2048 threads a block, which no GPU has, as "refused_op".
void launch_too_many_threads(CudaExec& gpu);
/// Launches one thread that writes `value` to `to`.
void launch_write(CudaExec& gpu, float* to, float value);

}  // namespace jiboia::test
