#pragma once
#include "core/cuda/ptx.cuh"
#include "kernels/selective_scan/selective_scan_cuda.cuh"
#include "kernels/selective_scan/selective_scan_tiles.h"
#include "kernels/vectors.cuh"

/// What the two passes of the fast selective scan share on the GPU.
namespace jiboia::scan_tiles {

using cuda::bf16;

/// kLineSize saved states: 4 of one channel, 4 of the next.
using Line = cuda::Vector<bf16, kLineSize>;

/// The place of the first line of a tile: of the tile that begins at `first_channel`, before chunk
/// `chunk` of batch row `batch`.
__device__ inline std::int64_t first_line(std::int64_t batch, std::int64_t chunks,
                                          std::int64_t chunk, std::int64_t D,
                                          std::int64_t first_channel) {
  return ((batch * chunks + chunk) * D + first_channel) * (kStates / kLineSize);
}

/// A z so close to 0 that y * silu(z) would not tell y any more is read as this. It changes the
/// output by less than 1e-18 of y, and backward divides by z.
__device__ inline float gate_argument(float z) {
  constexpr float kSmallest = 0x1p-60f;
  return fabsf(z) < kSmallest ? kSmallest : z;  // NaN as well
}

/// log(1 + e^x), within 2^-16 of itself, but 0 where e^x is denormal; NaN for NaN.
/// Method: with e = e^-|x| <= 1, which cannot overflow, it is max(x, 0) + log1p(e), by a minimax
/// polynomial for log1p(e) / e.
struct Softplus {
  __device__ explicit Softplus(float x) : e(cuda::exp2_approx(fabsf(x) * -1.4426950408889634f)) {
    float p = -2.38691512e-2f;
    p = fmaf(p, e, 1.01222284e-1f);
    p = fmaf(p, e, -2.10048690e-1f);
    p = fmaf(p, e, 3.25206667e-1f);
    p = fmaf(p, e, -4.99361366e-1f);
    p = fmaf(p, e, 9.99991596e-1f);
    value = fmaf(p, e, fmaxf(x, 0.f));
  }
  float e;      ///< e^-|x|
  float value;  ///< log(1 + e^x)
};

}  // namespace jiboia::scan_tiles
