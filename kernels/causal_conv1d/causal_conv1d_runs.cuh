#pragma once
#include "kernels/causal_conv1d/causal_conv1d.h"
#include "kernels/vectors.cuh"

/// The fast kernels of causal_conv1d: threads walk runs of steps.
namespace jiboia {
namespace {

using cuda::GradRows;
using cuda::Rows;

constexpr int kPair = 2;    ///< channels of a thread
constexpr int kPairs = 64;  ///< threads side by side in a block
constexpr int kLanes = 4;   ///< runs of steps in a block
constexpr int kThreads = kPairs * kLanes;
constexpr int kAhead = 8;    ///< steps that a thread loads at once
constexpr int kMaxTaps = 4;  ///< of the kernels that walk runs

/// How the steps of batch rows are cut into runs, one a thread, and tiles, one a block; a block
/// has some of the channels.
struct Cut {
  /// Of steps behind its run, a thread walks `behind` as well.
  Cut(std::int64_t B, std::int64_t L, std::int64_t D, std::int64_t behind) {
    // Long walks read few steps twice; shorter ones where the GPU would not be filled.
    constexpr std::int64_t kEnoughThreads = 1 << 17;
    std::int64_t walk = 128;
    while (walk > 2 * kAhead && B * ceil_div(L, walk) * ceil_div(D, kPair) < kEnoughThreads) {
      walk /= 2;
    }
    steps = walk - behind;
    tiles_per_row = static_cast<unsigned>(ceil_div(L, steps * kLanes));
    tiles = B * tiles_per_row;
    blocks_per_tile = static_cast<unsigned>(ceil_div(D, kPairs * kPair));
  }
  dim3 grid() const { return dim3(static_cast<unsigned>(tiles * blocks_per_tile)); }

  std::int64_t steps, tiles;
  unsigned tiles_per_row, blocks_per_tile;
};

/// 1 / (1 + e^-s). For bf16 tensors by the fast functions: __expf is off by 2 + 1.2 |s| units in
/// the last place, at most 1.3e-5 of the result where that is not 0, and bf16 rounds by 3.9e-3.
template <class T>
__device__ float sigmoid(float s) {
  if constexpr (std::is_same_v<T, float>) {
    return 1.0F / (1.0F + expf(-s));
  } else {
    return __fdividef(1.0F, 1.0F + __expf(-s));  // 0 where the divisor is infinite
  }
}
/// d/ds of s * sigmoid(s).
template <class T>
__device__ float silu_slope(float s) {
  const float gate = sigmoid<T>(s);
  return gate * fmaf(s, 1.0F - gate, 1.0F);
}

template <class T>
struct Operands {
  explicit Operands(const CausalConv1d::In<>& in)
      : x(in.x),
        history(in.history),
        weight(in.weight.as<float>()),
        bias(in.bias ? in.bias.as<float>() : nullptr),
        document_start(in.document_start ? in.document_start.as<std::int32_t>() : nullptr),
        B(in.x.shape[0]),
        L(in.x.shape[1]),
        D(in.x.shape[2]),
        W(in.weight.shape[1]) {}

  /// Where the document of step `t` begins; 0 behind the row.
  __device__ std::int32_t start(std::int64_t batch, std::int64_t t) const {
    return document_start && t < L ? document_start[batch * L + t] : 0;
  }
  /// How many steps back from step `t` of a batch row count; steps before the row that are not
  /// there are zeros.
  __device__ int reach(std::int64_t batch, std::int64_t t) const {
    const int all = static_cast<int>(W) - 1;
    if (!document_start) return all;
    const std::int64_t start = document_start[batch * L + t];
    return start == 0 || t - start > all ? all : static_cast<int>(t - start);
  }
  /// x at step `t`, which may be one before the row; null for zeros.
  __device__ const T* step(std::int64_t batch, std::int64_t t) const {
    if (t >= 0) return x[batch * L + t];
    return history.data ? history[batch * (W - 1) + W - 1 + t] : nullptr;
  }

