#pragma once
#include "kernels/selective_scan/selective_scan_tiles.cuh"

/// What the kernels of the fast forward pass do in each thread. A thread has up to two parts. As a
/// lane it takes kLaneStates states of two channels through the steps, in registers. As an owner it
/// has 4 channels of one step in each period: it computes whatever is needed once for a channel and
/// step.
namespace jiboia::scan_tiles {

/// How a warp is laid out whose lanes take kLaneStates states of a pair of channels, and the shared
/// memory through which owners and lanes speak: rows with padding, which keeps the banks apart that
/// a warp's access uses at once.
template <int kLaneStates>
struct Layout {
  static constexpr int kPair = 2;  ///< channels of a lane
  static constexpr int kStateLanes = static_cast<int>(kStates) / kLaneStates;
  static constexpr int kChannelLanes = 32 / kStateLanes;
  static constexpr int kWidth = kChannelLanes * kPair;  ///< channels of a warp
  static constexpr int kOwned = 4;                      ///< channels of an owner
  static constexpr int kOwners = kWidth / kOwned;       ///< owners of a step
  static constexpr int kPeriod = 32 / kOwners;          ///< steps that all owners together have
  static_assert(kSegmentUnit % kPeriod == 0 && kPeriod % kSteps == 0);

  /// Of a step: for each pair of channels two deltas and two inputs.
  static constexpr int kStepRow = 2 * kWidth + 4;
  /// Of a step: for each state lane its part of each channel's sum over states.
  static constexpr int kSumRow = kWidth + 8;
  static constexpr int kSumStep = kStateLanes * kSumRow + (kWidth == 16 ? 16 : 0);
};

/// Four floats at an address that is a multiple of 16.
__device__ inline void put(float* to, float a, float b, float c, float d) {
  *reinterpret_cast<float4*>(to) = make_float4(a, b, c, d);
}
template <int kCount>
__device__ void load_fours(const float* from, float (&to)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; i += 4) {
    const float4 four = *reinterpret_cast<const float4*>(from + i);
    to[i] = four.x, to[i + 1] = four.y, to[i + 2] = four.z, to[i + 3] = four.w;
  }
}

/// What a lane needs for a step.
template <int kLaneStates>
struct StepOperands {
  static constexpr int kPair = Layout<kLaneStates>::kPair;
  float delta[kPair];  ///< where it makes the decay
  float input[kPair];  ///< delta * u
  float b[kLaneStates], c[kLaneStates];
};

/// A thread as a lane.
template <int kLaneStates>
class Lane {
  using L = Layout<kLaneStates>;
  static constexpr int kPair = L::kPair;

 public:
  __device__ Lane(const float* a_log, int first_channel)
      : channel(static_cast<int>(threadIdx.x) % 32 / L::kStateLanes * kPair),
        state(static_cast<int>(threadIdx.x) % L::kStateLanes * kLaneStates) {
#pragma unroll
    for (int k = 0; k < kPair; ++k) {
#pragma unroll
      for (int j = 0; j < kLaneStates; ++j) {
        const int d = first_channel + channel + k;
        rate_[k][j] = scan_cuda::decay_rate(a_log[std::int64_t{d} * kStates + state + j]);
        h_[k][j] = 0;
      }
    }
  }

  /// From the step's row in shared memory, and its rows of b and c.
  __device__ StepOperands<kLaneStates> load(const float* row, const float* b,
                                            const float* c) const {
    StepOperands<kLaneStates> step;
    float both[2 * kPair];
    load_fours(row + 2 * channel, both);
#pragma unroll
    for (int k = 0; k < kPair; ++k) step.delta[k] = both[k], step.input[k] = both[kPair + k];
    load_fours(b + state, step.b);
    if (c) load_fours(c + state, step.c);
    return step;
  }
  /// Takes the states through a step.
  __device__ void advance(const StepOperands<kLaneStates>& step) {
#pragma unroll
    for (int k = 0; k < kPair; ++k) {
#pragma unroll
      for (int j = 0; j < kLaneStates; ++j) {
        const float decay = cuda::exp2_approx(step.delta[k] * rate_[k][j]);
        h_[k][j] = fmaf(decay, h_[k][j], step.input[k] * step.b[j]);
      }
    }
  }
  /// What a step leaves of the states. Exponentials take longest, so they are to be started early.
  using Decay = float[kPair][kLaneStates];
  __device__ void start(const StepOperands<kLaneStates>& step, Decay& decay) const {
#pragma unroll
    for (int k = 0; k < kPair; ++k) {
#pragma unroll
      for (int j = 0; j < kLaneStates; ++j)
        decay[k][j] = cuda::exp2_approx(step.delta[k] * rate_[k][j]);
    }
  }
  /// Takes the states through a step, and starts the next one.
  __device__ void advance(const StepOperands<kLaneStates>& step, Decay& decay,
                          const StepOperands<kLaneStates>& next) {
#pragma unroll
    for (int k = 0; k < kPair; ++k) {
#pragma unroll
      for (int j = 0; j < kLaneStates; ++j) {
        const float next_decay = cuda::exp2_approx(next.delta[k] * rate_[k][j]);
        h_[k][j] = fmaf(decay[k][j], h_[k][j], step.input[k] * step.b[j]);
        decay[k][j] = next_decay;
      }
    }
  }
  /// The sum over the lane's states of c * state.
  __device__ void sum(const StepOperands<kLaneStates>& step, float (&sums)[kPair]) const {
#pragma unroll
    for (int k = 0; k < kPair; ++k) {
      sums[k] = h_[k][0] * step.c[0];
#pragma unroll
      for (int j = 1; j < kLaneStates; ++j) sums[k] = fmaf(h_[k][j], step.c[j], sums[k]);
    }
  }

