#pragma once
#include "core/tensor.h"

/// Argument checks of ops, all with the same words: what, got, wanted.
namespace jiboia {

/// Errors: InvalidArgument unless `got` is a contiguous tensor of `dtype` and `shape`; `letters`
/// names the dimensions, e.g. "(B, L, N)".
void expect(const char* op, const char* name, const Spec& got, Dtype dtype, const Shape& shape,
            const char* letters);

/// As expect(), but rows may lie apart, as in a slice of columns.
void expect_rows(const char* op, const char* name, const Spec& got, Dtype dtype, const Shape& shape,
                 const char* letters);

/// Errors: InvalidArgument unless `got` is there, has a floating-point dtype, the given rank, at
/// least 1, and no extent of 0 in its last dimension.
void expect_float(const char* op, const char* name, const Spec& got, int rank, const char* letters);

}  // namespace jiboia
