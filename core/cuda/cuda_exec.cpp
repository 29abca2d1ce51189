#include "core/cuda/cuda_exec.h"

#include "core/cuda/check.cuh"
#include "core/cuda/peak_rates.h"
#include "core/cuda/probe.h"
#include "core/cuda/state.h"
#include "core/memory.h"

namespace jiboia {
namespace {

constexpr const char* kWho = "cuda";

GpuInfo info_of(int device) {
  cudaDeviceProp properties{};
  cuda::check(cudaGetDeviceProperties(&properties, device), kWho);
  const PeakRates peak = peak_rates(properties.name);
  return {.device = device,
          .name = properties.name,
          .compute_capability = 10 * properties.major + properties.minor,
          .multiprocessors = properties.multiProcessorCount,
          .memory_bytes = static_cast<std::int64_t>(properties.totalGlobalMem),
          .shared_bytes_per_block = static_cast<int>(properties.sharedMemPerBlockOptin),
          .peak_bf16 = peak.bf16,
          .peak_f32 = peak.f32};
}

}  // namespace

int CudaExec::device_count() {
  int count = 0, driver_version = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaSuccess) return count;
  cudaGetLastError();  // not an error that later calls should see
  const bool has_driver =
      cudaDriverGetVersion(&driver_version) == cudaSuccess && driver_version > 0;
  if (has_driver && error != cudaErrorNoDevice) cuda::fail_call(error, kWho);
  return 0;
}

CudaExec::CudaExec(int device) : state_(std::make_unique<State>()) {
  int count = 0;
  cuda::check(cudaGetDeviceCount(&count), kWho);
  require(device >= 0 && device < count, ErrorKind::kCuda, "GPU {} of {} was asked for", device,
          count);
  // Memory, events and launches go to the current device of their thread, which is 0 unless said
  // otherwise. A process has one GPU: CUDA_VISIBLE_DEVICES chooses it.
  require(device == 0, ErrorKind::kUnsupported,
          "GPU {} was asked for; choose it by CUDA_VISIBLE_DEVICES, which makes it GPU 0", device);
  cuda::check(cudaSetDevice(device), kWho);
  cuda::require_code(kWho);
  state_->gpu = info_of(device);
  cuda::check(cudaStreamCreateWithFlags(&state_->stream, cudaStreamNonBlocking), kWho);
  state_->blas_workspace =
      allocate(*this, cuda::Blas::kWorkspaceBytes, "the workspace of matrix products");
  state_->blas = std::make_unique<cuda::Blas>(state_->stream, state_->blas_workspace.data());
}

CudaExec::State::~State() {
  if (stream) cudaStreamDestroy(stream);
}
CudaExec::~CudaExec() = default;
CudaExec::CudaExec(CudaExec&&) noexcept = default;
CudaExec& CudaExec::operator=(CudaExec&&) noexcept = default;

const GpuInfo& CudaExec::gpu() const { return state_->gpu; }
CUstream_st* CudaExec::stream() const { return state_->stream; }
cuda::Blas& CudaExec::blas() const { return *state_->blas; }
std::int64_t CudaExec::allocated_bytes() const { return *state_->allocated; }

void CudaExec::wait() { cuda::check(cudaStreamSynchronize(state_->stream), kWho); }

namespace cuda {

void fail_call(cudaError_t error, const Where& where) {
  cudaGetLastError();
  const char* advice = "";
  switch (error) {
    case cudaErrorMemoryAllocation: advice = "; nvidia-smi shows who has the GPU's memory"; break;
    case cudaErrorNoDevice:
    case cudaErrorInsufficientDriver:
      advice =
          "; nvidia-smi tells whether this machine has a GPU and a driver for CUDA 13; use "
          "device: cpu (--device cpu) without one";
      break;
    case cudaErrorNoKernelImageForDevice:
      advice =
          "; this build has no code for this GPU: build on this machine, into an empty folder and "
          "without CMAKE_CUDA_ARCHITECTURES";
      break;
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchFailure:
    case cudaErrorMisalignedAddress:
    case cudaErrorIllegalInstruction:
    case cudaErrorAssert:
      advice =
          "; a kernel that was launched before failed, and the GPU's memory is lost to this "
          "process. Start again from the last checkpoint; with CUDA_LAUNCH_BLOCKING=1 the "
          "error names the op";
      break;
    default: break;
  }
  fail(error == cudaErrorMemoryAllocation ? ErrorKind::kOutOfMemory : ErrorKind::kCuda,
       "{} ({}:{}): {} ({}){}", where.name, where.location.file_name(), where.location.line(),
       cudaGetErrorString(error), cudaGetErrorName(error), advice);
}

}  // namespace cuda
}  // namespace jiboia
