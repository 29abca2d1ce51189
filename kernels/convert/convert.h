#pragma once
#include "core/exec.h"
#include "core/tensor.h"

namespace jiboia {

/// Copies a contiguous f32 tensor to a bf16 one of the same size, rounding to nearest, ties to
/// even; both in the exec's memory. Errors: InvalidArgument when sizes or dtypes differ.
void convert(CpuExec& cpu, const Tensor& from, const Tensor& to);
void convert(CudaExec& gpu, const Tensor& from, const Tensor& to);

/// Errors: InvalidArgument unless convert() takes these.
void require_convertible(const Tensor& from, const Tensor& to);

}  // namespace jiboia
