#include <algorithm>

#include "core/cuda/kernel.cuh"
#include "kernels/cross_entropy/cross_entropy.h"
#include "kernels/matrix_cuda.h"

namespace jiboia {
namespace {

using cuda::ceil_div;
using cuda::from_float;
using cuda::to_float;

// Logits that exist at a time: enough rows for efficient products.
constexpr std::int64_t kChunkBytes = std::int64_t{256} << 20;
constexpr std::int64_t kMinChunkRows = 128;
// A row of logits that fits here is kept in shared memory and read once.
constexpr std::int64_t kMaxSharedRowBytes = 160 * 1024;
constexpr int kSumThreads = 1024;
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

struct Sum {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return a + b;
  }
};
struct Largest {  // passes over NaN, which the sum of exponentials then meets
  __device__ float operator()(float a, float b) const { return fmaxf(a, b); }
};

/// combine() over the values of all threads of a block, whole warps, in a fixed order; every thread
/// gets the result. `shared` has 32 elements; a barrier must come before they are used otherwise.
template <class T, class Combine>
__device__ T over_block(T value, Combine combine, T* shared) {
  for (int offset = 16; offset > 0; offset /= 2) {
    value = combine(value, __shfl_xor_sync(0xFFFFFFFFu, value, offset));
  }
  const unsigned warps = blockDim.x / 32;
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = value;
  __syncthreads();
  T result = shared[0];
  for (unsigned warp = 1; warp < warps; ++warp) result = combine(result, shared[warp]);
  return result;
}

/// scale->per_target = 1 / number of targets, 0 without any.
/// One block of 1024 threads, 128 bytes of shared memory; limited by latency.
__global__ void __launch_bounds__(kSumThreads)
    count_targets(const std::int32_t* __restrict__ targets, std::int64_t rows, float per_lse,
                  GradScale* scale) {
  __shared__ int counts[32];
  int count = 0;
  for (std::int64_t i = threadIdx.x; i < rows; i += kSumThreads) {
    count += targets[i] != kIgnoredTarget;
  }
  count = over_block(count, Sum(), counts);
  if (threadIdx.x != 0) return;
  *scale = {count ? static_cast<float>(1.0 / count) : 0.f, per_lse};
}

/// 16 bytes of T.
template <class T>
struct alignas(16) Pack {
  static constexpr int kSize = 16 / sizeof(T);
  T values[kSize];
};

/// exp(logit - largest).
template <class T>
__device__ float exponential(T logit, float largest) {
  return exp2f((to_float(logit) - largest) * kLog2E);
}

template <class T>
struct ScoreRows {
  T* logits;  ///< (rows, stride), of which V are used; with `write_gradients` they become theirs
  const std::int32_t* targets;
  RowLoss* losses;
  const GradScale* scale;
  std::int64_t stride;
  std::int32_t V;
  bool keep_in_shared, write_gradients;
};

/// Loss of each row of logits, and their gradients in their place.
/// Grid: a block for each row; block: a multiple of 32 threads; shared memory: the row itself where
/// it fits. Reads each logit once, evaluates two exponentials of it and writes it once: limited by
/// memory and by issue alike.
template <class T>
__global__ void __launch_bounds__(512, 3) score_rows(ScoreRows<T> args) {
  constexpr int kPack = Pack<T>::kSize;
  constexpr int kAhead = 2;  // loads that are under way at a time
  __shared__ float partials[2][32];
  T* const logits = args.logits + blockIdx.x * args.stride;
  T* const kept = args.keep_in_shared ? reinterpret_cast<T*>(cuda::dynamic_shared()) : logits;
  auto* const packs = reinterpret_cast<Pack<T>*>(logits);
  auto* const kept_packs = reinterpret_cast<Pack<T>*>(kept);
  const int V = args.V, whole = V / kPack;
  const int begin = static_cast<int>(threadIdx.x), step = static_cast<int>(blockDim.x);
  const std::int32_t target = args.targets[blockIdx.x];
  const bool has_target = target != kIgnoredTarget;
  // Read before any thread writes gradients.
  const T target_logit = has_target ? logits[target] : T(0.f);

  // A thread reads again only what it has written itself, so the row in shared memory needs no
  // barrier of its own.
  float largest = -INFINITY;
  for (int first = begin; first < whole; first += kAhead * step) {
    Pack<T> ahead[kAhead];
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      if (first + k * step < whole) ahead[k] = packs[first + k * step];
    }
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      if (first + k * step >= whole) break;
      if (args.keep_in_shared) kept_packs[first + k * step] = ahead[k];
#pragma unroll
      for (int j = 0; j < kPack; ++j) largest = fmaxf(largest, to_float(ahead[k].values[j]));
    }
  }
  for (int v = whole * kPack + begin; v < V; v += step) {
    if (args.keep_in_shared) kept[v] = logits[v];
    largest = fmaxf(largest, to_float(logits[v]));
  }
  largest = over_block(largest, Largest(), partials[0]);

  float sum = 0;
  for (int i = begin; i < whole; i += step) {
    const Pack<T> pack = kept_packs[i];
#pragma unroll
    for (int j = 0; j < kPack; ++j) sum += exponential(pack.values[j], largest);
  }
  for (int v = whole * kPack + begin; v < V; v += step) sum += exponential(kept[v], largest);
  sum = over_block(sum, Sum(), partials[1]);

  const float log_sum = logf(sum), lse = largest + log_sum;
  if (threadIdx.x == 0) {
    args.losses[blockIdx.x] = {has_target ? (largest - to_float(target_logit)) + log_sum : 0.f,
                               lse * lse};
  }
  if (!args.write_gradients) return;

  const GradScale scale = *args.scale;
  const float factor = ((has_target ? scale.per_target : 0.f) + scale.per_lse * lse) / sum;
  for (int i = begin; i < whole; i += step) {
    Pack<T> pack = kept_packs[i];
#pragma unroll
    for (int j = 0; j < kPack; ++j) {
      pack.values[j] = from_float<T>(exponential(pack.values[j], largest) * factor);
    }
    packs[i] = pack;
  }
  for (int v = whole * kPack + begin; v < V; v += step) {
    logits[v] = from_float<T>(exponential(kept[v], largest) * factor);
  }
  // Whoever wrote the target's element above writes it again.
  const int owner = target < whole * kPack ? target / kPack % step : target - whole * kPack;
  if (has_target && begin == owner) {
    logits[target] = from_float<T>(exponential(target_logit, largest) * factor - scale.per_target);
  }
}

