#pragma once
#include "core/cuda/blas.h"

namespace jiboia::cuda {

/// Computes a product by a kernel of our own, for any shape, stride and alignment, without tensor
/// cores: for operands that the library has no algorithm for. An element is one fp32 sum in the
/// order of the shared dimension. The product must have passed require_product(). Asynchronous.
/// Errors: Cuda.
void multiply_plainly(CUstream_st* stream, const char* op, const MatrixProduct& product);

}  // namespace jiboia::cuda
