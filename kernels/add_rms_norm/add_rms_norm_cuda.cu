#include "kernels/add_rms_norm/add_rms_norm.h"
#include "kernels/column_sums.cuh"
#include "kernels/vectors.cuh"

namespace jiboia {
namespace {

using cuda::bf16;
using cuda::GradRows;
using cuda::Rows;

constexpr int kWidth = 4;         ///< elements of a vector
constexpr int kHeld = 8;          ///< vectors of a row that a thread keeps in registers
constexpr int kMaxThreads = 512;  ///< of a block
constexpr int kUsualThreads = 128;
constexpr std::int64_t kMaxTiles = 512;

// Multiplications and additions that belong together are written as fmaf(): left to the compiler,
// their bits could change with whether a gradient is wanted.

/// How rows meet threads. Rows of whole vectors that fit into registers: threads (x) share a row,
/// rows (y) share a block. Other rows: one block a row, elements read again where they are needed.
struct Geometry {
  Geometry(std::int64_t row_count, std::int64_t columns, bool vectors)
      : rows(row_count), E(columns) {
    while (threads < kMaxThreads && threads * kHeld * kWidth < E) threads *= 2;
    held = vectors && threads * kHeld * kWidth >= E;
    if (!held) threads = kUsualThreads;
    lanes = held && threads < kUsualThreads ? kUsualThreads / threads : 1;
    // Tiles of the sum over rows: about as many as a large GPU runs at once.
    rows_per_tile = ceil_div(ceil_div(rows, kMaxTiles), lanes) * lanes;
    tiles = rows > 0 ? ceil_div(rows, rows_per_tile) : 0;
  }
  dim3 block() const { return dim3(static_cast<unsigned>(threads), static_cast<unsigned>(lanes)); }

  std::int64_t rows, E;
  std::int64_t threads = 32, lanes = 1;
  std::int64_t rows_per_tile = 1, tiles = 0;
  bool held = false;
};

/// Sum over the blockDim.x threads that share a row, the same bits in each. To be called by all
/// threads of the block.
__device__ float row_sum(float value) {
  __shared__ float sums[kMaxThreads / 32];
  if (blockDim.x > 32) __syncthreads();  // after the reads of the call before
  return cuda::over_row(value, cuda::Sum(), sums);
}

template <class T>
struct Forward {
  explicit Forward(const ForwardArgs<AddRmsNorm>& args)
      : residual(args.in.residual),
        update(args.in.update),
        weight(args.in.weight.as<float>()),
        sum(args.out.sum),
        normed(args.out.normed),
        rstd(args.out.rstd.as<float>()),
        rows(args.in.residual.rows()),
        E(args.in.residual.columns()),
        eps(static_cast<float>(args.attrs.eps)) {}

  __device__ float rstd_of(float squares) const {
    return 1.0F / sqrtf(squares / static_cast<float>(E) + eps);
  }

  Rows<const float> residual;
  Rows<const T> update;  ///< may be absent, and then so is sum
  const float* weight;
  Rows<float> sum;
  Rows<T> normed;
  float* rstd;
  std::int64_t rows, E;
  float eps;
};

/// Block (threads of a row, rows), grid over rows; 64 bytes of shared memory. The row is in
/// registers: one read and one write of every tensor. Memory bound.
template <class T>
__global__ void __launch_bounds__(kMaxThreads) forward_held(const Forward<T> at) {
  const std::int64_t row = std::int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
  const bool there = row < at.rows;
  const auto column = [](int i) { return (i * blockDim.x + threadIdx.x) * kWidth; };
  float x[kHeld][kWidth];
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    if (there && column(i) < at.E) cuda::load(at.residual[row] + column(i), x[i]);
  }
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    if (!there || !at.update.data || column(i) >= at.E) continue;
    float update[kWidth];
    cuda::load(at.update[row] + column(i), update);
#pragma unroll
    for (int k = 0; k < kWidth; ++k) x[i][k] += update[k];
  }
  float squares = 0;
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    if (!there || column(i) >= at.E) continue;
    if (at.sum.data) cuda::store(x[i], at.sum[row] + column(i));
#pragma unroll
    for (int k = 0; k < kWidth; ++k) squares = fmaf(x[i][k], x[i][k], squares);
  }
  const float rstd = at.rstd_of(row_sum(squares));
  if (!there) return;
  if (threadIdx.x == 0) at.rstd[row] = rstd;
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    if (column(i) >= at.E) continue;
    float weight[kWidth], normed[kWidth];
    cuda::load(at.weight + column(i), weight);
#pragma unroll
    for (int k = 0; k < kWidth; ++k) normed[k] = weight[k] * (x[i][k] * rstd);
    cuda::store(normed, at.normed[row] + column(i));
  }
}