  Rows<const T> x, history;
  const float *weight, *bias;
  const std::int32_t* document_start;
  std::int64_t B, L, D, W;
};

/// Where a thread of the kernels of runs works.
struct Place {
  __device__ Place(const Cut& cut, std::int64_t L, std::int64_t D)
      : tile(blockIdx.x / cut.blocks_per_tile),
        batch(tile / cut.tiles_per_row),
        channel(std::int64_t{blockIdx.x % cut.blocks_per_tile * kPairs + threadIdx.x} * kPair),
        begin((tile % cut.tiles_per_row * kLanes + threadIdx.y) * cut.steps),
        end(begin + cut.steps < L ? begin + cut.steps : L),
        there(channel < D && begin < L) {}

  unsigned tile, batch;
  std::int64_t channel;
  std::int64_t begin, end;  ///< steps
  bool there;
};

/// How a chunk of kAhead steps is walked.
enum class Walk {
  kSimple,   ///< all of its steps are there, and no document begins near
  kCareful,  ///< each is looked at; the same bits
};

/// Two channels' weights in registers.
template <int kTaps>
struct Taps {
  template <class T>
  __device__ Taps(const Operands<T>& at, std::int64_t channel) {
#pragma unroll
    for (int c = 0; c < kPair; ++c) {
      bias[c] = at.bias ? at.bias[channel + c] : 0;
#pragma unroll
      for (int k = 0; k < kTaps; ++k) weight[k][c] = at.weight[(channel + c) * kTaps + k];
    }
  }
  /// s from the last kTaps inputs, of which `reach` before the last count.
  __device__ void convolve(const float (*inputs)[kPair], int reach, float (&s)[kPair]) const {
#pragma unroll
    for (int c = 0; c < kPair; ++c) s[c] = bias[c];
#pragma unroll
    for (int k = 0; k < kTaps; ++k) {
      if (kTaps - 1 - k > reach) continue;
#pragma unroll
      for (int c = 0; c < kPair; ++c) s[c] = fmaf(weight[k][c], inputs[k][c], s[c]);
    }
  }
  float weight[kTaps][kPair], bias[kPair];
};

/// The kTaps - 1 inputs before a run.
template <int kTaps, class T>
__device__ void load_before(const Operands<T>& at, const Place& place, float (*inputs)[kPair]) {
#pragma unroll
  for (int k = 0; k < kTaps - 1; ++k) {
    const T* from = at.step(place.batch, place.begin - (kTaps - 1) + k);
#pragma unroll
    for (int c = 0; c < kPair; ++c) inputs[k][c] = 0;
    if (from) cuda::load(from + place.channel, inputs[k]);
  }
}

/// Moves the last kCount of kAhead + kCount steps' values to the front.
template <int kCount>
__device__ void shift(float (*values)[kPair]) {
#pragma unroll
  for (int k = 0; k < kCount; ++k) {
#pragma unroll
    for (int c = 0; c < kPair; ++c) values[k][c] = values[kAhead + k][c];
  }
}

/// A run of the forward pass.
template <class T, int kTaps>
struct ForwardRun {
  static constexpr int kBefore = kTaps - 1;

  /// Steps [t, t + kAhead), up to the end of the run.
  template <Walk kWalk>
  __device__ void chunk(std::int64_t t) {
    const std::int64_t row = place.batch * at.L + t;
    const int count = kWalk == Walk::kSimple ? kAhead : static_cast<int>(place.end - t);
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      if (j < count) cuda::load(at.x[row + j] + place.channel, inputs[kBefore + j]);
    }
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      if (j >= count) continue;
      float s[kPair];
      taps.convolve(inputs + j, kWalk == Walk::kSimple ? kBefore : at.reach(place.batch, t + j), s);
#pragma unroll
      for (int c = 0; c < kPair; ++c) s[c] *= sigmoid<T>(s[c]);
      cuda::store(s, u[row + j] + place.channel);
    }
    shift<kBefore>(inputs);
  }