  /// Writes the states to the place of the lane's first one in a saved tile.
  __device__ void save(char* to, bool present) const {
#pragma unroll
    for (int j = 0; j < kLaneStates; j += 4) {
      float values[kLineSize];
#pragma unroll
      for (int i = 0; i < kLineSize; ++i) values[i] = h_[i / 4][j + i % 4];
      cuda::store_streaming(to + place_in_tile(0, j) * static_cast<int>(sizeof(bf16)),
                            cuda::pack<bf16>(values).at, present);
    }
  }

  /// The states' exchange with a later segment: `all` has kVectors lines of a warp.
  static constexpr int kVectors = kPair * kLaneStates / 4;
  __device__ void leave(float4* all) const {
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const float* h = &h_[v * 4 / kLaneStates][v * 4 % kLaneStates];
      all[v * 32 + static_cast<int>(threadIdx.x) % 32] = make_float4(h[0], h[1], h[2], h[3]);
    }
  }
  /// Goes through a whole segment, which ends in the states `all` if it begins in zeros, and whose
  /// deltas have these sums.
  __device__ void pass(const float4* all, const float* delta_sums) {
    const float2 delta = *reinterpret_cast<const float2*>(delta_sums + channel);
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const float4 four = all[v * 32 + static_cast<int>(threadIdx.x) % 32];
      const float ends[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int k = v * 4 / kLaneStates, j = v * 4 % kLaneStates + i;
        const float decay = cuda::exp2_approx((k == 0 ? delta.x : delta.y) * rate_[k][j]);
        h_[k][j] = fmaf(decay, h_[k][j], ends[i]);
      }
    }
  }

  const int channel;  ///< the first, of the warp's
  const int state;    ///< the first

 private:
  float rate_[kPair][kLaneStates], h_[kPair][kLaneStates];
};

/// Four bf16 of a row.
using Four = cuda::Words<8>;

/// What an owner leaves for the lanes.
struct Staged {
  static constexpr int kOwned = 4;
  __device__ void stage(int i, float u, float dt, float bias, bool reset) {
    const float own = Softplus(dt + bias).value;
    delta[i] = reset ? scan_cuda::kResetDelta : own;
    input[i] = own * u;
  }
  /// Into a step's row, at the owner's first channel.
  __device__ void put_at(float* row) const {
#pragma unroll
    for (int i = 0; i < kOwned; i += 2) {
      put(row + 2 * i, delta[i], delta[i + 1], input[i], input[i + 1]);
    }
  }
  float delta[kOwned], input[kOwned];
};

/// y from its sum over states.
__device__ inline float gated(float sum, float d_skip, float u, float z) {
  const float at = gate_argument(z);
  const float e = cuda::exp2_approx(at * -1.4426950408889634f);
  return fmaf(d_skip, u, sum) * (at * cuda::reciprocal_approx(1 + e));
}

/// Four bf16 as floats.
__device__ inline void put_widened(float* to, const Four& four) {
  const unsigned low = four.at[0], high = four.at[1];
  *reinterpret_cast<uint4*>(to) =
      make_uint4(low << 16, low & 0xFFFF0000U, high << 16, high & 0xFFFF0000U);
}

/// Brings four bf16 to shared memory, zeros where not `present`; one by one unless kWide, for
/// addresses that are no multiple of 8.
template <bool kWide>
__device__ void bring_four(Four& to, const char* from, bool present) {
  if constexpr (kWide) {
    cuda::async_copy<8>(&to, from, present);
  } else {
    const auto* elements = reinterpret_cast<const unsigned short*>(from);
    unsigned values[4] = {};
    for (int i = 0; i < 4 && present; ++i) values[i] = elements[i];
    Four four;
    four.at[0] = values[0] | values[1] << 16;
    four.at[1] = values[2] | values[3] << 16;
    to = four;
  }
}

/// A kernel's results, working memory and segments.
struct ForwardOut {
  cuda::Rows<bf16> y;
  Line* states;
  std::int64_t u_step, dt_step, z_step, y_step, b_step, c_step;  ///< bytes from period to period
  int segments, segment_steps;
  float4* ends;  ///< of the segments but the last: Lane::leave()
  float* delta_sums;
};

/// Whose steps a warp takes.
struct Segment {
  __device__ Segment(const ForwardOut& out, int L, int its_batch, int its_index)
      : batch(its_batch),
        index(its_index),
        begin(its_index * out.segment_steps),
        length(min(L - begin, out.segment_steps)) {}
  int batch, index, begin, length;
};

}  // namespace jiboia::scan_tiles
