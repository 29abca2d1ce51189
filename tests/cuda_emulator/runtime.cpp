#include <cuda_runtime_api.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

#include "tests/cuda_emulator/capture.h"
#include "tests/cuda_emulator/environment.h"
#include "tests/cuda_emulator/gpu_memory.h"
#include "tests/cuda_emulator/trace.h"

/// The functions of the CUDA runtime that this project calls, on memory of this machine. What is
/// asked for is done when the call returns, so streams and events have nothing to wait for.
/// JIBOIA_EMULATED_GPUS is the number of GPUs.

struct CUstream_st {
  int device;
  int number;  ///< for the trace
};
struct CUevent_st {
  int number;
  bool timed, recorded;
  std::chrono::steady_clock::time_point time;
};

using namespace jiboia::emulated;

namespace {

int device_count() { return static_cast<int>(from_environment("JIBOIA_EMULATED_GPUS", 1)); }

thread_local int current_device = 0;
thread_local cudaError_t last_error = cudaSuccess;

cudaError_t result(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

cudaError_t check_side(const void* data, std::size_t bytes, bool on_gpu) {
  const Place wanted = on_gpu ? Place::kInGpuMemory : Place::kElsewhere;
  return place_of(data, bytes) == wanted ? cudaSuccess : cudaErrorInvalidValue;
}

cudaError_t check_copy(const void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind) {
  if (kind == cudaMemcpyDefault) {
    const bool fits = place_of(to, bytes) != Place::kPastAllocation &&
                      place_of(from, bytes) != Place::kPastAllocation;
    return fits ? cudaSuccess : cudaErrorInvalidValue;
  }
  const bool to_gpu = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
  const bool from_gpu = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
  const cudaError_t error = check_side(to, bytes, to_gpu);
  return error != cudaSuccess ? error : check_side(from, bytes, from_gpu);
}

/// Pinned memory: copies to and from other CPU memory make the CPU wait.
class PinnedMemory {
 public:
  void add(const void* memory, std::size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    sizes_[static_cast<const std::byte*>(memory)] = bytes;
  }
  void remove(const void* memory) {
    const std::lock_guard<std::mutex> lock(mutex_);
    sizes_.erase(static_cast<const std::byte*>(memory));
  }
  bool holds(const void* memory) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto* byte = static_cast<const std::byte*>(memory);
    const auto after = sizes_.upper_bound(byte);
    return after != sizes_.begin() && byte < std::prev(after)->first + std::prev(after)->second;
  }

 private:
  std::mutex mutex_;
  std::map<const std::byte*, std::size_t> sizes_;
};

PinnedMemory& pinned_memory() {
  static auto* memory = new PinnedMemory;  // buffers may be given back after the program's end
  return *memory;
}

bool makes_cpu_wait(const void* memory, std::size_t bytes) {
  return place_of(memory, bytes) == Place::kElsewhere && !pinned_memory().holds(memory);
}

int next_number() {
  static std::atomic<int> number = 0;
  return ++number;
}

cudaError_t copy_memory(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind) {
  const cudaError_t error = check_copy(to, from, bytes, kind);
  if (error != cudaSuccess) return result(error);
  const GpuMemoryAccess access;
  std::memmove(to, from, bytes);
  return cudaSuccess;
}

}  // namespace