  const Operands<T>& at;
  const Place& place;
  const Rows<T>& u;
  const Taps<kTaps> taps;
  float inputs[kBefore + kAhead][kPair];
};

/// Block (kPairs, kLanes), grid over channels, then tiles of steps; no shared memory. Each thread
/// walks a run of steps of two channels with the last inputs in registers. Memory bound; in bf16
/// instruction issue is not far behind.
template <class T, int kTaps>
__global__ void __launch_bounds__(kThreads, 3)
    forward_runs(const Operands<T> at, const Cut cut, const Rows<T> u) {
  const Place place(cut, at.L, at.D);
  if (!place.there) return;
  ForwardRun<T, kTaps> run{at, place, u, Taps<kTaps>(at, place.channel), {}};
  load_before<kTaps>(at, place, run.inputs);
  std::int32_t start = at.start(place.batch, place.begin + kAhead - 1);
  for (std::int64_t t = place.begin; t < place.end; t += kAhead) {
    // Documents follow each other: where the last step's one began, the others' did.
    const bool simple = t + kAhead <= place.end && (start == 0 || start <= t - (kTaps - 1));
    start = at.start(place.batch, t + 2 * kAhead - 1);  // early, so that no one waits for it
    if (simple) {
      run.template chunk<Walk::kSimple>(t);
    } else {
      run.template chunk<Walk::kCareful>(t);
    }
  }
}

/// Partial sums over tiles; null where nobody wants them.
struct Partials {
  float* weight = nullptr;  ///< (tiles, D, W)
  float* bias = nullptr;    ///< (tiles, D)
};

/// A run of the backward pass.
template <class T, int kTaps>
struct BackwardRun {
  static constexpr int kBefore = kTaps - 1;

  /// Steps [t, t + kAhead), up to those behind the run whose gradients reach into it.
  template <Walk kWalk>
  __device__ void chunk(std::int64_t t) {
    constexpr bool kSimple = kWalk == Walk::kSimple;
    const std::int64_t row = place.batch * at.L + t;
    // Steps of this chunk that are in the run, in the row, and no further than kBefore behind the
    // run. In a simple chunk, only the last kBefore may be behind the run.
    const int in_run = static_cast<int>(place.end - t);
    const int in_row = kSimple || at.L - t > kAhead ? kAhead : static_cast<int>(at.L - t);
    const int count = kSimple ? kAhead : in_run + kBefore;
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      if (j >= count || j >= in_row) continue;
      cuda::load(at.x[row + j] + place.channel, inputs[kBefore + j]);
      cuda::load(grad_u[row + j] + place.channel, grads[kBefore + j]);
    }
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      if (j >= count) continue;
      float(&grad)[kPair] = grads[kBefore + j];
      const int reach = kSimple || j >= in_row ? kBefore : at.reach(place.batch, t + j);
      if (j < in_row) {
        float s[kPair];
        taps.convolve(inputs + j, reach, s);
#pragma unroll
        for (int c = 0; c < kPair; ++c) grad[c] *= silu_slope<T>(s[c]);
      } else {
#pragma unroll
        for (int c = 0; c < kPair; ++c) grad[c] = 0;
      }
      if ((kSimple && j < kAhead - kBefore) || j < in_run) add_to_sums(grad, inputs + j, reach);
      // The input kBefore steps before has now met all that read it.
      if (j >= kBefore || t > place.begin) put_grad_x<kWalk>(t, j);
    }
    shift<kBefore>(inputs);
    shift<kBefore>(grads);
  }

  __device__ void add_to_sums(const float (&grad)[kPair], const float (*read)[kPair], int reach) {
#pragma unroll
    for (int c = 0; c < kPair; ++c) sums[kTaps][c] += grad[c];
#pragma unroll
    for (int k = 0; k < kTaps; ++k) {
      if (kBefore - k > reach) continue;
#pragma unroll
      for (int c = 0; c < kPair; ++c) sums[k][c] = fmaf(grad[c], read[k][c], sums[k][c]);
    }
  }

  /// The gradient of x at step t + j - kBefore.
  template <Walk kWalk>
  __device__ void put_grad_x(std::int64_t t, int j) {
    if (kWalk == Walk::kCareful && !grad_x.data) return;
    const std::int64_t step = t + j - kBefore;
    float grad[kPair] = {};
#pragma unroll
    for (int later = 0; later < kTaps; ++later) {
      if (kWalk == Walk::kCareful &&
          (step + later >= at.L || later > at.reach(place.batch, step + later))) {
        continue;
      }
#pragma unroll
      for (int c = 0; c < kPair; ++c) {
        grad[c] = fmaf(taps.weight[kBefore - later][c], grads[j + later][c], grad[c]);
      }
    }
    T* to = grad_x[place.batch * at.L + step] + place.channel;
    cuda::put(kWalk == Walk::kCareful ? grad_x.mode : GradMode::kOverwrite, to, grad);
  }

  const Operands<T>& at;
  const Place& place;
  const Rows<const T>& grad_u;
  const GradRows<T>& grad_x;
  const Taps<kTaps> taps;
  float (&sums)[kTaps + 1][kPair];  ///< of grad_weight, then of grad_bias
  // Of the kBefore steps before the chunk, and of the chunk; grads: of u, then of s.
  float inputs[kBefore + kAhead][kPair], grads[kBefore + kAhead][kPair];
};