/// The three results from the losses of all rows, summed in f64.
/// One block of 1024 threads, 512 bytes of shared memory; limited by latency.
__global__ void __launch_bounds__(kSumThreads)
    sum_losses(const RowLoss* __restrict__ losses, std::int64_t rows, const GradScale* scale,
               double z_loss, CrossEntropy::Out<float*> out) {
  __shared__ double partials[2][32];
  double cross_entropy = 0, lse_squared = 0;
  for (std::int64_t i = threadIdx.x; i < rows; i += kSumThreads) {
    cross_entropy += losses[i].cross_entropy;
    lse_squared += losses[i].lse_squared;
  }
  cross_entropy = over_block(cross_entropy, Sum(), partials[0]);
  lse_squared = over_block(lse_squared, Sum(), partials[1]);
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
  const bool keep_in_shared = row_bytes <= kMaxSharedRowBytes;
  const auto x = device_matrix(in.x), weight = device_matrix(in.weight);
  for (std::int64_t begin = 0; begin < rows; begin += chunks.rows) {
    const std::int64_t count = std::min(chunks.rows, rows - begin);
    const auto chunk = middle_rows(x, begin, count);
    const cuda::DeviceMatrix chunk_logits{logits, in.x.dtype, count, V, chunks.stride};
    multiply(gpu, CrossEntropy::kName, GradMode::kOverwrite, chunk_logits, chunk,
             transpose(weight));
    cuda::launch(gpu, CrossEntropy::kName, score_rows<T>,
                 {.grid = dim3(static_cast<unsigned>(count)),
                  .block = dim3(threads_for_row(V)),
                  .shared_bytes = keep_in_shared ? static_cast<std::size_t>(row_bytes) : 0},
                 ScoreRows<T>{.logits = logits,
                              .targets = targets + begin,
                              .losses = losses + begin,
                              .scale = scale,
                              .stride = chunks.stride,
                              .V = static_cast<std::int32_t>(V),
                              .keep_in_shared = keep_in_shared,
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
