#include <cmath>

#include "kernels/global_norm/global_norm_levels.h"
#include "kernels/vectors.cuh"

namespace jiboia {
namespace {

constexpr int kThreads = 256;
static_assert(kNormBlock % (4 * kThreads) == 0);

__device__ double term(float element) {
  return static_cast<double>(element) * static_cast<double>(element);
}
__device__ double term(double partial) { return partial; }

/// The sum over the block, the same bits in all threads. To be called once, by all threads.
__device__ double block_sum(double value) {
  __shared__ double sums[kThreads / 32];
  return cuda::over_row(value, cuda::Sum(), sums);
}

/// A thread's share of the sum of up to kNormBlock terms, always in the same order. With kThreads
/// threads, it has four consecutive ones, then the four that are 4 kThreads further, ...
template <class T>
__device__ double thread_sum(const T* from, std::int64_t count, bool vectors) {
  double sum = 0;
  if constexpr (std::is_same_v<T, float>) {
    if (vectors && count == kNormBlock) {
      float elements[kNormBlock / kThreads / 4][4];
#pragma unroll
      for (int i = 0; i < kNormBlock / kThreads / 4; ++i) {
        cuda::load(from + (i * kThreads + threadIdx.x) * 4, elements[i]);
      }
#pragma unroll
      for (int i = 0; i < kNormBlock / kThreads / 4; ++i) {
#pragma unroll
        for (int k = 0; k < 4; ++k) sum += term(elements[i][k]);
      }
      return sum;
    }
  }
  for (std::int64_t i = 4 * threadIdx.x; i < count; i += 4 * kThreads) {
    for (std::int64_t k = i; k < i + 4 && k < count; ++k) sum += term(from[k]);
  }
  return sum;
}

/// to[block] = sum of the terms of kNormBlock elements, or partial sums.
/// Block kThreads, one for each kNormBlock; 64 bytes of shared memory. Memory bound.
template <class T>
__global__ void __launch_bounds__(kThreads) partial_sums(const T* __restrict__ from, std::int64_t n,
                                                         bool vectors, double* __restrict__ to) {
  const std::int64_t begin = blockIdx.x * kNormBlock;
  const std::int64_t count = n - begin < kNormBlock ? n - begin : kNormBlock;
  const double sum = block_sum(thread_sum(from + begin, count, vectors));
  if (threadIdx.x == 0) to[blockIdx.x] = sum;
}

struct Smallest {
  __device__ int operator()(int a, int b) const { return b < a ? b : a; }
};

/// The first of up to kNormBlock numbers that is not finite, in all threads; `count` when all are.
/// To be called by all threads.
template <class T>
__device__ int first_not_finite(const T* from, std::int64_t count) {
  __shared__ int firsts[kThreads / 32];
  int first = static_cast<int>(count);
  for (int i = static_cast<int>(count) - 1 - static_cast<int>(threadIdx.x); i >= 0; i -= kThreads) {
    if (!isfinite(from[i])) first = i;
  }
  first = cuda::over_row(first, Smallest(), firsts);
  __syncthreads();  // before the next call writes
  return first;
}

struct Tree {
  const float* flat;
  std::int64_t n;
  int levels;
  double* sums[NormLevels::kMax];
  std::int64_t counts[NormLevels::kMax];
};

/// The end: adds the last level. When the sum is not finite, it goes down the tree: squares of f32
/// add up in f64 without overflow, so the first sum that is not finite holds the first element.
/// One block of kThreads; 128 bytes of shared memory. Limited by latency.
__global__ void __launch_bounds__(kThreads)
    finish(const Tree tree, double* norm, std::int64_t* first_not_finite_element) {
  const int last = tree.levels - 1;
  const double sum = block_sum(thread_sum(tree.sums[last], tree.counts[last], false));
  if (threadIdx.x == 0) *norm = sqrt(sum);
  // The same in all threads, as block_sum() is.
  std::int64_t first = -1;
  if (!isfinite(sum)) {
    first = 0;
    for (int level = last; level >= 0; --level) {
      const std::int64_t left = tree.counts[level] - first;
      first += first_not_finite(tree.sums[level] + first, left < kNormBlock ? left : kNormBlock);
      first *= kNormBlock;
    }
    const std::int64_t left = tree.n - first;
    first += first_not_finite(tree.flat + first, left < kNormBlock ? left : kNormBlock);
  }
  if (threadIdx.x == 0) *first_not_finite_element = first;
}

}  // namespace

void global_norm(CudaExec& gpu, const GlobalNorm& args, std::span<std::byte> scratch) {
  constexpr const char* kName = "global_norm";
  require_consistent(args);
  require(args.flat.dtype == Dtype::kF32, ErrorKind::kUnsupported,
          "global_norm: flat is {}, the GPU takes f32", args.flat.to_string());
  const NormLevels levels(args.flat.size());
  ScratchReader reader(scratch);
  Tree tree{args.flat.as<float>(), args.flat.size(), levels.levels, {}, {}};
  for (int level = 0; level < levels.levels; ++level) {
    tree.counts[level] = levels.counts[static_cast<std::size_t>(level)];
    tree.sums[level] = reader.take<double>(tree.counts[level]);
    const cuda::Launch shape{.grid = dim3(static_cast<unsigned>(tree.counts[level])),
                             .block = dim3(kThreads)};
    if (level == 0) {
      cuda::launch(gpu, kName, partial_sums<float>, shape, tree.flat, tree.n,
                   cuda::aligned(tree.flat, 16), tree.sums[0]);
    } else {
      cuda::launch(gpu, kName, partial_sums<double>, shape, tree.sums[level - 1],
                   tree.counts[level - 1], false, tree.sums[level]);
    }
  }
  cuda::launch(gpu, kName, finish, {.grid = dim3(1), .block = dim3(kThreads)}, tree,
               args.norm.as<double>(), args.first_not_finite.as<std::int64_t>());
}

}  // namespace jiboia