/// Block kUsualThreads, one a row; 64 bytes of shared memory. For rows that are not whole vectors,
/// or too long for registers.
template <class T>
__global__ void __launch_bounds__(kUsualThreads) forward_any(const Forward<T> at) {
  const std::int64_t row = blockIdx.x;
  const float* residual = at.residual[row];
  float squares = 0;
  for (std::int64_t i = threadIdx.x; i < at.E; i += kUsualThreads) {
    float x = residual[i];
    if (at.update.data) {
      x += cuda::to_float(at.update[row][i]);
      at.sum[row][i] = x;
    }
    squares = fmaf(x, x, squares);
  }
  const float rstd = at.rstd_of(row_sum(squares));
  if (threadIdx.x == 0) at.rstd[row] = rstd;
  // Each thread reads again what it wrote itself.
  const float* x = at.update.data ? at.sum[row] : residual;
  for (std::int64_t i = threadIdx.x; i < at.E; i += kUsualThreads) {
    at.normed[row][i] = cuda::from_float<T>(at.weight[i] * (x[i] * rstd));
  }
}

template <class T>
struct Backward {
  Backward(const BackwardArgs<AddRmsNorm>& args, const Geometry& cut, float* partials)
      : x(args.in.update ? args.out.sum : args.in.residual),
        weight(args.in.weight.as<float>()),
        rstd(args.out.rstd.as<float>()),
        grad_sum(args.grad_out.sum),
        grad_normed(args.grad_out.normed),
        grad_residual(args.grad_in.residual),
        grad_update(args.grad_in.update),
        weight_partials(args.grad_in.weight ? partials : nullptr),
        rows(cut.rows),
        E(cut.E),
        rows_per_tile(cut.rows_per_tile) {}

  /// The first row of this block's tile, and the first behind it.
  __device__ std::int64_t begin() const { return blockIdx.x * rows_per_tile; }
  __device__ std::int64_t end() const {
    return begin() + rows_per_tile < rows ? begin() + rows_per_tile : rows;
  }

  Rows<const float> x;
  const float *weight, *rstd;
  Rows<const float> grad_sum;  ///< may be absent, as all gradients may
  Rows<const T> grad_normed;
  GradRows<float> grad_residual;
  GradRows<T> grad_update;
  float* weight_partials;  ///< (tiles, E), null when not wanted
  std::int64_t rows, E, rows_per_tile;
};

/// Block (threads of a row, rows), grid over tiles of rows: the block walks its tile, each thread
/// adds up its columns' grad_weight. The row is in registers: one read and one write of every
/// tensor. Shared memory: 64 bytes, and E floats for each of several rows. Memory bound.
template <class T>
__global__ void __launch_bounds__(kMaxThreads) backward_held(const Backward<T> at) {
  const auto column = [](int i) { return (i * blockDim.x + threadIdx.x) * kWidth; };
  float weight_sums[kHeld][kWidth] = {};
  for (std::int64_t first = at.begin(); first < at.end(); first += blockDim.y) {
    const std::int64_t row = first + threadIdx.y;
    const bool there = row < at.end();
    float xhat[kHeld][kWidth], a[kHeld][kWidth];  // a: grad_normed, then weight * grad_normed
    float rstd = 0, mean = 0;
    if (at.grad_normed.data) {
      if (there) rstd = at.rstd[row];
#pragma unroll
      for (int i = 0; i < kHeld; ++i) {
        if (!there || column(i) >= at.E) continue;
        cuda::load(at.x[row] + column(i), xhat[i]);
        cuda::load(at.grad_normed[row] + column(i), a[i]);
      }
      float dot = 0;
#pragma unroll
      for (int i = 0; i < kHeld; ++i) {
        if (!there || column(i) >= at.E) continue;
        float weight[kWidth];
        cuda::load(at.weight + column(i), weight);
#pragma unroll
        for (int k = 0; k < kWidth; ++k) {
          xhat[i][k] *= rstd;
          weight_sums[i][k] = fmaf(a[i][k], xhat[i][k], weight_sums[i][k]);
          a[i][k] *= weight[k];
          dot = fmaf(a[i][k], xhat[i][k], dot);
        }
      }
      mean = row_sum(dot) / static_cast<float>(at.E);
    }
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      if (!there || column(i) >= at.E) continue;
      float grad[kWidth] = {};
      if (at.grad_sum.data) cuda::load(at.grad_sum[row] + column(i), grad);
      if (at.grad_normed.data) {
#pragma unroll
        for (int k = 0; k < kWidth; ++k)
          grad[k] = fmaf(rstd, fmaf(-xhat[i][k], mean, a[i][k]), grad[k]);
      }
      if (at.grad_residual.data) {
        cuda::put(at.grad_residual.mode, at.grad_residual[row] + column(i), grad);
      }
      if (at.grad_update.data) {
        cuda::put(at.grad_update.mode, at.grad_update[row] + column(i), grad);
      }
    }
  }
  if (!at.weight_partials) return;
  float* partials = at.weight_partials + blockIdx.x * at.E;
  if (blockDim.y > 1) {
    auto* sums = reinterpret_cast<float*>(cuda::dynamic_shared());  // (rows of the block, E)
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      if (column(i) < at.E) cuda::store(weight_sums[i], sums + threadIdx.y * at.E + column(i));
    }
    __syncthreads();
    if (threadIdx.y != 0) return;
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      for (unsigned lane = 1; lane < blockDim.y && column(i) < at.E; ++lane) {
        float other[kWidth];
        cuda::load(sums + lane * at.E + column(i), other);
#pragma unroll
        for (int k = 0; k < kWidth; ++k) weight_sums[i][k] += other[k];
      }
    }
  }
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    if (column(i) < at.E) cuda::store(weight_sums[i], partials + column(i));
  }
}