extern "C" {

cudaError_t cudaGetDeviceCount(int* count) {
  *count = device_count();
  return result(*count > 0 ? cudaSuccess : cudaErrorNoDevice);
}

cudaError_t cudaDriverGetVersion(int* version) {
  *version = CUDART_VERSION;
  return result(cudaSuccess);
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
  properties->totalGlobalMem = gpu_memory_bytes();
  properties->major = 9;
  properties->multiProcessorCount = 4;
  properties->warpSize = 32;
  properties->maxThreadsPerBlock = 1024;
  properties->sharedMemPerBlock = 48 * 1024;
  properties->sharedMemPerBlockOptin = 227 * 1024;
  return cudaSuccess;
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
  *attributes = {};
  return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize() {
  if (is_capturing()) return result(refuse_captured());
  trace("wait device");
  return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  *stream = new CUstream_st{current_device, next_number()};
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  delete stream;
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  if (is_capturing(stream)) return result(refuse_captured());
  trace("wait stream {}", stream ? stream->number : 0);
  return cudaSuccess;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t, unsigned) {
  // All events are of outside, as none is recorded in a capture.
  if (is_capturing(stream)) return result(refuse_captured(cudaErrorStreamCaptureIsolation));
  return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  *event = new CUevent_st{next_number(), (flags & cudaEventDisableTiming) == 0, false, {}};
  return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t* event) {
  return cudaEventCreateWithFlags(event, cudaEventDefault);
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  if (is_capturing(stream)) return result(refuse_captured());  // a GPU would, but measure nothing
  trace("record {} in {}", event->number, stream ? stream->number : 0);
  event->recorded = true;
  event->time = std::chrono::steady_clock::now();
  return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  if (is_capturing()) return result(refuse_captured());
  trace("wait event {}", event->number);
  return cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
  if (!start->recorded || !end->recorded || !start->timed || !end->timed) {
    return result(cudaErrorInvalidResourceHandle);
  }
  *milliseconds = std::chrono::duration<float, std::milli>(end->time - start->time).count();
  return cudaSuccess;
}

cudaError_t cudaMalloc(void** memory, std::size_t bytes) {
  if (is_capturing()) return result(refuse_captured());
  trace("malloc {}", bytes);
  return result(allocate_gpu_memory(memory, bytes, current_device));
}
cudaError_t cudaFree(void* memory) {
  if (is_capturing()) return result(refuse_captured());
  trace("free");
  return result(free_gpu_memory(memory));
}
cudaError_t cudaMallocHost(void** memory, std::size_t bytes) {
  if (is_capturing()) return result(refuse_captured());
  const std::size_t page = 4096;
  *memory = std::aligned_alloc(page, (bytes + page - 1) / page * page);
  if (!*memory) return result(cudaErrorMemoryAllocation);
  trace("malloc host {}", bytes);
  pinned_memory().add(*memory, bytes);
  std::memset(*memory, 0xFF, bytes);  // nothing that a program could take for its own
  return cudaSuccess;
}
cudaError_t cudaFreeHost(void* memory) {
  if (is_capturing()) return result(refuse_captured());
  trace("free host");
  pinned_memory().remove(memory);
  std::free(memory);
  return cudaSuccess;
}

cudaError_t cudaMemGetInfo(std::size_t* free, std::size_t* total) {
  *total = gpu_memory_bytes();
  *free = *total - std::min(*total, used_gpu_memory(current_device));
  return cudaSuccess;
}

cudaError_t cudaMemcpy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind) {
  if (bytes == 0) return cudaSuccess;
  if (is_capturing()) return result(refuse_captured());
  trace("wait copy");
  return copy_memory(to, from, bytes, kind);
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  if (bytes == 0) return cudaSuccess;
  if (makes_cpu_wait(to, bytes) || makes_cpu_wait(from, bytes)) {
    if (is_capturing(stream)) return result(refuse_captured());
    trace("wait copy");
  }
  return ask(stream, [=] { return copy_memory(to, from, bytes, kind); });
}
cudaError_t cudaMemset(void* to, int value, std::size_t bytes) {
  if (bytes == 0) return cudaSuccess;
  const cudaError_t error = check_side(to, bytes, true);
  if (error != cudaSuccess) return result(error);
  const GpuMemoryAccess access;
  std::memset(to, value, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* to, int value, std::size_t bytes, cudaStream_t stream) {
  return ask(stream, [=] { return cudaMemset(to, value, bytes); });
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
    case cudaErrorStreamCaptureUnsupported: return "cudaErrorStreamCaptureUnsupported";
    case cudaErrorStreamCaptureInvalidated: return "cudaErrorStreamCaptureInvalidated";
    case cudaErrorStreamCaptureIsolation: return "cudaErrorStreamCaptureIsolation";
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
    case cudaErrorStreamCaptureUnsupported:
      return "operation not permitted when stream is capturing";
    case cudaErrorStreamCaptureInvalidated:
      return "operation failed due to a previous error during capture";
    case cudaErrorStreamCaptureIsolation:
      return "dependency created on uncaptured work in another stream";
    default: return "unknown error";
  }
}

}  // extern "C"
