#include "core/cuda/launch.cuh"
#include "tests/core/cuda_faults.h"

namespace jiboia::test {
namespace {

__global__ void write_kernel(float* to, float value) { *to = value; }

}  // namespace

const int kRefusedLine = __LINE__ + 4;
void launch_too_many_threads(CudaExec& gpu) {
  const cuda::Launch shape{.grid = dim3(1), .block = dim3(2048)};
  float* const nowhere = nullptr;
  cuda::launch(gpu, "refused_op", write_kernel, shape, nowhere, 1.f);
}

void launch_write(CudaExec& gpu, float* to, float value) {
  cuda::launch(gpu, "write", write_kernel, {.grid = dim3(1), .block = dim3(1)}, to, value);
}

}  // namespace jiboia::test
