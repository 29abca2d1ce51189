#pragma once
#include "core/cuda/ptx.cuh"
#include "kernels/causal_conv1d/causal_conv1d.h"
#include "kernels/vectors.cuh"

/// The fast kernels of causal_conv1d: threads walk runs of steps.
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

/// Chunks of steps on their way to a thread of the backward pass: each has kSteps, fewer where
/// that is no multiple of the taps. (More of them at once are slower.)
template <class T>
struct Chunks {
  static constexpr int kSteps = 4, kStages = sizeof(T) == 2 ? 3 : 2;
};

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

/// The kTaps - 1 inputs before a run; zeros for those that do not count. They are asked for when
/// this is made, and waited for when they are put where they belong.
template <class T, int kTaps>
struct InputsBefore {
  __device__ InputsBefore(const Operands<T>& at, const Place& place) {
    const std::int32_t start = at.start(place.batch, place.begin);
    const int first = place.begin - kTaps + 1;
    if (start <= first) {  // all are there, in the row: less to do
      const T* from = at.x[place.batch * at.L + first] + place.channel;
#pragma unroll
      for (int k = 1; k < kTaps; ++k) {
        words[k] = *reinterpret_cast<const Words*>(from);
        from += at.x.stride;
      }
      return;
    }
#pragma unroll
    for (int k = 1; k < kTaps; ++k) {
      const int t = first + k - 1;
      words[k] = {};
      const T* from = start > 0 && t < start ? nullptr : at.step(place.batch, t);
      if (from) words[k] = *reinterpret_cast<const Words*>(from + place.channel);
    }
  }
  __device__ void put(Ring<kTaps>& inputs) const {
#pragma unroll
    for (int k = 1; k < kTaps; ++k) {
      const Words some = words[k];
      cuda::unpack<T>(some, inputs[k]);
    }
  }

  using Words = cuda::Vector<T, kWidth>;
  Words words[kTaps];
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

/// Partial sums over tiles; null where nobody wants them.
struct Partials {
  float* weight = nullptr;  ///< (tiles, D, W)
  float* bias = nullptr;    ///< (tiles, D)
};

/// What a run of the backward pass carries from step to step.
template <class T, int kTaps>
struct BackwardRun {
  static constexpr int kBefore = kTaps - 1;

  /// A step whose input is in inputs[slot], with its gradient of u; `reach` inputs before it count,
  /// and grad_x of the step kBefore before it is complete thereafter.
  __device__ void step(int slot, float (&grad)[kWidth], int reach, bool counts) {
    float s[kWidth];
    taps.convolve(inputs, slot, s);
#pragma unroll
    for (int c = 0; c < kWidth; ++c) grad[c] *= silu_slope<T>(s[c]);
    if (counts) add_to_sums(slot, grad);
#pragma unroll
    for (int back = 0; back < kTaps; ++back) {
      if (back > reach) break;
      float(&to)[kWidth] = grads[(slot + kTaps - back) % kTaps];
#pragma unroll
      for (int c = 0; c < kWidth; ++c) {
        const float weight = taps.weight[kBefore - back][c];
        to[c] = back == 0 ? weight * grad[c] : fmaf(weight, grad[c], to[c]);
      }
    }
  }
  __device__ void add_to_sums(int slot, const float (&grad)[kWidth]) {
#pragma unroll
    for (int c = 0; c < kWidth; ++c) sums[kTaps][c] += grad[c];
#pragma unroll
    for (int k = 0; k < kTaps; ++k) {
#pragma unroll
      for (int c = 0; c < kWidth; ++c) {
        sums[k][c] = fmaf(grad[c], inputs[(slot + 1 + k) % kTaps][c], sums[k][c]);
      }
    }
  }
  /// grad_x of the step kBefore before the one in `slot`.
  __device__ const float (&complete(int slot) const)[kWidth] { return grads[(slot + 1) % kTaps]; }

  const Taps<kTaps> taps;
  float (&sums)[kTaps + 1][kWidth];  ///< of grad_weight, then of grad_bias
  Ring<kTaps> inputs;
  Ring<kTaps> grads;  ///< of x
};

/// The next steps of x and of the gradient of u on their way into shared memory: kStages chunks,
/// each asked for when the chunk in its place has been read. A thread reads what it asked for
/// itself, so nothing waits for other threads; and registers remain for what it computes.
template <class T, int kChunk>
struct Feed {
  static constexpr int kStages = Chunks<T>::kStages, kStreams = 2;
  using Words = cuda::Vector<T, kWidth>;
  using Shared = Words[kStages][kStreams][kChunk][kThreads];

