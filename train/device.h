#pragma once
#include <array>
#include <string>

#include "core/op.h"
#include "train/config/option.h"

namespace jiboia {

enum class DeviceChoice { kAuto, kCpu, kCuda };
template <>
inline constexpr std::array kEnumNames<DeviceChoice>{"auto", "cpu", "cuda"};

/// What the GPU computes in; weights, moments and sums stay fp32.
enum class Precision { kFp32, kBf16 };
template <>
inline constexpr std::array kEnumNames<Precision>{"fp32", "bf16"};

/// The exec that a user means; kAuto is a GPU when there is one. `threads`: of the CPU, 0 for all.
/// Errors: Unsupported in builds without CUDA, Cuda when there is no GPU or it does not answer.
Exec make_exec(DeviceChoice device, int threads);

/// How activations are stored where `exec` computes: a CPU computes in fp32 whatever `precision`.
Activations activations_for(const Exec& exec, Precision precision);

/// Logs that a CPU does not compute in bf16, where that is asked of one.
void say_what_precision_means(const Exec& exec, Precision precision);

/// "NVIDIA H200 (sm_90, 139.81 GiB)", "CPU, 2 threads"
std::string describe(const Exec& exec);

/// The most FLOP/s of matrix products with these activations by the vendor's data sheet; 0 when
/// unknown, as of CPUs.
double peak_flops(const Exec& exec, Activations activations);

/// Bytes of GPU memory that allocate() has given for `exec` and not got back; 0 on the CPU.
std::int64_t gpu_bytes(const Exec& exec);

}  // namespace jiboia
