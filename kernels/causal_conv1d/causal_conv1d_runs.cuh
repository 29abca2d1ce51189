#pragma once
#include "core/cuda/ptx.cuh"
#include "kernels/causal_conv1d/causal_conv1d.h"
#include "kernels/vectors.cuh"

/// What the fast kernels of causal_conv1d share, whose threads walk runs of steps, and the forward
/// pass.
namespace jiboia {
namespace {

using cuda::GradRows;
using cuda::Rows;

// Of the kernels that walk runs.
constexpr int kMaxTaps = 4;
constexpr std::int64_t kMaxBlocks = 65535;  ///< of a grid's second and third dimension
constexpr int kSide = 32;                   ///< threads side by side in a block
constexpr int kLanes = 4;                   ///< runs of steps in a block
constexpr int kThreads = kSide * kLanes;

constexpr int kWidth = 4;  ///< channels of a thread

/// Steps of a thread of the forward pass: few, so that many threads find room and blocks go through
/// memory from its beginning to its end. What neighbours read too comes from the caches.
constexpr int kForwardSteps = 8;

/// How the steps of batch rows are cut into runs, one a thread, and tiles, one a block; a block
/// has some of the channels, kWidth in a thread.
struct Cut {
  Cut(std::int64_t B, std::int64_t L, std::int64_t D, std::int64_t steps_of_run)
      : steps(steps_of_run),
        rows(B),
        tiles_per_row(ceil_div(L, steps * kLanes)),
        tiles(B * tiles_per_row),
        blocks_per_tile(ceil_div(D, kSide * kWidth)) {}
  /// For the backward pass: long runs compute few steps twice; shorter ones where the GPU would not
  /// be filled.
  static Cut backward(std::int64_t B, std::int64_t L, std::int64_t D) {
    constexpr std::int64_t kEnoughThreads = 1 << 15;
    std::int64_t steps = 128;
    while (steps > 16 && B * ceil_div(L, steps) * ceil_div(D, kWidth) < kEnoughThreads) steps /= 2;
    return Cut(B, L, D, steps);
  }
  bool fits() const { return rows <= kMaxBlocks && tiles_per_row <= kMaxBlocks; }
  /// Over channels, tiles of a batch row, batch rows. (To find these by divisions costs time before
  /// a block's first access to memory.)
  dim3 grid() const {
    return dim3(static_cast<unsigned>(blocks_per_tile), static_cast<unsigned>(tiles_per_row),
                static_cast<unsigned>(rows));
  }

