#include "kernels/selective_scan/selective_scan_backward_tiles.cuh"

namespace jiboia::scan_tiles {
namespace {

constexpr int kThreads = 256;
/// Values of a row of grad_b and grad_c that a thread adds up.
constexpr int kVector = 4;
constexpr int kRowVectors = kRowStates / kVector;

/// Where the sums go; null where nobody wants them.
struct Sums {
  cuda::GradRows<bf16> b, c;
  cuda::GradRows<float> a_log, d_skip, dt_bias;
  unsigned row_blocks;  ///< that sum grad_b and grad_c
};

__device__ void add(float& sum, float part) { sum += part; }
__device__ void add(float4& sum, const float4& part) {
  sum.x += part.x;
  sum.y += part.y;
  sum.z += part.z;
  sum.w += part.w;
}
/// from[0] + from[distance] + ..., of `count` terms, in this order, kAtOnce on their way at a time.
template <int kAtOnce, class T>
__device__ T sum_of(const T* from, std::int64_t distance, int count) {
  T sum{};
#pragma unroll 1
  for (int first = 0; first < count; first += kAtOnce) {
    T parts[kAtOnce]{};
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (first + i < count) parts[i] = __ldcs(from + (first + i) * distance);
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) add(sum, parts[i]);
  }
  return sum;
}

/// Element `column` of row (batch, t) of grad_b and grad_c side by side, kVector of them.
__device__ void sum_row(const BackwardTiles& pass, const Sums& to, std::int64_t batch,
                        std::int64_t t, int column) {
  const bool is_b = column < static_cast<int>(kStates);
  const cuda::GradRows<bf16>& rows = is_b ? to.b : to.c;
  if (!rows.data) return;
  const std::int64_t steps = pass.schedule.periods * kPeriod;
  const float4 sum =
      sum_of<8>(reinterpret_cast<const float4*>(pass.partials.b_c) +
                    (batch * steps + t) * kRowVectors + column / kVector,
                pass.B * steps * kRowVectors, static_cast<int>(pass.schedule.blocks));
  // One by one: slices of x_proj's output may begin anywhere.
  bf16* element = rows[batch * pass.L + t] + column % static_cast<int>(kStates);
  cuda::put(rows.mode, element[0], sum.x);
  cuda::put(rows.mode, element[1], sum.y);
  cuda::put(rows.mode, element[2], sum.z);
  cuda::put(rows.mode, element[3], sum.w);
}

/// Sums element `i` of arrays of `size` elements over pieces and batch rows, into `to`.
__device__ void sum_pieces(const BackwardTiles& pass, const float* from, std::int64_t size,
                           std::int64_t i, const cuda::GradRows<float>& to) {
  if (!to.data) return;
  const auto count = static_cast<int>(pass.partials.pieces) * pass.B;
  cuda::put(to.mode, to.data[i], sum_of<16>(from + i, size, count));
}

/// Grid (row_blocks + blocks for the parameters), block kThreads. Memory bound: grad_b and grad_c
/// are read once for each block of channels.
__global__ void __launch_bounds__(kThreads)
    sum_tiles_kernel(const __grid_constant__ BackwardTiles pass, const __grid_constant__ Sums to) {
  const std::int64_t D = pass.D;
  cuda::wait_for_last_kernel();
  if (blockIdx.x < to.row_blocks) {
    const std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
    const auto row = static_cast<unsigned>(i / kRowVectors), L = static_cast<unsigned>(pass.L);
    if (row >= static_cast<unsigned>(pass.B) * L) return;
    sum_row(pass, to, row / L, row % L, static_cast<int>(i % kRowVectors) * kVector);
    return;
  }
  std::int64_t i = std::int64_t{blockIdx.x - to.row_blocks} * kThreads + threadIdx.x;
  if (i < D * kStates) {
    sum_pieces(pass, pass.partials.a_log, D * kStates, i, to.a_log);
  } else if (i -= D * kStates; i < D) {
    sum_pieces(pass, pass.partials.d_skip, D, i, to.d_skip);
  } else if (i -= D; i < D) {
    sum_pieces(pass, pass.partials.dt_bias, D, i, to.dt_bias);
  }
}

}  // namespace

void sum_tiles(CudaExec& gpu, const BackwardTiles& pass, const SelectiveScan::In<Grad>& to) {
  const std::int64_t rows = std::int64_t{pass.B} * pass.L;
  const auto row_blocks = static_cast<unsigned>(ceil_div(rows * kRowVectors, kThreads));
  const std::int64_t parameters = std::int64_t{pass.D} * (kStates + 2);
  cuda::launch(gpu, SelectiveScan::kName, sum_tiles_kernel,
               {.grid = dim3(row_blocks + static_cast<unsigned>(ceil_div(parameters, kThreads))),
                .block = dim3(kThreads),
                .early = true},
               pass,
               Sums{.b = cuda::GradRows<bf16>(to.b),
                    .c = cuda::GradRows<bf16>(to.c),
                    .a_log = cuda::GradRows<float>(to.a_log),
                    .d_skip = cuda::GradRows<float>(to.d_skip),
                    .dt_bias = cuda::GradRows<float>(to.dt_bias),
                    .row_blocks = row_blocks});
}

}  // namespace jiboia::scan_tiles
