#include "core/memory.h"

#include "core/cuda/check.cuh"
#include "core/cuda/state.h"

namespace jiboia {
Buffer allocate(CudaExec& gpu, std::int64_t bytes, const char* purpose) {
  if (bytes == 0) return {};
  void* data = nullptr;
  const cudaError_t error = cudaMalloc(&data, static_cast<std::size_t>(bytes));
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    fail(ErrorKind::kOutOfMemory,
         "{} needs {} bytes of GPU memory, {} of {} are free; nvidia-smi shows who has the rest",
         purpose, bytes, available_bytes(gpu), gpu.gpu().memory_bytes);
  }
  cuda::check(error, purpose);
  const auto allocated = gpu.state().allocated;
  *allocated += bytes;
  Buffer buffer({static_cast<std::byte*>(data),
                 [allocated, bytes](std::byte* memory) {
                   cudaFree(memory);
                   *allocated -= bytes;
                 }},
                bytes);
  cuda::check(cudaMemsetAsync(data, 0, static_cast<std::size_t>(bytes), gpu.stream()), purpose);
  return buffer;
}

Buffer allocate_staging(CudaExec&, std::int64_t bytes, const char* purpose) {
  if (bytes == 0) return {};
  void* data = nullptr;
  const cudaError_t error = cudaMallocHost(&data, static_cast<std::size_t>(bytes));
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    fail(ErrorKind::kOutOfMemory, "{} needs {} bytes of pinned memory, {} are available", purpose,
         bytes, available_host_bytes());
  }
  cuda::check(error, purpose);
  return {{static_cast<std::byte*>(data), [](std::byte* memory) { cudaFreeHost(memory); }}, bytes};
}

std::int64_t available_bytes(const CudaExec&) {
  std::size_t free = 0, total = 0;
  cuda::check(cudaMemGetInfo(&free, &total), "available_bytes");
  return static_cast<std::int64_t>(free);
}

void copy(CudaExec& gpu, const Tensor& from, const Tensor& to) {
  require_copyable(from, to);
  if (from.bytes() == 0) return;
  cuda::check(cudaMemcpyAsync(to.data, from.data, static_cast<std::size_t>(from.bytes()),
                              cudaMemcpyDefault, gpu.stream()),
              "copy");
}

void fill_zero(CudaExec& gpu, const Tensor& tensor) {
  require_copyable(tensor, tensor);
  if (tensor.bytes() == 0) return;
  cuda::check(
      cudaMemsetAsync(tensor.data, 0, static_cast<std::size_t>(tensor.bytes()), gpu.stream()),
      "fill_zero");
}

}  // namespace jiboia
