#pragma once
#include "kernels/causal_conv1d/causal_conv1d_runs.cuh"

/// The fast kernel of causal_conv1d's backward pass.
namespace jiboia {
namespace {

/// Chunks of steps on their way to a thread of the backward pass: each has kSteps, fewer where
/// that is no multiple of the taps. (More of them at once are slower.)
template <class T>
struct Chunks {
  static constexpr int kSteps = 4, kStages = sizeof(T) == 2 ? 3 : 2;
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
