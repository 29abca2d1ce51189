#include "core/cuda/sort.h"
#include "core/memory.h"
#include "kernels/embedding/embedding.h"
#include "kernels/vectors.cuh"

namespace jiboia {
namespace {

// Positions, sorted by token, are cut into pieces of this many, so that a frequent token does not
// become one long sum.
constexpr int kPiecePositions = 64;
constexpr int kThreads = 64;  // each with a vector of columns
constexpr int kAhead = 8;     // loads that a thread has under way at a time

/// x[i] = weight[tokens[i]].
/// Grid ceil(positions / 4), block (64 vectors of columns, 4 positions). Limited by writing x.
template <class T, int kWidth>
__global__ void __launch_bounds__(4 * kThreads)
    look_up(const std::int32_t* __restrict__ tokens, const T* __restrict__ weight,
            float* __restrict__ x, std::int64_t positions, std::int64_t E) {
  const std::int64_t position = std::int64_t{blockIdx.x} * 4 + threadIdx.y;
  if (position >= positions) return;
  const T* from = weight + tokens[position] * E;
  float* to = x + position * E;
  for (std::int64_t i = threadIdx.x * kWidth; i < E; i += kThreads * kWidth) {
    float values[kWidth];
    cuda::load(from + i, values);
    cuda::store(values, to + i);
  }
}

/// values[i] = i: what is sorted with the tokens. Grid ceil(count / 256), block 256.
__global__ void __launch_bounds__(256) number(std::int32_t* values, std::int64_t count) {
  const std::int64_t i = std::int64_t{blockIdx.x} * 256 + threadIdx.x;
  if (i < count) values[i] = static_cast<std::int32_t>(i);
}

/// The gradient's way from the sorted positions to the table.
struct Runs {
  const std::int32_t* tokens;     ///< of the positions, sorted by token
  const std::int32_t* positions;  ///< in that order
  const float* grad_x;            ///< (positions, E)
  float* partials;                ///< (pieces, 2, E): the runs that a piece shares with others
  float* grad_weight;             ///< (V, E)
  std::int64_t count, E;
  GradMode mode;
};

template <int kWidth>
__device__ void add_to(float (&sum)[kWidth], const float (&more)[kWidth]) {
#pragma unroll
  for (int j = 0; j < kWidth; ++j) sum[j] += more[j];
}

/// Adds up each run of equal tokens within a piece of 64 sorted positions. A run that lies in one
/// piece goes to the table; one that began in an earlier piece goes to partials[piece][0], one that
/// begins here and goes on to partials[piece][1].
/// Grid (pieces, ceil(E / (64 kWidth))), block 64, 512 bytes of shared memory. Limited by reading
/// grad_x.
template <int kWidth>
__global__ void __launch_bounds__(kThreads) sum_pieces(Runs runs) {
  __shared__ std::int32_t tokens[kPiecePositions], positions[kPiecePositions];
  const std::int64_t begin = std::int64_t{blockIdx.x} * kPiecePositions;
  const int count =
      static_cast<int>(runs.count - begin < kPiecePositions ? runs.count - begin : kPiecePositions);
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kThreads) {
    tokens[i] = runs.tokens[begin + i];
    positions[i] = runs.positions[begin + i];
  }
  __syncthreads();
  const std::int64_t column = (std::int64_t{blockIdx.y} * kThreads + threadIdx.x) * kWidth;
  if (column >= runs.E) return;
  const bool first_goes_on = begin > 0 && runs.tokens[begin - 1] == tokens[0];
  const bool last_goes_on =
      begin + count < runs.count && runs.tokens[begin + count] == tokens[count - 1];

  float sum[kWidth] = {};
  bool in_first_run = true;
  for (int first = 0; first < count; first += kAhead) {
    float ahead[kAhead][kWidth];
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      if (first + k < count) {
        cuda::load(runs.grad_x + positions[first + k] * runs.E + column, ahead[k]);
      }
    }
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      const int i = first + k;
      if (i >= count) break;
      add_to(sum, ahead[k]);
      const bool piece_ends = i + 1 == count;
      if (!piece_ends && tokens[i + 1] == tokens[i]) continue;
      if (in_first_run && first_goes_on) {
        cuda::store(sum, runs.partials + 2 * std::int64_t{blockIdx.x} * runs.E + column);
      } else if (piece_ends && last_goes_on) {
        cuda::store(sum, runs.partials + (2 * std::int64_t{blockIdx.x} + 1) * runs.E + column);
      } else {
        cuda::put(runs.mode, runs.grad_weight + tokens[i] * runs.E + column, sum);
      }
#pragma unroll
      for (float& element : sum) element = 0;
      in_first_run = false;
    }
  }
}

