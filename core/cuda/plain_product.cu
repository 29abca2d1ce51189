#include "core/cuda/kernel.cuh"
#include "core/cuda/plain_product.h"

namespace jiboia::cuda {
namespace {

constexpr int kTile = 64;      // rows and columns of the result that a block computes
constexpr int kDepth = 16;     // of the shared dimension, held in shared memory at a time
constexpr int kThreads = 256;  // in 16 rows of 16, each thread with 4 x 4 elements

/// Element (i, j) of a matrix is data[i * row_step + j * column_step].
template <class T>
struct View {
  T* data;
  std::int64_t rows, columns, row_step, column_step;
};

template <class T>
View<T> view_of(const DeviceMatrix& m) {
  return {static_cast<T*>(m.data), m.rows, m.columns, m.transposed ? 1 : m.row_stride,
          m.transposed ? m.row_stride : 1};
}

/// Copies rows [first_row, + kTile) and columns [first_column, + kDepth) of `from` to shared memory
/// as to[column][row], zeros beyond its end. Neighbouring threads read along memory.
template <class T>
__device__ void stage(const View<const T>& from, std::int64_t first_row, std::int64_t first_column,
                      float (*to)[kTile + 1]) {
  for (int i = static_cast<int>(threadIdx.x); i < kTile * kDepth; i += kThreads) {
    const bool along_columns = from.column_step == 1;
    const int row = along_columns ? i / kDepth : i % kTile;
    const int column = along_columns ? i % kDepth : i / kTile;
    const std::int64_t r = first_row + row, c = first_column + column;
    to[column][row] = r < from.rows && c < from.columns
                          ? to_float(from.data[r * from.row_step + c * from.column_step])
                          : 0.f;
  }
}

/// to (+)= left right.
/// Grid: one block for each 64 x 64 tile of the result, along x; block 256; 8.1 KiB of shared
/// memory. Limited by shared memory loads, two for four multiplications.
template <class T, class To>
__global__ void __launch_bounds__(kThreads)
    plain_product_kernel(View<To> to, View<const T> left, View<const T> right, GradMode mode) {
  __shared__ float left_tile[kDepth][kTile + 1];
  __shared__ float right_tile[kDepth][kTile + 1];
  const std::int64_t column_tiles = ceil_div(to.columns, kTile);
  const std::int64_t first_row = blockIdx.x / column_tiles * kTile;
  const std::int64_t first_column = blockIdx.x % column_tiles * kTile;
  // A thread has every 16th row and column, so that neighbours read neighbouring words.
  const int thread_row = static_cast<int>(threadIdx.x) / 16;
  const int thread_column = static_cast<int>(threadIdx.x) % 16;
  const View<const T> right_columns{right.data, right.columns, right.rows, right.column_step,
                                    right.row_step};

  float sums[4][4] = {};
  for (std::int64_t k = 0; k < left.columns; k += kDepth) {
    stage(left, first_row, k, left_tile);
    stage(right_columns, first_column, k, right_tile);
    __syncthreads();
#pragma unroll
    for (int depth = 0; depth < kDepth; ++depth) {
      float l[4], r[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        l[i] = left_tile[depth][thread_row + 16 * i];
        r[i] = right_tile[depth][thread_column + 16 * i];
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) sums[i][j] = fmaf(l[i], r[j], sums[i][j]);
      }
    }
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const std::int64_t row = first_row + thread_row + 16 * i;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const std::int64_t column = first_column + thread_column + 16 * j;
      if (row < to.rows && column < to.columns) {
        put(mode, to.data[row * to.row_step + column], sums[i][j]);
      }
    }
  }
}

template <class T, class To>
void launch_product(CUstream_st* stream, const char* op, const MatrixProduct& product) {
  const std::int64_t tiles = ceil_div(product.to.rows, kTile) * ceil_div(product.to.columns, kTile);
  launch(stream, op, plain_product_kernel<T, To>,
         {.grid = dim3(static_cast<unsigned>(tiles)), .block = dim3(kThreads)},
         view_of<To>(product.to), view_of<const T>(product.left), view_of<const T>(product.right),
         product.mode);
}

}  // namespace

void multiply_plainly(CUstream_st* stream, const char* op, const MatrixProduct& product) {
  visit_stored(product.left.dtype, [&]<class T>() {
    if (product.to.dtype == product.left.dtype) {
      launch_product<T, T>(stream, op, product);
    } else {
      launch_product<T, float>(stream, op, product);
    }
  });
}

}  // namespace jiboia::cuda
