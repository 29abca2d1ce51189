#pragma once
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <tuple>
#include <utility>

#include "core/cuda/check.cuh"
#include "core/cuda/cuda_exec.h"
#include "tests/cuda_emulator/capture.h"
#include "tests/cuda_emulator/device_functions.h"

/// Stands in for core/cuda/launch.cuh in a build with JIBOIA_CUDA=EMULATED: the same interface, but
/// the threads of a kernel run on the CPU (tests/cuda_emulator/README.md).
namespace jiboia::cuda {

/// Launch shape of a kernel.
struct Launch {
  dim3 grid, block;
  std::size_t shared_bytes = 0;  ///< dynamic shared memory
  bool overlaps = false;         ///< makes no difference here
};

/// Runs kernel(args...) and returns when it is done, or keeps the launch for the graph that is
/// being captured; does nothing when the grid is empty. Errors: Cuda when a GPU would refuse the
/// launch.
template <class... Params, class... Args>
void launch(CUstream_st* stream, const Where& where, void (*kernel)(Params...), const Launch& shape,
            Args&&... args) {
  if (shape.grid.x == 0 || shape.grid.y == 0 || shape.grid.z == 0) return;
  struct Call {
    void (*kernel)(Params...);
    std::tuple<Params...> params;
  };
  const Call call{kernel, std::tuple<Params...>(static_cast<Params>(std::forward<Args>(args))...)};
  const auto run = [call, where, shape] {
    return emulated::run_kernel({.grid = shape.grid,
                                 .block = shape.block,
                                 .shared_bytes = shape.shared_bytes,
                                 .name = where.name,
                                 .file = where.location.file_name(),
                                 .line = where.location.line(),
                                 .call =
                                     [](const void* context) {
                                       const auto& of = *static_cast<const Call*>(context);
                                       std::apply(of.kernel, of.params);
                                     },
                                 .context = &call});
  };
  check(emulated::ask(stream, run), where);
}

/// The same, on the stream of `gpu`.
template <class... Params, class... Args>
void launch(CudaExec& gpu, const Where& where, void (*kernel)(Params...), const Launch& shape,
            Args&&... args) {
  launch(gpu.stream(), where, kernel, shape, std::forward<Args>(args)...);
}

/// The block's dynamic shared memory, 16-byte aligned.
inline std::byte* dynamic_shared() { return emulated::dynamic_shared_memory; }

}  // namespace jiboia::cuda
