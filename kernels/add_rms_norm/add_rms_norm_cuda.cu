#include "kernels/add_rms_norm/add_rms_norm.h"
#include "kernels/column_sums.cuh"
#include "kernels/vectors.cuh"

namespace jiboia {
namespace {

using cuda::bf16;
using cuda::GradRows;
using cuda::Rows;

constexpr int kWidth = 4;  ///< elements of a vector
constexpr int kUsualThreads = 128;
constexpr int kMaxWarps = 16;  ///< of a row
// Tiles of the sum over rows: as many blocks as a large GPU runs at once.
constexpr std::int64_t kMaxTiles = 528;

// Multiplications and additions that belong together are written as fmaf(): left to the compiler,
// their bits could change with whether a gradient is wanted.

/// How a row of whole vectors lies in registers: kThreadCount threads (x) share a row, each has
/// every kThreadCount-th of its vectors, at most kHeldVectors; short rows (y) share a block.
template <int kThreadCount, int kHeldVectors>
struct Layout {
  static constexpr int kThreads = kThreadCount, kHeld = kHeldVectors;
  static constexpr int kColumns = kThreads * kHeld * kWidth;
  static constexpr int kLanes = kThreads < kUsualThreads ? kUsualThreads / kThreads : 1;
  static constexpr int kBlock = kThreads * kLanes;
  static dim3 block() { return dim3(kThreads, kLanes); }
  /// Blocks that the registers of a multiprocessor are to suffice for.
  static constexpr int kBlocks = kBlock > kUsualThreads ? 1 : kHeld > 6 ? 3 : 4;

