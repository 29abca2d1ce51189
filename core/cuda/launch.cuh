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
  /// Whether blocks may begin as soon as all those of the kernel in front have called
  /// let_next_kernel_begin(), and a multiprocessor has room. This kernel calls
  /// wait_for_kernel_in_front() before it reads what that one writes, or writes what it uses.
  /// Where the GPU has no such thing, it begins behind it.
  bool overlaps = false;
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
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &overlap;
  config.numAttrs = shape.overlaps ? 1 : 0;
  check(cudaLaunchKernelEx(&config, kernel, static_cast<Params>(std::forward<Args>(args))...),
        where);
}
template <class... Params, class... Args>
void launch(CudaExec& gpu, const Where& where, void (*kernel)(Params...), const Launch& shape,
            Args&&... args) {
  Launch possible = shape;
  possible.overlaps = shape.overlaps && gpu.gpu().compute_capability >= 90;
  launch(gpu.stream(), where, kernel, possible, std::forward<Args>(args)...);
}

/// The block's dynamic shared memory, 16-byte aligned.
__device__ inline std::byte* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char jiboia_dynamic_shared[];
  return reinterpret_cast<std::byte*>(jiboia_dynamic_shared);
}

}  // namespace jiboia::cuda
