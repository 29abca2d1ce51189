#pragma once
#include "core/cuda/check.cuh"

namespace jiboia::cuda {

/// Errors: Cuda when this build has no code for the current GPU.
void require_code(const Where& where);

}  // namespace jiboia::cuda
