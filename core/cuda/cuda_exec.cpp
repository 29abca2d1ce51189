#include "core/cuda/cuda_exec.h"

#include <array>
#include <string_view>

#include "core/cuda/check.cuh"
#include "core/cuda/state.h"
#include "core/memory.h"

namespace jiboia {
namespace {

constexpr const char* kWho = "cuda";

/// Dense rates in FLOP/s of the vendor's data sheets: bf16 tensor cores with fp32 sums, and fp32.
struct Peak {
  std::string_view name;  ///< part of the device's name; the first that fits counts
  double bf16, f32;
};
constexpr std::array kPeaks{
    Peak{"H100 PCIe", 756e12, 51e12}, Peak{"H100 NVL", 835e12, 60e12},
    Peak{"H100", 989.4e12, 66.9e12},  Peak{"H200", 989.4e12, 66.9e12},
    Peak{"GH200", 989.4e12, 66.9e12}, Peak{"B200", 2250e12, 75e12},
    Peak{"A100", 312e12, 19.5e12},    Peak{"L40S", 362e12, 91.6e12},
    Peak{"L4", 121e12, 30.3e12},      Peak{"RTX 4090", 165.2e12, 82.6e12},
    Peak{"RTX 3090", 71e12, 35.6e12}, Peak{"A10G", 70e12, 31.5e12},
    Peak{"A6000", 154.8e12, 38.7e12},
};

GpuInfo info_of(int device) {
  cudaDeviceProp properties{};
  cuda::check(cudaGetDeviceProperties(&properties, device), kWho);
  GpuInfo gpu{.device = device,
              .name = properties.name,
              .compute_capability = 10 * properties.major + properties.minor,
              .multiprocessors = properties.multiProcessorCount,
              .memory_bytes = static_cast<std::int64_t>(properties.totalGlobalMem)};
  for (const Peak& peak : kPeaks) {
    if (gpu.name.find(peak.name) == std::string::npos) continue;
    gpu.peak_bf16 = peak.bf16;
    gpu.peak_f32 = peak.f32;
    break;
  }
  return gpu;
}

}  // namespace

int CudaExec::device_count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    cudaGetLastError();  // no driver, or no GPU: not an error that later calls should see
    return 0;
  }
  return count;
}

CudaExec::CudaExec(int device) : state_(std::make_unique<State>()) {
  int count = 0;
  cuda::check(cudaGetDeviceCount(&count), kWho);
  require(device >= 0 && device < count, ErrorKind::kCuda, "GPU {} of {} was asked for", device,
          count);
  cuda::check(cudaSetDevice(device), kWho);
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
    case cudaErrorMemoryAllocation:
      advice = "; lower train.micro_batch_size or set train.recompute to block";
      break;
    case cudaErrorNoDevice:
    case cudaErrorInsufficientDriver:
      advice =
          "; nvidia-smi tells whether this machine has a GPU and a driver for CUDA 13; use "
          "device: cpu without one";
      break;
    case cudaErrorNoKernelImageForDevice:
      advice =
          "; this build has no code for this GPU: configure again with "
          "-DCMAKE_CUDA_ARCHITECTURES=native";
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
