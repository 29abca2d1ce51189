#pragma once
#include <atomic>
#include <memory>

#include "core/buffer.h"
#include "core/cuda/blas.h"
#include "core/cuda/cuda_exec.h"

namespace jiboia {

/// What a CudaExec owns; for the files of core/cuda alone.
struct CudaExec::State {
  ~State();

  GpuInfo gpu;
  CUstream_st* stream = nullptr;
  std::shared_ptr<std::atomic<std::int64_t>> allocated =
      std::make_shared<std::atomic<std::int64_t>>(0);
  Buffer blas_workspace;
  std::unique_ptr<cuda::Blas> blas;
};

}  // namespace jiboia