/// Block kUsualThreads, grid over tiles of rows; 64 bytes of shared memory. grad_weight adds up in
/// the tile's partial sums in memory. For rows that are not whole vectors, or too long for
/// registers.
template <class T>
__global__ void __launch_bounds__(kUsualThreads) backward_any(const Backward<T> at) {
  float* partials = at.weight_partials ? at.weight_partials + blockIdx.x * at.E : nullptr;
  for (std::int64_t row = at.begin(); row < at.end(); ++row) {
    const float rstd = at.rstd[row];
    float mean = 0;
    if (at.grad_normed.data) {
      float dot = 0;
      for (std::int64_t i = threadIdx.x; i < at.E; i += kUsualThreads) {
        const float xhat = at.x[row][i] * rstd, grad = cuda::to_float(at.grad_normed[row][i]);
        dot = fmaf(at.weight[i] * grad, xhat, dot);
        if (partials) partials[i] = fmaf(grad, xhat, row == at.begin() ? 0 : partials[i]);
      }
      mean = row_sum(dot) / static_cast<float>(at.E);
    } else if (partials && row == at.begin()) {
      for (std::int64_t i = threadIdx.x; i < at.E; i += kUsualThreads) partials[i] = 0;
    }
    for (std::int64_t i = threadIdx.x; i < at.E; i += kUsualThreads) {
      float grad = at.grad_sum.data ? at.grad_sum[row][i] : 0;
      if (at.grad_normed.data) {
        const float a = at.weight[i] * cuda::to_float(at.grad_normed[row][i]);
        grad = fmaf(rstd, fmaf(-(at.x[row][i] * rstd), mean, a), grad);
      }
      if (at.grad_residual.data) {
        cuda::put(at.grad_residual.mode, at.grad_residual[row][i], grad);
      }
      if (at.grad_update.data) cuda::put(at.grad_update.mode, at.grad_update[row][i], grad);
    }
  }
}

}  // namespace

std::int64_t AddRmsNorm::scratch_bytes(const CudaExec&, Pass pass, const In<Spec>& in,
                                       const Attrs&) {
  if (pass == Pass::kForward) return 0;
  const std::int64_t rows = in.residual.rows(), E = in.residual.columns();
  // Whether the memory takes vectors shows later only; without them there are no fewer tiles.
  const std::int64_t tiles =
      std::max(Geometry(rows, E, true).tiles, Geometry(rows, E, false).tiles);
  return static_cast<std::int64_t>(ScratchReader::padded_bytes<float>(tiles * E));
}

void AddRmsNorm::forward(CudaExec& gpu, const ForwardArgs<AddRmsNorm>& args) {
  const auto& [in, out, attrs, scratch] = args;
  bool vectors = true;
  for (const Tensor& tensor : {in.residual, in.update, in.weight, out.sum, out.normed}) {
    vectors = vectors && cuda::takes_vectors<kWidth>(tensor);
  }
  const Geometry cut(in.residual.rows(), in.residual.columns(), vectors);
  cuda::visit_stored(out.normed.dtype, [&]<class T>() {
    const auto blocks = static_cast<unsigned>(ceil_div(cut.rows, cut.lanes));
    cuda::launch(gpu, kName, cut.held ? forward_held<T> : forward_any<T>,
                 {.grid = dim3(blocks), .block = cut.block()}, Forward<T>(args));
  });
}

void AddRmsNorm::backward(CudaExec& gpu, const BackwardArgs<AddRmsNorm>& args) {
  const auto& [in, out, attrs, grad_out, grad_in, scratch] = args;
  const Tensor& x = in.update ? out.sum : in.residual;
  float* partials = nullptr;
  bool vectors = true;
  for (const Tensor& tensor : {x, in.weight, grad_out.sum, grad_out.normed,
                               Tensor(grad_in.residual), Tensor(grad_in.update)}) {
    vectors = vectors && cuda::takes_vectors<kWidth>(tensor);
  }
  const Geometry cut(x.rows(), x.columns(), vectors);
  if (grad_in.weight) partials = ScratchReader(scratch).take<float>(cut.tiles * cut.E);
  const Dtype activation =
      attrs.activations == Activations::kBf16 ? Dtype::kBf16 : in.residual.dtype;
  cuda::visit_stored(activation, [&]<class T>() {
    const std::size_t shared = cut.lanes > 1 ? cut.lanes * cut.E * sizeof(float) : 0;
    cuda::launch(gpu, kName, cut.held ? backward_held<T> : backward_any<T>,
                 {.grid = dim3(static_cast<unsigned>(cut.tiles)),
                  .block = cut.block(),
                  .shared_bytes = shared},
                 Backward<T>(args, cut, partials));
  });
  if (grad_in.weight) cuda::sum_partials(gpu, kName, partials, cut.tiles, grad_in.weight);
}

}  // namespace jiboia
