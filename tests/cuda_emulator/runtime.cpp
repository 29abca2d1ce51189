#include <cuda_runtime_api.h>
#include <sys/sysinfo.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>

/// The functions of the CUDA runtime that this project calls, on memory of this machine. What is
/// asked for is done when the call returns, so streams and events have nothing to wait for.
/// JIBOIA_EMULATED_GPUS is the number of GPUs (1), JIBOIA_EMULATED_MEMORY the bytes of memory that
/// each has (those of this machine).

struct CUstream_st {
  int device;
};
struct CUevent_st {
  bool timed, recorded;
  std::chrono::steady_clock::time_point time;
};

namespace {

/// What no program should take for data that it wrote: NaN as a float, -1 as an integer.
constexpr int kGarbage = 0xFF;
constexpr std::size_t kAlignment = 256;

std::size_t from_environment(const char* name, std::size_t otherwise) {
  const char* text = std::getenv(name);
  if (!text || !*text) return otherwise;
  char* end = nullptr;
  const unsigned long long value = std::strtoull(text, &end, 10);
  if (*end != 0) {
    std::fprintf(stderr, "%s is %s, not a number\n", name, text);
    std::abort();
  }
  return value;
}

int device_count() { return static_cast<int>(from_environment("JIBOIA_EMULATED_GPUS", 1)); }

std::size_t memory_bytes() {
  struct sysinfo info {};
  sysinfo(&info);
  return from_environment("JIBOIA_EMULATED_MEMORY", std::size_t{info.totalram} * info.mem_unit);
}

thread_local int current_device = 0;
thread_local cudaError_t last_error = cudaSuccess;

cudaError_t result(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

struct Allocation {
  std::size_t bytes;
  int device;
};

/// Memory of one kind, by address.
class Memory {
 public:
  cudaError_t allocate(void** to, std::size_t bytes, int device, std::size_t limit) {
    const std::lock_guard<std::mutex> lock(mutex_);
    *to = nullptr;
    if (bytes == 0) return cudaSuccess;
    if (used_of(device) + bytes > limit || used_of(device) + bytes < bytes) {
      return cudaErrorMemoryAllocation;
    }
    // A multiple of the alignment, which AddressSanitizer would take for usable, is not asked for.
    void* memory = nullptr;
    if (posix_memalign(&memory, kAlignment, bytes) != 0) return cudaErrorMemoryAllocation;
    std::memset(memory, kGarbage, bytes);
    allocations_[static_cast<std::byte*>(memory)] = {bytes, device};
    *to = memory;
    return cudaSuccess;
  }
  cudaError_t free(void* memory) {
    if (!memory) return cudaSuccess;
    const std::lock_guard<std::mutex> lock(mutex_);
    if (allocations_.erase(static_cast<std::byte*>(memory)) == 0) return cudaErrorInvalidValue;
    std::free(memory);
    return cudaSuccess;
  }
  std::size_t used(int device) {
    const std::lock_guard<std::mutex> lock(mutex_);
    return used_of(device);
  }
  /// Whether an allocation begins at or before `data` and goes on for `bytes`.
  enum class Place { kElsewhere, kInside, kAcrossTheEnd };
  Place place_of(const void* data, std::size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto* start = static_cast<const std::byte*>(data);
    auto after = allocations_.upper_bound(const_cast<std::byte*>(start));
    if (after == allocations_.begin()) return Place::kElsewhere;
    const auto& [memory, allocation] = *--after;
    if (start >= memory + allocation.bytes) return Place::kElsewhere;
    return start + bytes <= memory + allocation.bytes ? Place::kInside : Place::kAcrossTheEnd;
  }

 private:
  std::size_t used_of(int device) const {
    std::size_t sum = 0;
    for (const auto& [memory, allocation] : allocations_) {
      if (allocation.device == device) sum += allocation.bytes;
    }
    return sum;
  }
  std::mutex mutex_;
  std::map<std::byte*, Allocation> allocations_;
};

// Never destroyed: buffers of static storage may be freed after every static object here.
Memory& gpu_memory() {
  static Memory* memory = new Memory;
  return *memory;
}
Memory& pinned_memory() {
  static Memory* memory = new Memory;
  return *memory;
}

cudaError_t check_side(const void* data, std::size_t bytes, bool on_gpu) {
  const Memory::Place place = gpu_memory().place_of(data, bytes);
  if (place == Memory::Place::kAcrossTheEnd) return cudaErrorInvalidValue;
  return (place == Memory::Place::kInside) == on_gpu ? cudaSuccess : cudaErrorInvalidValue;
}

cudaError_t check_copy(const void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind) {
  if (bytes == 0) return cudaSuccess;
  using Place = Memory::Place;
  if (gpu_memory().place_of(to, bytes) == Place::kAcrossTheEnd ||
      gpu_memory().place_of(from, bytes) == Place::kAcrossTheEnd) {
    return cudaErrorInvalidValue;
  }
  if (kind == cudaMemcpyDefault) return cudaSuccess;
  const bool to_gpu = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
  const bool from_gpu = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
  const cudaError_t error = check_side(to, bytes, to_gpu);
  return error != cudaSuccess ? error : check_side(from, bytes, from_gpu);
}

}  // namespace

extern "C" {

cudaError_t cudaGetDeviceCount(int* count) {
  *count = device_count();
  return result(*count > 0 ? cudaSuccess : cudaErrorNoDevice);
}

cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= device_count()) return result(cudaErrorInvalidDevice);
  current_device = device;
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int* device) {
  *device = current_device;
  return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  if (device < 0 || device >= device_count()) return result(cudaErrorInvalidDevice);
  *properties = {};
  std::snprintf(properties->name, sizeof properties->name, "emulated GPU");
  properties->totalGlobalMem = memory_bytes();
  properties->major = 9;
  properties->multiProcessorCount = 4;
  properties->warpSize = 32;
  properties->maxThreadsPerBlock = 1024;
  properties->sharedMemPerBlock = 48 * 1024;
  properties->sharedMemPerBlockOptin = 227 * 1024;
  return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  *stream = new CUstream_st{current_device};
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  delete stream;
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) { return cudaSuccess; }

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  *event = new CUevent_st{(flags & cudaEventDisableTiming) == 0, false, {}};
  return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t* event) {
  return cudaEventCreateWithFlags(event, cudaEventDefault);
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t) {
  event->recorded = true;
  event->time = std::chrono::steady_clock::now();
  return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventQuery(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
  if (!start->recorded || !end->recorded || !start->timed || !end->timed) {
    return result(cudaErrorInvalidResourceHandle);
  }
  *milliseconds = std::chrono::duration<float, std::milli>(end->time - start->time).count();
  return cudaSuccess;
}

cudaError_t cudaMalloc(void** memory, std::size_t bytes) {
  return result(gpu_memory().allocate(memory, bytes, current_device, memory_bytes()));
}
cudaError_t cudaFree(void* memory) { return result(gpu_memory().free(memory)); }
cudaError_t cudaMallocHost(void** memory, std::size_t bytes) {
  return result(pinned_memory().allocate(memory, bytes, 0, SIZE_MAX));
}
cudaError_t cudaFreeHost(void* memory) { return result(pinned_memory().free(memory)); }

cudaError_t cudaMemGetInfo(std::size_t* free, std::size_t* total) {
  *total = memory_bytes();
  *free = *total - std::min(*total, gpu_memory().used(current_device));
  return cudaSuccess;
}

cudaError_t cudaMemcpy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind) {
  const cudaError_t error = check_copy(to, from, bytes, kind);
  if (error == cudaSuccess) std::memmove(to, from, bytes);
  return result(error);
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t) {
  return cudaMemcpy(to, from, bytes, kind);
}
cudaError_t cudaMemset(void* to, int value, std::size_t bytes) {
  const cudaError_t error = check_side(to, bytes, true);
  if (error == cudaSuccess) std::memset(to, value, bytes);
  return result(error);
}
cudaError_t cudaMemsetAsync(void* to, int value, std::size_t bytes, cudaStream_t) {
  return cudaMemset(to, value, bytes);
}

cudaError_t cudaPeekAtLastError() { return last_error; }
cudaError_t cudaGetLastError() {
  const cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "cudaSuccess";
    case cudaErrorInvalidValue: return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation: return "cudaErrorMemoryAllocation";
    case cudaErrorInvalidConfiguration: return "cudaErrorInvalidConfiguration";
    case cudaErrorNoDevice: return "cudaErrorNoDevice";
    case cudaErrorInvalidDevice: return "cudaErrorInvalidDevice";
    case cudaErrorInvalidResourceHandle: return "cudaErrorInvalidResourceHandle";
    default: return "an error that the emulated GPU does not know";
  }
}
const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidValue: return "invalid argument";
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    case cudaErrorNoDevice: return "no CUDA-capable device is detected";
    case cudaErrorInvalidDevice: return "invalid device ordinal";
    case cudaErrorInvalidResourceHandle: return "invalid resource handle";
    default: return "unknown error";
  }
}

}  // extern "C"
