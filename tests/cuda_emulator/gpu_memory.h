#pragma once
#include <cuda_runtime_api.h>

#include <cstddef>

/// The memory of the emulated GPUs. Only kernels and the runtime's functions can reach it: what
/// else reads or writes it ends the process, as on a machine with a GPU. Everyone can with
/// JIBOIA_EMULATED_PROTECTION=0, by default on machines without huge pages, where this is slow, and
/// with AddressSanitizer, which wants red zones around allocations.
namespace jiboia::emulated {

/// Bytes that each GPU has: JIBOIA_EMULATED_MEMORY, or this machine's.
std::size_t gpu_memory_bytes();

/// 256-byte aligned memory, all bits set. Null, and cudaErrorMemoryAllocation, where GPU `device`
/// has less than that.
cudaError_t allocate_gpu_memory(void** to, std::size_t bytes, int device);
/// cudaErrorInvalidValue for what was not allocated.
cudaError_t free_gpu_memory(void* memory);
std::size_t used_gpu_memory(int device);

enum class Place { kElsewhere, kInGpuMemory, kPastAllocation };
/// Whether [data, data + bytes) lies in an allocation, in none, or goes on behind the end of one.
Place place_of(const void* data, std::size_t bytes);

/// While one lives, GPU memory can be reached.
class GpuMemoryAccess {
 public:
  GpuMemoryAccess();
  ~GpuMemoryAccess();
  GpuMemoryAccess(const GpuMemoryAccess&) = delete;
  GpuMemoryAccess& operator=(const GpuMemoryAccess&) = delete;
};

}  // namespace jiboia::emulated
