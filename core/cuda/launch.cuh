#pragma once
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <utility>

#include "core/cuda/check.cuh"
#include "core/cuda/cuda_exec.h"

namespace jiboia::cuda {

/// Launch shape of a kernel.
struct Launch {
  dim3 grid, block;
  std::size_t shared_bytes = 0;  ///< dynamic shared memory
  /// Starts while the kernel before it on the stream is still at work, where a GPU can. Its threads
  /// call wait_for_last_kernel() before they read what that kernel writes, or write what it
  /// touches. What other kernels wrote they may read at once only where the kernel before was not
  /// launched early itself, so began when those had ended.
  bool early = false;
};

/// Runs kernel(args...) on a stream; does nothing when the grid is empty.
/// Errors: Cuda when the launch is refused.
template <class... Params, class... Args>
void launch(CUstream_st* stream, const Where& where, void (*kernel)(Params...), const Launch& shape,
            Args&&... args) {
  if (shape.grid.x == 0 || shape.grid.y == 0 || shape.grid.z == 0) return;
  // More than 48 KiB must be asked for.
  if (shape.shared_bytes > 48 * 1024) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shape.shared_bytes)),
          where);
  }
  cudaLaunchConfig_t config{};
  config.gridDim = shape.grid;
  config.blockDim = shape.block;
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = stream;
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &early;
  config.numAttrs = shape.early ? 1 : 0;
  check(cudaLaunchKernelEx(&config, kernel, static_cast<Params>(std::forward<Args>(args))...),
        where);
}
template <class... Params, class... Args>
void launch(CudaExec& gpu, const Where& where, void (*kernel)(Params...), const Launch& shape,
            Args&&... args) {
  Launch possible = shape;
  possible.early = shape.early && gpu.gpu().compute_capability >= 90;
  launch(gpu.stream(), where, kernel, possible, std::forward<Args>(args)...);
}

/// See Launch::early.
__device__ inline void wait_for_last_kernel() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/// The block's dynamic shared memory, 16-byte aligned.
__device__ inline std::byte* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char jiboia_dynamic_shared[];
  return reinterpret_cast<std::byte*>(jiboia_dynamic_shared);
}

}  // namespace jiboia::cuda