/// Block (kPairs, kLanes), grid as in forward_runs; 2 KiB of shared memory for each tap and for the
/// bias. Each thread walks a run of steps of two channels, and the kTaps - 1 steps behind it, whose
/// gradients reach into it. Memory and instruction issue bind about equally in bf16.
template <class T, int kTaps>
__global__ void __launch_bounds__(kThreads, 2)
    backward_runs(const Operands<T> at, const Cut cut, const Rows<const T> grad_u,
                  const GradRows<T> grad_x, Partials partials) {
  const Place place(cut, at.L, at.D);
  float sums[kTaps + 1][kPair] = {};
  if (place.there) {
    BackwardRun<T, kTaps> run{at,   place, grad_u, grad_x, Taps<kTaps>(at, place.channel),
                              sums, {},    {}};
    load_before<kTaps>(at, place, run.inputs);
    const bool overwrites = grad_x.data && grad_x.mode == GradMode::kOverwrite;
    const std::int64_t walk_end = place.end + kTaps - 1;
    std::int32_t start = at.start(place.batch, place.begin + kAhead - 1);
    for (std::int64_t t = place.begin; t < walk_end; t += kAhead) {
      const bool simple = overwrites && t + kAhead <= (walk_end < at.L ? walk_end : at.L) &&
                          (start == 0 || start <= t - (kTaps - 1));
      start = at.start(place.batch, t + 2 * kAhead - 1);
      if (simple) {
        run.template chunk<Walk::kSimple>(t);
      } else {
        run.template chunk<Walk::kCareful>(t);
      }
    }
  }

  __shared__ float lanes[kLanes][kTaps + 1][kPair][kPairs];
#pragma unroll
  for (int k = 0; k <= kTaps; ++k) {
#pragma unroll
    for (int c = 0; c < kPair; ++c) lanes[threadIdx.y][k][c][threadIdx.x] = sums[k][c];
  }
  __syncthreads();
  if (threadIdx.y != 0 || !place.there) return;
#pragma unroll
  for (int k = 0; k <= kTaps; ++k) {
#pragma unroll
    for (int c = 0; c < kPair; ++c) {
      for (int lane = 1; lane < kLanes; ++lane) sums[k][c] += lanes[lane][k][c][threadIdx.x];
      const std::int64_t channel = std::int64_t{place.tile} * at.D + place.channel + c;
      if (k == kTaps) {
        if (partials.bias) partials.bias[channel] = sums[k][c];
      } else if (partials.weight) {
        partials.weight[channel * kTaps + k] = sums[k][c];
      }
    }
  }
}

}  // namespace
}  // namespace jiboia
