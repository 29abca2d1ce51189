#pragma once
#include <cstdint>
#include <span>

#include "core/exec.h"
#include "core/tensor.h"

namespace jiboia {

/// Elements of one partial sum: slices of ranks begin at multiples of it.
inline constexpr std::int64_t kNormBlock = 4096;

/// Square root of the sum of squares of a contiguous tensor, summed in f64: one partial sum for
/// each kNormBlock consecutive elements, then a tree over the partials whose shape depends on their
/// number alone. NaN or infinite when an element is.
double global_norm(CpuExec& cpu, const Tensor& flat);

/// Sum of `values` by a balanced binary tree: halves first, left before right.
double tree_sum(std::span<const double> values);

}  // namespace jiboia
