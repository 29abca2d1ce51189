#include <algorithm>

#include "core/cuda/ptx.cuh"
#include "kernels/cross_entropy/cross_entropy.h"
#include "kernels/matrix_cuda.h"
#include "kernels/vectors.cuh"

namespace jiboia {
namespace {

using cuda::from_float;
using cuda::to_float;

// Logits that exist at a time: enough rows for efficient products. With 32,000 entries these are
// 5,632 rows, whose gradient of 768 columns is 132 tiles of 128 x 256, one for each multiprocessor.
constexpr std::int64_t kChunkBytes = std::int64_t{344} << 20;
constexpr std::int64_t kMinChunkRows = 128;
// A row of logits that fits here, and into a block's shared memory, is kept there and read once.
constexpr std::int64_t kMaxSharedRowBytes = 160 * 1024;
constexpr int kSumThreads = 1024;
// Sums of warps, for each of the two that score_rows() makes.
using WarpPartials = float[2][32];
constexpr float kLog2E = 1.44269504088896340736f;

/// How the logits are laid out and cut; of shapes and dtype alone.
struct Chunks {
  Chunks(std::int64_t row_count, std::int64_t V, Dtype dtype)
      // Rows start at multiples of 128 bytes, for vectors and for the products.
      : stride(ceil_div(V * size_of(dtype), 128) * 128 / size_of(dtype)) {
    const std::int64_t fitting =
        kChunkBytes / (stride * size_of(dtype)) / kMinChunkRows * kMinChunkRows;
    rows = std::min(row_count, std::max(fitting, kMinChunkRows));
  }
  std::int64_t stride, rows;
};

/// Loss of one row.
struct RowLoss {
  float cross_entropy, lse_squared;
};

/// Coefficients of grad_logits that all rows share.
struct GradScale {
  float per_target, per_lse;
};

struct Largest {  // passes over NaN, which the sum of exponentials then meets
  __device__ float operator()(float a, float b) const { return fmaxf(a, b); }
};

/// scale->per_target = 1 / number of targets, 0 without any.
/// One block of 1024 threads, 128 bytes of shared memory; limited by latency.
__global__ void __launch_bounds__(kSumThreads)
    count_targets(const std::int32_t* __restrict__ targets, std::int64_t rows, float per_lse,
                  GradScale* scale) {
  __shared__ int counts[32];
  int count = 0;
#pragma unroll 8  // loads that are under way at a time
  for (std::int64_t i = threadIdx.x; i < rows; i += kSumThreads) {
    count += targets[i] != kIgnoredTarget;
  }
  count = cuda::over_row(count, cuda::Sum(), counts);
  if (threadIdx.x != 0) return;
  *scale = {count ? static_cast<float>(1.0 / count) : 0.f, per_lse};
}

/// exp(logit - largest); results below 1.2e-38 become 0.
__device__ float exponential(float logit, float largest) {
  return cuda::exp2_approx((logit - largest) * kLog2E);
}

template <class T>
struct ScoreRows {
  T* logits;  ///< (rows, stride), of which V are used; with `write_gradients` they become theirs
  const std::int32_t* targets;
  RowLoss* losses;
  const GradScale* scale;
  std::int64_t stride;
  std::int32_t V;
  bool write_gradients;
};

/// Loss of each row of logits, and their gradients in their place.
/// Grid: a block for each row; block: a multiple of 32 threads; shared memory: the row itself where
/// it fits. Reads each logit once, evaluates two exponentials of it and writes it once: limited by
/// memory and by issue alike.
template <class T, bool kInShared>
__global__ void __launch_bounds__(512, 3) score_rows(ScoreRows<T> args) {
  constexpr int kPack = 16 / sizeof(T);
  using Pack = cuda::Vector<T, kPack>;
  __shared__ WarpPartials partials;
  T* const logits = args.logits + blockIdx.x * args.stride;
  T* const kept = kInShared ? reinterpret_cast<T*>(cuda::dynamic_shared()) : logits;
  const int V = args.V, whole = V / kPack;
  const int begin = static_cast<int>(threadIdx.x), step = static_cast<int>(blockDim.x);
  const std::int32_t target = args.targets[blockIdx.x];
  const bool has_target = target != kIgnoredTarget;
  // Read before any thread writes gradients.
  const T target_logit = has_target ? logits[target] : T(0.f);

  // A thread reads only what it has copied or written itself, so the row in shared memory needs no
  // barrier of its own.
  if constexpr (kInShared) {
    for (int i = begin; i < whole; i += step) {
      cuda::async_copy<sizeof(Pack)>(kept + i * kPack, logits + i * kPack, true);
    }
    cuda::async_copies_commit();
    for (int v = whole * kPack + begin; v < V; v += step) kept[v] = logits[v];
    cuda::async_copies_wait<0>();
  }
  float largest = -INFINITY;
#pragma unroll 4
  for (int i = begin; i < whole; i += step) {
    float values[kPack];
    cuda::load(kept + i * kPack, values);
#pragma unroll
    for (int j = 0; j < kPack; ++j) largest = fmaxf(largest, values[j]);
  }
  for (int v = whole * kPack + begin; v < V; v += step) largest = fmaxf(largest, to_float(kept[v]));
  largest = cuda::over_row(largest, Largest(), partials[0]);

  float sum = 0;
#pragma unroll 4
  for (int i = begin; i < whole; i += step) {
    float values[kPack];
    cuda::load(kept + i * kPack, values);
#pragma unroll
    for (int j = 0; j < kPack; ++j) sum += exponential(values[j], largest);
  }
  for (int v = whole * kPack + begin; v < V; v += step) {
    sum += exponential(to_float(kept[v]), largest);
  }
  sum = cuda::over_row(sum, cuda::Sum(), partials[1]);

  const float log_sum = logf(sum), lse = largest + log_sum;
  if (threadIdx.x == 0) {
    args.losses[blockIdx.x] = {has_target ? (largest - to_float(target_logit)) + log_sum : 0.f,
                               lse * lse};
  }
  if (!args.write_gradients) return;

  const GradScale scale = *args.scale;
  const float factor = ((has_target ? scale.per_target : 0.f) + scale.per_lse * lse) / sum;
#pragma unroll 4
  for (int i = begin; i < whole; i += step) {
    float values[kPack];
    cuda::load(kept + i * kPack, values);
#pragma unroll
    for (int j = 0; j < kPack; ++j) values[j] = exponential(values[j], largest) * factor;
    cuda::store(values, logits + i * kPack);
  }
  for (int v = whole * kPack + begin; v < V; v += step) {
    logits[v] = from_float<T>(exponential(to_float(kept[v]), largest) * factor);
  }
  // Whoever wrote the target's element above writes it again.
  const int owner = target < whole * kPack ? target / kPack % step : target - whole * kPack;
  if (has_target && begin == owner) {
    logits[target] =
        from_float<T>(exponential(to_float(target_logit), largest) * factor - scale.per_target);
  }
}

/// The three results from the losses of all rows, summed in f64.
/// One block of 1024 threads, 512 bytes of shared memory; limited by latency.
__global__ void __launch_bounds__(kSumThreads)
    sum_losses(const RowLoss* __restrict__ losses, std::int64_t rows, const GradScale* scale,
               double z_loss, CrossEntropy::Out<float*> out) {
  __shared__ double partials[2][32];
  double cross_entropy = 0, lse_squared = 0;
#pragma unroll 8  // loads that are under way at a time
  for (std::int64_t i = threadIdx.x; i < rows; i += kSumThreads) {
    cross_entropy += losses[i].cross_entropy;
    lse_squared += losses[i].lse_squared;
  }
  cross_entropy = cuda::over_row(cross_entropy, cuda::Sum(), partials[0]);
  lse_squared = cuda::over_row(lse_squared, cuda::Sum(), partials[1]);
  if (threadIdx.x != 0) return;
  cross_entropy *= scale->per_target;
  lse_squared /= static_cast<double>(rows);
  *out.cross_entropy = static_cast<float>(cross_entropy);
  *out.lse_squared = static_cast<float>(lse_squared);
  *out.loss = static_cast<float>(cross_entropy + z_loss * lse_squared);
}

/// Threads that score a row: at least 16 logits for each, where there are.
unsigned threads_for_row(std::int64_t V) {
  return static_cast<unsigned>(std::clamp<std::int64_t>(ceil_div(V, 16 * 32) * 32, 32, 512));
}

template <class T>
void score(CudaExec& gpu, const LossArgs<CrossEntropy>& args, bool with_gradients) {
  const auto& in = args.in;
  const std::int64_t rows = in.x.rows(), V = in.weight.shape[0];
  const Chunks chunks(rows, V, in.x.dtype);
  const auto* targets = in.targets.as<std::int32_t>();
  ScratchReader scratch(args.scratch);
  T* logits = scratch.take<T>(chunks.rows * chunks.stride);
  RowLoss* losses = scratch.take<RowLoss>(rows);
  GradScale* scale = scratch.take<GradScale>(1);

  const auto per_lse = static_cast<float>(2 * args.attrs.z_loss / static_cast<double>(rows));
  cuda::launch(gpu, CrossEntropy::kName, count_targets,
               {.grid = dim3(1), .block = dim3(kSumThreads)}, targets, rows, per_lse, scale);

  const std::int64_t row_bytes = chunks.stride * size_of(in.x.dtype);
  const std::int64_t shared_bytes =
      gpu.gpu().shared_bytes_per_block - static_cast<std::int64_t>(sizeof(WarpPartials));
  const bool keep_in_shared = row_bytes <= std::min(kMaxSharedRowBytes, shared_bytes);
  const auto x = device_matrix(in.x), weight = device_matrix(in.weight);
  for (std::int64_t begin = 0; begin < rows; begin += chunks.rows) {
    const std::int64_t count = std::min(chunks.rows, rows - begin);
    const auto chunk = middle_rows(x, begin, count);
    const cuda::DeviceMatrix chunk_logits{logits, in.x.dtype, count, V, chunks.stride};
    multiply(gpu, CrossEntropy::kName, GradMode::kOverwrite, chunk_logits, chunk,
             transpose(weight));
    cuda::launch(gpu, CrossEntropy::kName,
                 keep_in_shared ? score_rows<T, true> : score_rows<T, false>,
                 {.grid = dim3(static_cast<unsigned>(count)),
                  .block = dim3(threads_for_row(V)),
                  .shared_bytes = keep_in_shared ? static_cast<std::size_t>(row_bytes) : 0},
                 ScoreRows<T>{.logits = logits,
                              .targets = targets + begin,
                              .losses = losses + begin,
                              .scale = scale,
                              .stride = chunks.stride,
                              .V = static_cast<std::int32_t>(V),
                              .write_gradients = with_gradients});
    if (const Grad& grad = args.grad_in.x) {
      multiply(gpu, CrossEntropy::kName, grad.mode, middle_rows(device_matrix(grad), begin, count),
               chunk_logits, weight);
    }
    if (const Grad& grad = args.grad_in.weight) {
      const GradMode mode = begin == 0 ? grad.mode : GradMode::kAdd;
      multiply(gpu, CrossEntropy::kName, mode, device_matrix(grad), transpose(chunk_logits), chunk);
    }
  }
  cuda::launch(
      gpu, CrossEntropy::kName, sum_losses, {.grid = dim3(1), .block = dim3(kSumThreads)}, losses,
      rows, scale, args.attrs.z_loss,
      CrossEntropy::Out<float*>{args.out.loss.as<float>(), args.out.cross_entropy.as<float>(),
                                args.out.lse_squared.as<float>()});
}

}  // namespace

std::int64_t CrossEntropy::scratch_bytes(const CudaExec&, Pass, const In<Spec>& in, const Attrs&) {
  const std::int64_t rows = in.x.rows();
  const Chunks chunks(rows, in.weight.shape[0], in.x.dtype);
  return static_cast<std::int64_t>(
      ScratchReader::padded_bytes<std::byte>(chunks.rows * chunks.stride * size_of(in.x.dtype)) +
      ScratchReader::padded_bytes<RowLoss>(rows) + ScratchReader::padded_bytes<GradScale>(1));
}

void CrossEntropy::forward(CudaExec& gpu, const ForwardArgs<CrossEntropy>& args) {
  const LossArgs<CrossEntropy> loss_args{
      .in = args.in, .out = args.out, .attrs = args.attrs, .scratch = args.scratch};
  cuda::visit_stored(args.in.x.dtype, [&]<class T>() { score<T>(gpu, loss_args, false); });
}

void CrossEntropy::forward_backward(CudaExec& gpu, const LossArgs<CrossEntropy>& args) {
  cuda::visit_stored(args.in.x.dtype, [&]<class T>() { score<T>(gpu, args, true); });
}

}  // namespace jiboia