  std::int64_t steps, rows, tiles_per_row, tiles, blocks_per_tile;
};

/// 1 / (1 + e^-s). For bf16 tensors by the fast functions: e^-s is off by 2 + 1.2 |s| units in the
/// last place, at most 1.3e-5 of the result where that is not 0, and bf16 rounds by 3.9e-3. Results
/// below 1.2e-38 become 0.
template <class T>
__device__ float sigmoid(float s) {
  constexpr float kLog2E = 1.44269504088896340736F;
  if constexpr (std::is_same_v<T, float>) {
    return 1.0F / (1.0F + expf(-s));
  } else {
    return cuda::reciprocal_approx(1.0F + cuda::exp2_approx(-kLog2E * s));
  }
}
/// d/ds of s * sigmoid(s).
template <class T>
__device__ float silu_slope(float s) {
  const float gate = sigmoid<T>(s);
  return fmaf(gate, fmaf(-s, gate, s), gate);
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

  /// Where the document of step `t` begins, 0 when that was before the row; behind the row, that of
  /// the row's last step.
  __device__ std::int32_t start(std::int64_t batch, std::int64_t t) const {
    return document_start ? document_start[batch * L + (t < L ? t : L - 1)] : 0;
  }
  /// How many steps back from step `t` of a batch row count; steps before the row that are not
  /// there are zeros.
  __device__ int reach(std::int64_t batch, std::int64_t t) const {
    const int all = static_cast<int>(W) - 1;
    const std::int64_t begin = start(batch, t);
    return begin == 0 || t - begin > all ? all : static_cast<int>(t - begin);
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
      : tile(std::int64_t{blockIdx.z} * gridDim.y + blockIdx.y),
        batch(blockIdx.z),
        channel(std::int64_t{blockIdx.x * kSide + threadIdx.x} * kWidth),
        begin(static_cast<int>((blockIdx.y * kLanes + threadIdx.y) * cut.steps)),
        end(static_cast<int>(begin + cut.steps < L ? begin + cut.steps : L)),
        there(channel < D && begin < L) {}

  std::int64_t tile, batch, channel;
  int begin, end;  ///< steps
  bool there;
};

/// Values of the last kTaps steps in registers, each in the place of that kTaps before it: step t
/// of a run that begins at `begin` is in [(t - begin) % kTaps].
template <int kTaps>
using Ring = float[kTaps][kWidth];

template <int kTaps>
__device__ void clear(Ring<kTaps>& ring) {
#pragma unroll
  for (int k = 0; k < kTaps; ++k) {
#pragma unroll
    for (int c = 0; c < kWidth; ++c) ring[k][c] = 0;
  }
}

/// Some channels' weights in registers.
template <int kTaps>
struct Taps {
  template <class T>
  __device__ Taps(const Operands<T>& at, std::int64_t channel) {
    constexpr int kVector = 4;
#pragma unroll
    for (int i = 0; i < kTaps * kWidth; i += kVector) {
      float some[kVector];
      cuda::load(at.weight + channel * kTaps + i, some);
#pragma unroll
      for (int k = 0; k < kVector; ++k) weight[(i + k) % kTaps][(i + k) / kTaps] = some[k];
    }
    if (at.bias) cuda::load(at.bias + channel, bias);
  }
  /// s of the step whose input is in inputs[slot].
  __device__ void convolve(const Ring<kTaps>& inputs, int slot, float (&s)[kWidth]) const {
#pragma unroll
    for (int c = 0; c < kWidth; ++c) s[c] = bias[c];
#pragma unroll
    for (int k = 0; k < kTaps; ++k) {
#pragma unroll
      for (int c = 0; c < kWidth; ++c) {
        s[c] = fmaf(weight[k][c], inputs[(slot + 1 + k) % kTaps][c], s[c]);
      }
    }
  }
  float weight[kTaps][kWidth], bias[kWidth] = {};
};

/// Block (kSide, kLanes), grid over channels, tiles of steps, batch rows; no shared memory. Each
/// thread has kForwardSteps steps of some channels, and asks for all of their inputs at once.
/// Memory bound: as fast as a copy. Without kDocuments there are no document starts, and less code.
template <class T, int kTaps, bool kDocuments>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 2 ? 8 : 5)
    forward_steps(const Operands<T> at, const Cut cut, const Rows<T> u) {
  constexpr int kBefore = kTaps - 1, kInputs = kBefore + kForwardSteps;
  using Words = cuda::Vector<T, kWidth>;
  const Place place(cut, at.L, at.D);
  if (!place.there) return;
  const std::int64_t row = place.batch * at.L + place.begin;
  const auto start_of = [&](int t) { return kDocuments ? at.start(place.batch, t) : 0; };
  const std::int32_t start = start_of(place.begin + kForwardSteps - 1);
  const bool inside = place.begin >= kBefore && place.begin + kForwardSteps <= at.L;
  // Weights before inputs, behind which they would come late.
  const Taps<kTaps> taps(at, place.channel);
  Words words[kInputs];
  if (inside) {
    const T* from = at.x[row - kBefore] + place.channel;
#pragma unroll
    for (int j = 0; j < kInputs; ++j) {
      words[j] = *reinterpret_cast<const Words*>(from);
      from += at.x.stride;
    }
  } else {
#pragma unroll
    for (int j = 0; j < kInputs; ++j) {
      const int t = place.begin - kBefore + j;
      words[j] = {};
      const T* from = t < place.end ? at.step(place.batch, t) : nullptr;
      if (from) words[j] = *reinterpret_cast<const Words*>(from + place.channel);
    }
  }
  Ring<kTaps> inputs;
#pragma unroll
  for (int j = 0; j < kBefore; ++j) {
    const Words before = words[j];
    cuda::unpack<T>(before, inputs[j + 1]);
  }

  T* to = u[row] + place.channel;
  const auto step = [&](int j) {
    float s[kWidth];
    const Words input = words[kBefore + j];
    cuda::unpack<T>(input, inputs[j % kTaps]);
    taps.convolve(inputs, j % kTaps, s);
#pragma unroll
    for (int c = 0; c < kWidth; ++c) s[c] *= sigmoid<T>(s[c]);
    cuda::store(s, to);
    to += u.stride;
  };
  // Documents follow each other: where the last step's one began, the others' did.
  if (inside && (start == 0 || start <= place.begin - kBefore)) {
#pragma unroll
    for (int j = 0; j < kForwardSteps; ++j) step(j);
  } else {
    const std::int32_t first_start = start_of(place.begin);
#pragma unroll
    for (int k = 1; k < kTaps; ++k) {
      if (first_start == 0 || place.begin - kTaps + k >= first_start) continue;
#pragma unroll
      for (int c = 0; c < kWidth; ++c) inputs[k][c] = 0;
    }
#pragma unroll
    for (int j = 0; j < kForwardSteps; ++j) {
      const int t = place.begin + j;
      if (t >= place.end) break;
      if (t > 0 && start_of(t) == t) clear(inputs);
      step(j);
    }
  }
}

}  // namespace
}  // namespace jiboia
