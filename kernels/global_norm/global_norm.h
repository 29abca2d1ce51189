#pragma once
#include <cstddef>
#include <cstdint>
#include <span>

#include "core/exec.h"
#include "core/tensor.h"

namespace jiboia {

/// Elements of one partial sum: slices of ranks begin at multiples of it.
inline constexpr std::int64_t kNormBlock = 4096;

/// Square root of the sum of squares of a contiguous tensor, summed in f64: one partial sum for
/// each kNormBlock consecutive elements, then a tree over the partials whose shape depends on their
/// number alone. NaN or infinite when an element is, or when the sum overflows.
struct GlobalNorm {
  Tensor flat;              ///< (n), f32 or f64 (GPU: f32)
  Tensor norm;              ///< (1) f64: the result
  Tensor first_not_finite;  ///< (1) i64: the first element that is not finite, -1 when all are
};
/// Results are in the exec's memory. Errors: InvalidArgument when shapes or dtypes differ.
void global_norm(CpuExec& cpu, const GlobalNorm& args, std::span<std::byte> scratch);
void global_norm(CudaExec& gpu, const GlobalNorm& args, std::span<std::byte> scratch);

/// Scratch that global_norm() wants for n elements.
std::int64_t global_norm_scratch_bytes(std::int64_t n);

}  // namespace jiboia