  __device__ Feed(Shared& shared, const T* x, std::int64_t x_stride, const T* grad_u,
                  std::int64_t grad_u_stride)
      : from_{x, grad_u},
        stride_{x_stride, grad_u_stride},
        first_(&shared[0][0][0][threadIdx.y * kSide + threadIdx.x]),
        chunk_(first_) {}

  /// Asks for the next chunk, steps [t, t + kChunk), but for its first kSkipped steps and for steps
  /// from `last` on.
  template <int kSkipped = 0>
  __device__ void ask(int t, int last) {
    if (t + kChunk <= last) {
#pragma unroll
      for (int j = kSkipped; j < kChunk; ++j) ask_step(j);
    } else {
#pragma unroll
      for (int j = kSkipped; j < kChunk; ++j) {
        if (t + j < last) ask_step(j);
      }
    }
    next();
  }
  /// Waits for the chunk that was asked for first.
  __device__ void wait() const { cuda::async_copies_wait<kStages - 1>(); }
  /// Of the chunk that was waited for; the next one that is asked for takes its place.
  __device__ void read(int stream, int j, float (&to)[kWidth]) const {
    const Words words = chunk_[(stream * kChunk + j) * kThreads];
    cuda::unpack<T>(words, to);
  }

 private:
  __device__ void ask_step(int j) {
#pragma unroll
    for (int i = 0; i < kStreams; ++i) {
      cuda::async_copy<sizeof(Words)>(chunk_ + (i * kChunk + j) * kThreads,
                                      from_[i] + j * stride_[i], true);
    }
  }
  __device__ void next() {
    cuda::async_copies_commit();
#pragma unroll
    for (int i = 0; i < kStreams; ++i) from_[i] += kChunk * stride_[i];
    chunk_ += kStreams * kChunk * kThreads;
    if (chunk_ == first_ + kStages * kStreams * kChunk * kThreads) chunk_ = first_;
  }

  const T* from_[kStreams];
  const std::int64_t stride_[kStreams];
  Words* const first_;
  Words* chunk_;
};

/// Adds up the sums of a block's lanes, in their order, and writes them. `lanes` has kSums floats
/// for each lane, aligned to 16 bytes. To be called by all threads of the block.
template <int kTaps>
struct LaneSums {
  // In the order of memory: grad_weight of the block's channels, then their grad_bias.
  static constexpr int kChannels = kSide * kWidth, kWeights = kChannels * kTaps;
  static constexpr int kSums = kWeights + kChannels;
  using Shared = float[kLanes][kSums];