  /// Calls visit(i, column) for each vector that this thread has of a row of E elements.
  template <class Visit>
  static __device__ void for_each(int E, Visit visit) {
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      const int column = (i * kThreads + static_cast<int>(threadIdx.x)) * kWidth;
      if (column < E) visit(i, column);
    }
  }
};
/// Of rows that are not whole vectors, or too long for registers: one block a row, elements read
/// again where they are needed.
struct AnyLayout {
  static constexpr int kThreads = kUsualThreads, kHeld = 0, kLanes = 1;
  static dim3 block() { return dim3(kThreads); }
};

/// Sum over the kThreads threads that share a row, the same bits in each. To be called by all
/// threads of the block.
template <int kThreads>
__device__ float row_sum(float value) {
  __shared__ float sums[kMaxWarps];
  if constexpr (kThreads > 32) __syncthreads();  // after the reads of the call before
  return cuda::over_row(value, cuda::Sum(), sums);
}

/// Calls visitor.template operator()<L>() with the layout for rows of E elements.
template <class Visitor>
void visit_layout(std::int64_t E, bool vectors, Visitor visitor) {
  if (vectors && E <= Layout<32, 3>::kColumns) {
    visitor.template operator()<Layout<32, 3>>();
  } else if (vectors && E <= Layout<32, 6>::kColumns) {
    visitor.template operator()<Layout<32, 6>>();
  } else if (vectors && E <= Layout<32, 8>::kColumns) {
    visitor.template operator()<Layout<32, 8>>();
  } else if (vectors && E <= Layout<128, 8>::kColumns) {
    visitor.template operator()<Layout<128, 8>>();
  } else if (vectors && E <= Layout<512, 8>::kColumns) {
    visitor.template operator()<Layout<512, 8>>();
  } else {
    visitor.template operator()<AnyLayout>();
  }
}

/// Tiles of the sum over rows, at most: each has at least a row.
std::int64_t tile_count(std::int64_t rows, int lanes) {
  return std::min(kMaxTiles, ceil_div(rows, lanes));
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

/// Block (L::kThreads, L::kLanes), grid over rows; 64 bytes of shared memory. The row is in
/// registers: one read and one write of every tensor. Memory bound.
template <class T, class L>
__global__ void __launch_bounds__(L::kBlock) forward_held(const Forward<T> at) {
  const std::int64_t row = std::int64_t{blockIdx.x} * L::kLanes + threadIdx.y;
  const bool there = row < at.rows;
  const int E = there ? static_cast<int>(at.E) : 0;
  float x[L::kHeld][kWidth];
  L::for_each(E, [&](int i, int column) { cuda::load(at.residual[row] + column, x[i]); });
  if (at.update.data) {
    L::for_each(E, [&](int i, int column) {
      float update[kWidth];
      cuda::load(at.update[row] + column, update);
#pragma unroll
      for (int k = 0; k < kWidth; ++k) x[i][k] += update[k];
    });
  }
  float squares = 0;
  L::for_each(E, [&](int i, int column) {
    if (at.sum.data) cuda::store(x[i], at.sum[row] + column);
#pragma unroll
    for (int k = 0; k < kWidth; ++k) squares = fmaf(x[i][k], x[i][k], squares);
  });
  const float rstd = at.rstd_of(row_sum<L::kThreads>(squares));
  if (there && threadIdx.x == 0) at.rstd[row] = rstd;
  L::for_each(E, [&](int i, int column) {
    float weight[kWidth], normed[kWidth];
    cuda::load(at.weight + column, weight);
#pragma unroll
    for (int k = 0; k < kWidth; ++k) normed[k] = weight[k] * (x[i][k] * rstd);
    cuda::store(normed, at.normed[row] + column);
  });
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
  const float rstd = at.rstd_of(row_sum<kUsualThreads>(squares));
  if (threadIdx.x == 0) at.rstd[row] = rstd;
  // Each thread reads again what it wrote itself.
  const float* x = at.update.data ? at.sum[row] : residual;
  for (std::int64_t i = threadIdx.x; i < at.E; i += kUsualThreads) {
    at.normed[row][i] = cuda::from_float<T>(at.weight[i] * (x[i] * rstd));
  }
}

template <class T>
struct Backward {
  Backward(const BackwardArgs<AddRmsNorm>& args, std::int64_t tile_count, float* partials)
      : x(args.in.update ? args.out.sum : args.in.residual),
        weight(args.in.weight.as<float>()),
        rstd(args.out.rstd.as<float>()),
        grad_sum(args.grad_out.sum),
        grad_normed(args.grad_out.normed),
        grad_residual(args.grad_in.residual),
        grad_update(args.grad_in.update),
        weight_partials(args.grad_in.weight ? partials : nullptr),
        rows(args.in.residual.rows()),
        E(args.in.residual.columns()),
        tiles(tile_count) {}

  /// The first row of this block's tile, and the first behind it.
  __device__ std::int64_t begin() const { return blockIdx.x * rows / tiles; }
  __device__ std::int64_t end() const { return (blockIdx.x + 1) * rows / tiles; }

  Rows<const float> x;
  const float *weight, *rstd;
  Rows<const float> grad_sum;  ///< may be absent, as all gradients may
  Rows<const T> grad_normed;
  GradRows<float> grad_residual;
  GradRows<T> grad_update;
  float* weight_partials;  ///< (tiles, E), null when not wanted
  std::int64_t rows, E, tiles;
};

/// What the backward pass reads of a row: all of it is asked for at once.
template <class T, class L>
struct BackwardRow {
  __device__ BackwardRow(const Backward<T>& at, std::int64_t row) {
    const int E = static_cast<int>(at.E);
    if (at.grad_normed.data) {
      rstd = at.rstd[row];
      L::for_each(E, [&](int i, int column) { cuda::load(at.x[row] + column, x[i]); });
      L::for_each(E, [&](int i, int column) {
        normed[i] = *reinterpret_cast<const cuda::Vector<T, kWidth>*>(at.grad_normed[row] + column);
      });
    }
    if (at.grad_sum.data) {
      L::for_each(E, [&](int i, int column) { cuda::load(at.grad_sum[row] + column, sum[i]); });
    }
  }

  float x[L::kHeld][kWidth] = {};
  cuda::Vector<T, kWidth> normed[L::kHeld] = {};  ///< its gradient
  float sum[L::kHeld][kWidth] = {};               ///< its gradient
  float rstd = 0;
};

/// Block (L::kThreads, L::kLanes), grid over tiles of rows: the block walks its tile, each thread
/// adds up its columns' grad_weight. The row is in registers: one read and one write of every
/// tensor. Shared memory: 64 bytes, and L::kColumns floats for each lane. Memory bound.
template <class T, class L>
__global__ void __launch_bounds__(L::kBlock, L::kBlocks) backward_held(const Backward<T> at) {
  static_assert(L::kThreads == 32 || L::kLanes == 1, "barriers are for all lanes");
  const int E = static_cast<int>(at.E);
  float weight_sums[L::kHeld][kWidth] = {};
  for (std::int64_t row = at.begin() + threadIdx.y; row < at.end(); row += L::kLanes) {
    BackwardRow<T, L> in(at, row);
    float grad[L::kHeld][kWidth] = {};  // weight * grad_normed, then of the row
    float dot = 0;
    L::for_each(E, [&](int i, int column) {
      float weight[kWidth];
      cuda::load(at.weight + column, weight);
      cuda::unpack<T>(in.normed[i], grad[i]);
#pragma unroll
      for (int k = 0; k < kWidth; ++k) {
        in.x[i][k] *= in.rstd;
        weight_sums[i][k] = fmaf(grad[i][k], in.x[i][k], weight_sums[i][k]);
        grad[i][k] *= weight[k];
        dot = fmaf(grad[i][k], in.x[i][k], dot);
      }
    });
    const float mean = row_sum<L::kThreads>(dot) / static_cast<float>(E);
    L::for_each(E, [&](int i, int) {
#pragma unroll
      for (int k = 0; k < kWidth; ++k) {
        grad[i][k] = fmaf(in.rstd, fmaf(-in.x[i][k], mean, grad[i][k]), in.sum[i][k]);
      }
    });
    const auto put = [&](const auto& to) {
      if (!to.data) return;
      L::for_each(E, [&](int i, int column) { cuda::put(to.mode, to[row] + column, grad[i]); });
    };
    put(at.grad_residual);
    put(at.grad_update);
  }
  if (!at.weight_partials) return;
  float* partials = at.weight_partials + blockIdx.x * at.E;
  if constexpr (L::kLanes == 1) {
    L::for_each(E, [&](int i, int column) { cuda::store(weight_sums[i], partials + column); });
  } else {
    __shared__ float lanes[L::kLanes][L::kColumns];
    L::for_each(
        E, [&](int i, int column) { cuda::store(weight_sums[i], lanes[threadIdx.y] + column); });
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.y * L::kThreads + threadIdx.x); i < E; i += L::kBlock) {
      float sum = lanes[0][i];
#pragma unroll
      for (int lane = 1; lane < L::kLanes; ++lane) sum += lanes[lane][i];
      partials[i] = sum;
    }
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
      mean = row_sum<kUsualThreads>(dot) / static_cast<float>(at.E);
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
  // Whether the memory takes vectors, and so the number of lanes, shows later only.
  const std::int64_t tiles = tile_count(in.residual.rows(), 1);
  return static_cast<std::int64_t>(
      ScratchReader::padded_bytes<float>(tiles * in.residual.columns()));
}

void AddRmsNorm::forward(CudaExec& gpu, const ForwardArgs<AddRmsNorm>& args) {
  const auto& [in, out, attrs, scratch] = args;
  bool vectors = true;
  for (const Tensor& tensor : {in.residual, in.update, in.weight, out.sum, out.normed}) {
    vectors = vectors && cuda::takes_vectors<kWidth>(tensor);
  }
  const std::int64_t rows = in.residual.rows(), E = in.residual.columns();
  cuda::visit_stored(out.normed.dtype, [&]<class T>() {
    visit_layout(E, vectors, [&]<class L>() {
      auto* kernel = forward_any<T>;
      if constexpr (L::kHeld > 0) kernel = forward_held<T, L>;
      cuda::launch(
          gpu, kName, kernel,
          {.grid = dim3(static_cast<unsigned>(ceil_div(rows, L::kLanes))), .block = L::block()},
          Forward<T>(args));
    });
  });
}

void AddRmsNorm::backward(CudaExec& gpu, const BackwardArgs<AddRmsNorm>& args) {
  const auto& [in, out, attrs, grad_out, grad_in, scratch] = args;
  const Tensor& x = in.update ? out.sum : in.residual;
  bool vectors = true;
  for (const Tensor& tensor : {x, in.weight, grad_out.sum, grad_out.normed,
                               Tensor(grad_in.residual), Tensor(grad_in.update)}) {
    vectors = vectors && cuda::takes_vectors<kWidth>(tensor);
  }
  const Dtype activation =
      attrs.activations == Activations::kBf16 ? Dtype::kBf16 : in.residual.dtype;
  cuda::visit_stored(activation, [&]<class T>() {
    visit_layout(x.columns(), vectors, [&]<class L>() {
      const std::int64_t tiles = tile_count(x.rows(), L::kLanes);
      float* partials = nullptr;
      if (grad_in.weight) partials = ScratchReader(scratch).take<float>(tiles * x.columns());
      auto* kernel = backward_any<T>;
      if constexpr (L::kHeld > 0) kernel = backward_held<T, L>;
      cuda::launch(gpu, kName, kernel,
                   {.grid = dim3(static_cast<unsigned>(tiles)), .block = L::block()},
                   Backward<T>(args, tiles, partials));
      cuda::sum_partials(gpu, kName, partials, tiles, grad_in.weight);
    });
  });
}

}  // namespace jiboia
