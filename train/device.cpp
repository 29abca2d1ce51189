#include "train/device.h"

#include "core/log.h"
#include "train/memory_plan.h"

namespace jiboia {
namespace {

#if JIBOIA_WITH_CUDA
Exec make_cuda_exec() { return CudaExec(0); }
bool has_gpu() { return CudaExec::device_count() > 0; }
#else
Exec make_cuda_exec() {
  fail(
      ErrorKind::kUnsupported,
      "device is cuda, but this build has no CUDA backend: build where nvcc is, or use device: cpu "
      "or auto (--device)");
}
bool has_gpu() { return false; }
#endif

std::string describe_backend(const CpuExec& cpu) {
  return fmt::format("CPU, {} thread{}", cpu.threads(), cpu.threads() == 1 ? "" : "s");
}
[[maybe_unused]] std::string describe_backend(const CudaExec& gpu) {
  return fmt::format("{} (sm_{}, {})", gpu.gpu().name, gpu.gpu().compute_capability,
                     byte_text(gpu.gpu().memory_bytes));
}

std::int64_t gpu_bytes_of(const CpuExec&) { return 0; }
[[maybe_unused]] std::int64_t gpu_bytes_of(const CudaExec& gpu) { return gpu.allocated_bytes(); }

double peak_of(const CpuExec&, Activations) { return 0; }
[[maybe_unused]] double peak_of(const CudaExec& gpu, Activations activations) {
  return activations == Activations::kBf16 ? gpu.gpu().peak_bf16 : gpu.gpu().peak_f32;
}

}  // namespace

Exec make_exec(DeviceChoice device, int threads) {
  if (device == DeviceChoice::kCpu || (device == DeviceChoice::kAuto && !has_gpu())) {
    return CpuExec(threads);
  }
  return make_cuda_exec();
}

Activations activations_for(const Exec& exec, Precision precision) {
  return is_cuda(exec) && precision == Precision::kBf16 ? Activations::kBf16 : Activations::kFull;
}

void say_what_precision_means(const Exec& exec, Precision precision) {
  if (precision == Precision::kBf16 && !is_cuda(exec)) {
    log::info("precision is bf16, which is for GPUs: the CPU computes in fp32");
  }
}

std::string describe(const Exec& exec) {
  return std::visit([](const auto& backend) { return describe_backend(backend); }, exec);
}

double peak_flops(const Exec& exec, Activations activations) {
  return std::visit([&](const auto& backend) { return peak_of(backend, activations); }, exec);
}

std::int64_t gpu_bytes(const Exec& exec) {
  return std::visit([](const auto& backend) { return gpu_bytes_of(backend); }, exec);
}

}  // namespace jiboia