/// Adds the parts of each run that spans several pieces, in order. The piece where it begins does.
/// Grid (pieces, ceil(E / (64 kWidth))), block 64. Limited by latency for long runs.
template <int kWidth>
__global__ void __launch_bounds__(kThreads) join_pieces(Runs runs) {
  const std::int64_t pieces = ceil_div(runs.count, kPiecePositions), piece = blockIdx.x;
  const std::int64_t begin = piece * kPiecePositions, next = begin + kPiecePositions;
  const std::int64_t column = (std::int64_t{blockIdx.y} * kThreads + threadIdx.x) * kWidth;
  if (next >= runs.count || column >= runs.E) return;
  const std::int32_t token = runs.tokens[next - 1];
  if (runs.tokens[next] != token) return;
  if (begin > 0 && runs.tokens[begin - 1] == token) return;  // began earlier

  float sum[kWidth];
  cuda::load(runs.partials + (2 * piece + 1) * runs.E + column, sum);
  for (std::int64_t first = piece + 1;; first += kAhead) {
    // Tokens are sorted: the run is in those of the next pieces that begin with its token.
    int parts = 0;
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      parts += first + k < pieces && runs.tokens[(first + k) * kPiecePositions] == token;
    }
    float ahead[kAhead][kWidth];
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      if (k < parts) {
        cuda::load(runs.partials + 2 * (first + k) * runs.E + column, ahead[k]);
      }
    }
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      if (k < parts) add_to(sum, ahead[k]);
    }
    if (parts < kAhead) break;
  }
  cuda::put(runs.mode, runs.grad_weight + token * runs.E + column, sum);
}

template <int kWidth>
void add_runs(CudaExec& gpu, const Runs& runs) {
  const cuda::Launch shape{
      .grid = dim3(static_cast<unsigned>(ceil_div(runs.count, kPiecePositions)),
                   static_cast<unsigned>(ceil_div(runs.E, kThreads * kWidth))),
      .block = dim3(kThreads)};
  cuda::launch(gpu, Embedding::kName, sum_pieces<kWidth>, shape, runs);
  cuda::launch(gpu, Embedding::kName, join_pieces<kWidth>, shape, runs);
}

}  // namespace

std::int64_t Embedding::scratch_bytes(const CudaExec&, Pass pass, const In<Spec>& in,
                                      const Attrs&) {
  if (pass == Pass::kForward) return 0;
  const std::int64_t positions = in.tokens.size(), V = in.weight.shape[0], E = in.weight.shape[1];
  const std::int64_t pieces = ceil_div(positions, kPiecePositions);
  return static_cast<std::int64_t>(
      3 * ScratchReader::padded_bytes<std::int32_t>(positions) +
      ScratchReader::padded_bytes<float>(2 * pieces * E) +
      ScratchReader::padded_bytes<std::byte>(cuda::sort_pairs_scratch_bytes(positions, V)));
}

void Embedding::forward(CudaExec& gpu, const ForwardArgs<Embedding>& args) {
  const Tensor& weight = args.in.weight;
  const std::int64_t E = weight.columns(), positions = args.in.tokens.size();
  cuda::visit_stored(weight.dtype, [&]<class T>() {
    const bool by_four = E % 4 == 0 && cuda::aligned(weight.data, 4 * sizeof(T)) &&
                         cuda::aligned(args.out.x.data, 4 * sizeof(float));
    cuda::launch(
        gpu, kName, by_four ? look_up<T, 4> : look_up<T, 1>,
        {.grid = dim3(static_cast<unsigned>(ceil_div(positions, 4))), .block = dim3(kThreads, 4)},
        args.in.tokens.as<std::int32_t>(), weight.as<T>(), args.out.x.as<float>(), positions, E);
  });
}

void Embedding::backward(CudaExec& gpu, const BackwardArgs<Embedding>& args) {
  const Grad& grad = args.grad_in.weight;
  if (!grad) return;
  const std::int64_t E = grad.columns(), V = grad.rows(), positions = args.in.tokens.size();
  if (grad.mode == GradMode::kOverwrite) fill_zero(gpu, grad);  // rows that no position reads
  if (positions == 0) return;
  ScratchReader scratch(args.scratch);
  auto* numbers = scratch.take<std::int32_t>(positions);
  auto* sorted_tokens = scratch.take<std::int32_t>(positions);
  auto* sorted_positions = scratch.take<std::int32_t>(positions);
  auto* partials = scratch.take<float>(2 * ceil_div(positions, kPiecePositions) * E);
  const std::int64_t sort_bytes = cuda::sort_pairs_scratch_bytes(positions, V);
  auto* sort_scratch = scratch.take<std::byte>(sort_bytes);

  cuda::launch(gpu, kName, number,
               {.grid = dim3(static_cast<unsigned>(ceil_div(positions, 256))), .block = dim3(256)},
               numbers, positions);
  cuda::sort_pairs(gpu, kName,
                   {.keys = args.in.tokens.as<std::int32_t>(),
                    .sorted_keys = sorted_tokens,
                    .values = numbers,
                    .sorted_values = sorted_positions,
                    .count = positions,
                    .key_limit = V},
                   {sort_scratch, static_cast<std::size_t>(sort_bytes)});
  const Runs runs{.tokens = sorted_tokens,
                  .positions = sorted_positions,
                  .grad_x = args.grad_out.x.as<float>(),
                  .partials = partials,
                  .grad_weight = grad.as<float>(),
                  .count = positions,
                  .E = E,
                  .mode = grad.mode};
  const bool by_four = E % 4 == 0 && cuda::aligned(runs.grad_x, 4 * sizeof(float)) &&
                       cuda::aligned(runs.grad_weight, 4 * sizeof(float));
  by_four ? add_runs<4>(gpu, runs) : add_runs<1>(gpu, runs);
}

}  // namespace jiboia
