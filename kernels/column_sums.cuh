#pragma once
#include <algorithm>
#include <initializer_list>
#include <span>

#include "kernels/vectors.cuh"

/// Sums over rows, in an order that depends on shapes alone: blocks of rows go to partial sums in
/// scratch memory, and the partial sums are added in a fixed order.
namespace jiboia::cuda {

/// Partial sums over tiles, (tiles, elements of `to`) of fp32 in GPU memory, and where their sums
/// go, which may be a slice of columns. Skipped where `to` is absent.
struct PartialSums {
  const float* partials;
  Grad to;
};

/// PartialSums as kernels read them.
template <class T>
struct PartialRows {
  PartialRows() = default;
  explicit PartialRows(const PartialSums& sums)
      : partials(sums.partials), size(sums.to.size()), columns(sums.to.columns()), to(sums.to) {}

  const float* partials = nullptr;
  std::int64_t size = 0, columns = 1;
  GradRows<T> to;
};
inline constexpr int kMaxPartialSums = 4;
template <class T>
struct AllPartialRows {
  PartialRows<T> at[kMaxPartialSums];
};

inline constexpr int kPartialThreads = 256;
inline constexpr int kPartialsAhead = 8;  ///< loads of a thread that are under way at a time

/// to[i] (+)= sum over tiles of partials[tile][i], i over the elements of `to`.
/// Block (x vectors of kWidth elements, y tile lanes) of kPartialThreads threads, grid (ceil(most
/// elements / (x kWidth)), sums), kWidth KiB of shared memory: lane y adds the tiles y, y + lanes,
/// ..., then the lanes are added in their order. Limited by latency: starts early.
template <class T, int kWidth>
__global__ void __launch_bounds__(kPartialThreads)
    sum_partials_kernel(const AllPartialRows<T> all, std::int64_t tiles) {
  __shared__ __align__(16) float lanes[kPartialThreads * kWidth];
  const PartialRows<T>& sums = all.at[blockIdx.y];
  const int columns = static_cast<int>(blockDim.x) * kWidth;
  const std::int64_t first_column = std::int64_t{blockIdx.x} * columns;
  if (first_column >= sums.size) return;  // the whole block
  const std::int64_t i = first_column + threadIdx.x * kWidth;
  // The element that this thread writes, if any, is read with the partial sums, not after them.
  const int column = static_cast<int>(threadIdx.y * blockDim.x + threadIdx.x);
  const std::int64_t element = first_column + column;
  const bool writes = column < columns && element < sums.size;
  T* to = sums.to[element / sums.columns] + element % sums.columns;
  wait_for_last_kernel();
  const float old = writes && sums.to.mode == GradMode::kAdd ? to_float(*to) : 0;
  float sum[kWidth] = {};
  for (std::int64_t first = threadIdx.y; first < tiles; first += kPartialsAhead * blockDim.y) {
    float ahead[kPartialsAhead][kWidth] = {};
#pragma unroll
    for (int k = 0; k < kPartialsAhead; ++k) {
      const std::int64_t tile = first + k * blockDim.y;
      if (tile < tiles && i < sums.size) load(sums.partials + tile * sums.size + i, ahead[k]);
    }
#pragma unroll
    for (int k = 0; k < kPartialsAhead; ++k) {
#pragma unroll
      for (int j = 0; j < kWidth; ++j) sum[j] += ahead[k][j];
    }
  }
  store(sum, lanes + threadIdx.y * columns + threadIdx.x * kWidth);
  __syncthreads();
  if (!writes) return;
  float total = 0;
#pragma unroll 8
  for (unsigned lane = 0; lane < blockDim.y; ++lane) total += lanes[lane * columns + column];
  *to = from_float<T>(old + total);
}

/// Adds up to kMaxPartialSums partial sums over the same tiles, at once. Asynchronous.
/// Errors: Unsupported unless every present `to` is f32, or every one bf16.
inline void sum_partials(CudaExec& gpu, const Where& where, std::int64_t tiles,
                         std::initializer_list<PartialSums> all) {
  require(all.size() <= kMaxPartialSums, ErrorKind::kInternal, "{}: {} partial sums at once",
          where.name, all.size());
  Dtype dtype = Dtype::kF32;
  std::int64_t size = 0;
  unsigned count = 0;
  constexpr int kVector = 4;
  bool vectors = true;
  for (const PartialSums& sums : all) {
    if (!sums.to) continue;
    vectors = vectors && sums.to.size() % kVector == 0 &&
              aligned(sums.partials, kVector * static_cast<std::int64_t>(sizeof(float)));
    require(count == 0 || sums.to.dtype == dtype, ErrorKind::kUnsupported,
            "{}: sums of {} and {} at once", where.name, to_string(dtype),
            to_string(sums.to.dtype));
    dtype = sums.to.dtype;
    size = std::max(size, sums.to.size());
    ++count;
  }
  // Just enough lanes that each has all of its tiles under way at once, up to 512 tiles.
  unsigned lanes = 8;
  while (lanes < 64 && lanes * kPartialsAhead < tiles) lanes *= 2;
  const unsigned width = kPartialThreads / lanes;
  visit_stored(dtype, [&]<class T>() {
    AllPartialRows<T> rows;
    count = 0;
    for (const PartialSums& sums : all) {
      if (sums.to) rows.at[count++] = PartialRows<T>(sums);
    }
    const unsigned columns = width * (vectors ? kVector : 1);
    launch(gpu, where, vectors ? sum_partials_kernel<T, kVector> : sum_partials_kernel<T, 1>,
           {.grid = dim3(static_cast<unsigned>(ceil_div(size, columns)), count),
            .block = dim3(width, lanes),
            .early = true},
           rows, tiles);
  });
}
/// The same for one.
inline void sum_partials(CudaExec& gpu, const Where& where, const float* partials,
                         std::int64_t tiles, const Grad& to) {
  sum_partials(gpu, where, tiles, {{partials, to}});
}

/// How the rows of a sum are cut into tiles: at least 64 rows each, at most 256 tiles.
struct RowTiles {
  explicit RowTiles(std::int64_t row_count)
      : rows(row_count),
        rows_per_tile(std::max<std::int64_t>(64, ceil_div(row_count, 256))),
        tiles(ceil_div(row_count, rows_per_tile)) {}
  std::int64_t rows, rows_per_tile, tiles;
};

/// Threads of a block.
inline constexpr int kSumThreads = 512;

/// The sum over threadIdx.y, of which there are a power of two, as a tree, in the threads with
/// threadIdx.y = 0. To be called once, by all kSumThreads threads of the block; 2 KiB of shared
/// memory.
__device__ inline float sum_over_lanes(float value) {
  __shared__ float values[kSumThreads];
  float* mine = values + threadIdx.y * blockDim.x + threadIdx.x;
  *mine = value;
  __syncthreads();
  for (unsigned lanes = blockDim.y / 2; lanes > 0; lanes /= 2) {
    if (threadIdx.y < lanes) *mine = value += mine[lanes * blockDim.x];
    __syncthreads();
  }
  return value;
}

/// partials[tile][column] = sum of `from` over the tile's rows.
/// Block (32 columns, 16 row lanes), grid (ceil(columns / 32), tiles), 2 KiB of shared memory: a
/// lane adds every 16th row, then the lanes are added. Memory bound.
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
#pragma unroll 4
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