  __device__ static void put(const float (&sums)[kTaps + 1][kWidth], Shared& lanes,
                             const Place& place, std::int64_t D, const Partials& partials) {
    float* mine = lanes[threadIdx.y];
#pragma unroll
    for (int i = 0; i < kTaps * kWidth; i += kWidth) {
      float some[kWidth];
#pragma unroll
      for (int k = 0; k < kWidth; ++k) some[k] = sums[(i + k) % kTaps][(i + k) / kTaps];
      cuda::store(some, mine + threadIdx.x * kTaps * kWidth + i);
    }
    cuda::store(sums[kTaps], mine + kWeights + threadIdx.x * kWidth);
    __syncthreads();
    const std::int64_t first = std::int64_t{blockIdx.x} * kChannels;
    const int channels = static_cast<int>(D - first < kChannels ? D - first : kChannels);
    const std::int64_t at = place.tile * D + first;
    const int thread = static_cast<int>(threadIdx.y * kSide + threadIdx.x);
    for (int i = thread * kWidth; i < kSums; i += kThreads * kWidth) {
      float total[kWidth];
      cuda::load(lanes[0] + i, total);
#pragma unroll
      for (int lane = 1; lane < kLanes; ++lane) {
        float more[kWidth];
        cuda::load(lanes[lane] + i, more);
#pragma unroll
        for (int k = 0; k < kWidth; ++k) total[k] += more[k];
      }
      if (i < kWeights) {
        if (partials.weight && i < channels * kTaps) {
          cuda::store(total, partials.weight + at * kTaps + i);
        }
      } else if (partials.bias && i - kWeights < channels) {
        cuda::store(total, partials.bias + at + i - kWeights);
      }
    }
  }
};

/// Block (kSide, kLanes), grid as in forward_steps; shared memory: the feed, and kThreads * kWidth
/// floats for each tap and for the bias. Each thread walks a run of steps of some channels, and the
/// kTaps - 1 steps behind it, whose gradients reach into it. Memory bound. kDocuments is whether
/// there are document starts: without, the loop looks for none.
template <class T, int kTaps, bool kDocuments>
__global__ void __launch_bounds__(kThreads, 4)
    backward_runs(const Operands<T> at, const Cut cut, const Rows<const T> grad_u,
                  const GradRows<T> grad_x, Partials partials) {
  constexpr int kChunk = Chunks<T>::kSteps / kTaps * kTaps, kBefore = kTaps - 1;
  __shared__ typename Feed<T, kChunk>::Shared chunks;
  const Place place(cut, at.L, at.D);
  float sums[kTaps + 1][kWidth] = {};
  if (place.there) {
    const int L = static_cast<int>(at.L);
    const std::int64_t row = place.batch * at.L + place.begin;
    // The walk goes in chunks. The first one ends before the step that completes the run's first
    // grad_x. Sums are over what the others meet: so a run leaves its first steps to the run
    // before.
    const int walk = place.begin + kBefore, walk_end = place.end + kBefore;
    const int last = walk_end < L ? walk_end : L;
    constexpr int kSkipped = kChunk - kBefore;  // of the first chunk: they are before the run
    Feed<T, kChunk> feed(chunks, at.x[row - kSkipped] + place.channel, at.x.stride,
                         grad_u[row - kSkipped] + place.channel, grad_u.stride);
    constexpr int kAhead = feed.kStages * kChunk;
    BackwardRun<T, kTaps> run{Taps<kTaps>(at, place.channel), sums, {}, {}};
    const InputsBefore<T, kTaps> before(at, place);
    // Only now: what is wanted first would come behind it.
    feed.template ask<kSkipped>(walk - kChunk, last);
#pragma unroll
    for (int stage = 1; stage < feed.kStages; ++stage) {
      feed.ask(walk + (stage - 1) * kChunk, last);
    }
    before.put(run.inputs);
    // A step that is looked at: a document may begin there.
    const auto careful_step = [&](int t, int slot, const float(&x)[kWidth], float(&grad)[kWidth],
                                  bool counts) {
      const int reach = at.reach(place.batch, t);
      if (reach == 0) clear(run.inputs);
#pragma unroll
      for (int c = 0; c < kWidth; ++c) run.inputs[slot][c] = x[c];
      run.step(slot, grad, reach, counts);
    };
    T* to = grad_x[row] + place.channel;
    const bool overwrites = grad_x.data && grad_x.mode == GradMode::kOverwrite;
    const int simple_end = overwrites ? last - kChunk : -1;
    const auto start_of = [&](int t) { return kDocuments ? at.start(place.batch, t) : 0; };
    std::int32_t start = 0;  // where the document of a chunk's last step begins
    for (int t = walk - kChunk; t < walk_end; t += kChunk) {
      const bool simple = t >= walk && t <= simple_end && (start == 0 || start <= t - kBefore);
      start = start_of(t + 2 * kChunk - 1);
      feed.wait();
      if (simple) {
#pragma unroll
        for (int j = 0; j < kChunk; ++j) {
          const int slot = (j + kBefore) % kTaps;
          float grad[kWidth];
          feed.read(0, j, run.inputs[slot]);
          feed.read(1, j, grad);
          run.step(slot, grad, kBefore, true);
          cuda::store(run.complete(slot), to);
          to += grad_x.stride;
        }
      } else {
#pragma unroll
        for (int j = 0; j < kChunk; ++j) {
          if (t + j < place.begin) continue;
          if (t + j >= walk_end) break;
          const int slot = (j + kBefore) % kTaps;
          if (t + j < L) {
            float x[kWidth], grad[kWidth];
            feed.read(0, j, x);
            feed.read(1, j, grad);
            careful_step(t + j, slot, x, grad, t >= walk || place.begin == 0);
          }
          if (t < walk) continue;
          if (grad_x.data) cuda::put(grad_x.mode, to, run.complete(slot));
          to += grad_x.stride;
        }
      }
      feed.ask(t + kAhead, last);
    }
  }

  __shared__ __align__(16) typename LaneSums<kTaps>::Shared lanes;
  LaneSums<kTaps>::put(sums, lanes, place, at.D, partials);
}

}  // namespace
}  // namespace jiboia
