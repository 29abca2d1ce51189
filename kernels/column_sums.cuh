#pragma once
#include <algorithm>
#include <span>

#include "core/cuda/kernel.cuh"

/// Sums over rows, in an order that depends on shapes alone: blocks of rows go to partial sums in
/// scratch memory, and the partial sums are added in a fixed order.
namespace jiboia::cuda {

/// Threads of a block.
inline constexpr int kSumThreads = 512;

/// The sum over threadIdx.y, in order, in the threads with threadIdx.y = 0. To be called once, by
/// all kSumThreads threads of the block; 2 KiB of shared memory.
__device__ inline float sum_over_lanes(float value) {
  __shared__ float values[kSumThreads];
  values[threadIdx.y * blockDim.x + threadIdx.x] = value;
  __syncthreads();
  if (threadIdx.y != 0) return 0;
  for (unsigned lane = 1; lane < blockDim.y; ++lane) {
    value += values[lane * blockDim.x + threadIdx.x];
  }
  return value;
}

/// to[i] (+)= sum over tiles of partials[tile][i], i over `size` elements in rows of `columns`.
/// Block (x elements, y tile lanes) of kSumThreads threads, grid ceil(size / x), 2 KiB of shared
/// memory: lane y adds the tiles y, y + lanes, ..., then the lanes are added in order. Memory
/// bound.
template <class T>
__global__ void __launch_bounds__(kSumThreads)
    sum_partials_kernel(const float* __restrict__ partials, std::int64_t tiles, std::int64_t size,
                        std::int64_t columns, GradRows<T> to) {
  const std::int64_t i = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  float sum = 0;
  if (i < size) {
    for (std::int64_t tile = threadIdx.y; tile < tiles; tile += blockDim.y) {
      sum += partials[tile * size + i];
    }
  }
  sum = sum_over_lanes(sum);
  if (threadIdx.y == 0 && i < size) put(to.mode, to[i / columns][i % columns], sum);
}

/// to (+)= sum over tiles of partials, an array (tiles, elements of `to`) of fp32 in GPU memory.
/// `to` may be a slice of columns. Asynchronous. Errors: Unsupported unless `to` is f32 or bf16.
inline void sum_partials(CudaExec& gpu, const Where& where, const float* partials,
                         std::int64_t tiles, const Grad& to) {
  unsigned lanes = 1;
  while (lanes < 16 && lanes < tiles) lanes *= 2;
  const unsigned width = kSumThreads / lanes;
  visit_stored(to.dtype, [&]<class T>() {
    launch(gpu, where, sum_partials_kernel<T>,
           {.grid = dim3(static_cast<unsigned>(ceil_div(to.size(), width))),
            .block = dim3(width, lanes)},
           partials, tiles, to.size(), to.columns(), GradRows<T>(to));
  });
}

/// How the rows of a sum are cut into tiles: at least 64 rows each, at most 256 tiles.
struct RowTiles {
  explicit RowTiles(std::int64_t row_count)
      : rows(row_count),
        rows_per_tile(std::max<std::int64_t>(64, ceil_div(row_count, 256))),
        tiles(ceil_div(row_count, rows_per_tile)) {}
  std::int64_t rows, rows_per_tile, tiles;
};

/// partials[tile][column] = sum of `from` over the tile's rows.
/// Block (32 columns, 16 row lanes), grid (ceil(columns / 32), tiles), 2 KiB of shared memory: a
/// lane adds every 16th row, then the lanes are added in order. Memory bound.
template <class T>
__global__ void __launch_bounds__(kSumThreads)
    sum_rows_kernel(Rows<const T> from, std::int64_t columns, RowTiles cut,
                    float* __restrict__ partials) {
  const std::int64_t column = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  const std::int64_t begin = blockIdx.y * cut.rows_per_tile;
  const std::int64_t end =
      begin + cut.rows_per_tile < cut.rows ? begin + cut.rows_per_tile : cut.rows;
  float sum = 0;
  if (column < columns) {
    for (std::int64_t row = begin + threadIdx.y; row < end; row += blockDim.y) {
      sum += to_float(from[row][column]);
    }
  }
  sum = sum_over_lanes(sum);
  if (threadIdx.y == 0 && column < columns) partials[blockIdx.y * columns + column] = sum;
}

/// Scratch that column_sums() wants for a matrix of this shape.
inline std::int64_t column_sums_scratch_bytes(std::int64_t rows, std::int64_t columns) {
  return static_cast<std::int64_t>(
      ScratchReader::padded_bytes<float>(RowTiles(rows).tiles * columns));
}

/// to (+)= sum of the rows of `from`, f32 or bf16, possibly a slice of columns, summed in fp32.
/// `to` has as many elements as `from` has columns. Asynchronous. Errors: Unsupported for other
/// dtypes, Internal when the scratch is too small.
inline void column_sums(CudaExec& gpu, const Where& where, const Tensor& from, const Grad& to,
                        std::span<std::byte> scratch) {
  const RowTiles cut(from.rows());
  const std::int64_t columns = from.columns();
  float* partials = ScratchReader(scratch).take<float>(cut.tiles * columns);
  visit_stored(from.dtype, [&]<class T>() {
    launch(gpu, where, sum_rows_kernel<T>,
           {.grid = dim3(static_cast<unsigned>(ceil_div(columns, 32)),
                         static_cast<unsigned>(cut.tiles)),
            .block = dim3(32, kSumThreads / 32)},
           Rows<const T>(from), columns, cut, partials);
  });
  sum_partials(gpu, where, partials, cut.tiles, to);
}

}  // namespace jiboia::cuda
