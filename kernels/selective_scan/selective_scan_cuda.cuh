#pragma once
#include <cfloat>
#include <climits>

#include "core/cuda/kernel.cuh"
#include "core/cuda/ptx.cuh"
#include "kernels/selective_scan/selective_scan.h"

/// What the two passes of the GPU's selective scan share.
///
/// A block of threads takes some channels of one batch row through the sequence, chunk by chunk. A
/// thread has two parts. As an owner it has one channel and some steps of the chunk: it computes
/// whatever is needed once for a channel and step, whatever the number of states, and leaves it in
/// shared memory. As a lane it takes kLaneStates states of one or two channels through the chunk in
/// registers. A warp is kStateLanes by kChannelLanes lanes, so it holds kGroup states at a time;
/// where there are more, group follows group through the same chunk. What does not exist is
/// neutral: a step past the end has delta = 0 and b = c = 0, a state or channel without number
/// stays 0.
namespace jiboia::scan_cuda {

using cuda::GradRows;
using cuda::Rows;
using cuda::to_float;

inline constexpr int kChunk = static_cast<int>(SelectiveScan::kChunk);
inline constexpr int kWarps = 4;
inline constexpr int kThreads = 32 * kWarps;
inline constexpr int kStateLanes = 4;    ///< lanes of a warp that share a channel, bits 0 and 1
inline constexpr int kChannelLanes = 8;  ///< lanes of a warp that share a state, bits 2, 3 and 4
inline constexpr int kLaneStates = 4;
inline constexpr int kGroup = kStateLanes * kLaneStates;
/// Steps whose sums over states are made together.
inline constexpr int kQuad = 4;
/// Columns added to arrays that the four state lanes write in four rows at once, so that these rows
/// lie in different banks.
inline constexpr int kPadding = kChannelLanes;

/// The op's operands, by row of the (B * L) steps.
/// Errors: Unsupported for sizes past the 32 bits that in-kernel counters have.
template <class T>
struct Operands {
  explicit Operands(const SelectiveScan::In<>& in)
      : u(in.u),
        dt(in.dt),
        b(in.b),
        c(in.c),
        z(in.z),
        a_log(in.a_log.as<float>()),
        d_skip(in.d_skip.as<float>()),
        dt_bias(in.dt_bias.as<float>()),
        document_start(in.document_start ? in.document_start.as<std::int32_t>() : nullptr),
        rows(counter("B * L", in.u.rows())),
        L(counter("L", in.u.shape[1])),
        D(counter("D", in.u.shape[2])),
        N(counter("N", in.a_log.shape[1])),
        chunks(static_cast<int>(ceil_div(L, kChunk))) {
    counter("D * N", in.a_log.size());
    for (const Tensor* tensor : {&in.u, &in.dt, &in.b, &in.c, &in.z}) {
      counter("the distance between rows", tensor->row_stride);
    }
  }

  Rows<const T> u, dt, b, c, z;
  const float *a_log, *d_skip, *dt_bias;
  const std::int32_t* document_start;
  int rows, L, D, N, chunks;

 private:
  static int counter(const char* what, std::int64_t value) {
    constexpr std::int64_t kLargest = INT_MAX - 2 * kChunk;
    require(value <= kLargest, ErrorKind::kUnsupported,
            "{}: {} is {}, the CUDA backend takes at most {}", SelectiveScan::kName, what, value,
            kLargest);
    return static_cast<int>(value);
  }
};

/// 1 / (1 + e^-x) and log(1 + e^x), good to the last digits for every x; NaN for NaN.
/// Method: both from e = e^-|x| <= 1, which cannot overflow. log(1 + e^x) = max(x, 0) + log1p(e),
/// by a minimax polynomial for log1p(e) / e. The divisor lies in [1, 2], where __fdividef() is
/// within 2 units in the last place.
struct Sigmoid {
  __device__ explicit Sigmoid(float x) : e(expf(-fabsf(x))), at(x) {}
  __device__ float sigmoid() const { return __fdividef(at < 0 ? e : 1.f, 1.f + e); }
  __device__ float softplus() const {
    float p = 5.23269363e-3f;
    p = fmaf(p, e, -2.95052398e-2f);
    p = fmaf(p, e, 7.82259628e-2f);
    p = fmaf(p, e, -1.36632472e-1f);
    p = fmaf(p, e, 1.91060081e-1f);
    p = fmaf(p, e, -2.48429820e-1f);
    p = fmaf(p, e, 3.33190978e-1f);
    p = fmaf(p, e, -4.99994934e-1f);
    p = fmaf(p, e, 9.99999940e-1f);
    return fmaf(p, e, fmaxf(at, 0.f));
  }

 private:
  float e, at;
};

/// -exp(a_log) / ln 2: a decay is 2^(delta * rate). Bounded where that changes no decay of a real
/// step: never closer to 0 than -1e-30, so that the decay of kResetDelta is 0 even where a_log is
/// hugely negative; never infinite, so that 0 times a rate is 0.
__device__ inline float decay_rate(float a_log) {
  constexpr float kSlowest = -1e-30f, kFastest = -1e30f;
  const float rate = expf(a_log) * -1.4426950408889634f;
  if (rate > kSlowest) return kSlowest;
  if (rate < kFastest) return kFastest;
  return rate;  // NaN as well
}
/// The rate of a state that does not exist.
inline constexpr float kNeutralRate = -1;
/// The delta that makes the decay into a document's first token.
inline constexpr float kResetDelta = FLT_MAX;

/// Where a thread stands as a lane.
struct Lane {
  __device__ Lane()
      : warp(static_cast<int>(threadIdx.x) / 32),
        state(static_cast<int>(threadIdx.x) % kStateLanes),
        channel(static_cast<int>(threadIdx.x) % 32 / kStateLanes) {}
  int warp;
  int state;    ///< which of the kStateLanes
  int channel;  ///< which of the kChannelLanes
};

/// Sums over state lanes: state lane i gets that of values[i].
__device__ inline float sum_over_states(const float (&values)[kQuad], const Lane& lane) {
  static_assert(kQuad == kStateLanes);
  float halves[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const bool upper = lane.state & 2;
    const float kept = upper ? values[i + 2] : values[i], sent = upper ? values[i] : values[i + 2];
    halves[i] = kept + __shfl_xor_sync(0xFFFFFFFF, sent, 2);
  }
  const bool odd = lane.state & 1;
  const float kept = odd ? halves[1] : halves[0], sent = odd ? halves[0] : halves[1];
  return kept + __shfl_xor_sync(0xFFFFFFFF, sent, 1);
}

/// Sums over channel lanes: channel lane i gets that of values[i].
__device__ inline float sum_over_channels(const float (&values)[kChannelLanes], const Lane& lane) {
  float quarters[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const bool upper = lane.channel & 4;
    const float kept = upper ? values[i + 4] : values[i], sent = upper ? values[i] : values[i + 4];
    quarters[i] = kept + __shfl_xor_sync(0xFFFFFFFF, sent, 4 * kStateLanes);
  }
  float halves[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const bool upper = lane.channel & 2;
    const float kept = upper ? quarters[i + 2] : quarters[i];
    const float sent = upper ? quarters[i] : quarters[i + 2];
    halves[i] = kept + __shfl_xor_sync(0xFFFFFFFF, sent, 2 * kStateLanes);
  }
  const bool odd = lane.channel & 1;
  const float kept = odd ? halves[1] : halves[0], sent = odd ? halves[0] : halves[1];
  return kept + __shfl_xor_sync(0xFFFFFFFF, sent, kStateLanes);
}

/// Goes down a column of a tensor of (B * L) rows, a fixed number of rows at a time.
template <class T, int kRows>
class Column {
 public:
  __device__ Column(const Rows<T>& rows, std::int64_t row, std::int64_t column)
      : at_(rows.data ? rows[row] + column : nullptr), stride_(kRows * rows.stride) {}
  __device__ T& operator*() const { return *at_; }
  /// The element here where `present`, else 0.
  __device__ std::remove_const_t<T> get(bool present) const {
    return present ? *at_ : cuda::from_float<std::remove_const_t<T>>(0);
  }
  __device__ void next() { at_ += stride_; }

 private:
  T* at_;
  std::int64_t stride_;
};

/// The place of an element, in 32-bit numbers, so that it is found in three instructions.
template <class T>
__device__ T& element(const Rows<T>& rows, int row, int column) {
  const auto offset =
      std::uint64_t{static_cast<unsigned>(row)} * static_cast<unsigned>(rows.stride);
  return rows.data[offset + static_cast<unsigned>(column)];
}

/// b and c of a chunk for one group of states, in fp32.
struct alignas(16) GroupTile {
  float b[kChunk][kGroup], c[kChunk][kGroup];
};

/// The part of the GroupTiles that a thread brings from memory, in two acts: the second waits for
/// the loads of the first.
template <class T>
class GroupLoader {
  static constexpr int kRows = kThreads / kGroup, kSteps = kChunk / kRows;

 public:
  __device__ GroupLoader()
      : t_(static_cast<int>(threadIdx.x) / kGroup), n_(static_cast<int>(threadIdx.x) % kGroup) {}

  /// States from `first` on in the `steps` steps that the chunk beginning at `row` has.
  __device__ void load(const Operands<T>& in, int row, int steps, int first) {
    const int end = first + n_ < in.N ? steps - t_ : 0;
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      const bool present = i * kRows < end;
      b_[i] = present ? element(in.b, row + t_ + i * kRows, first + n_) : cuda::from_float<T>(0);
      c_[i] = present ? element(in.c, row + t_ + i * kRows, first + n_) : cuda::from_float<T>(0);
    }
  }
  __device__ void store(GroupTile& tile) const {
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      tile.b[t_ + i * kRows][n_] = to_float(b_[i]);
      tile.c[t_ + i * kRows][n_] = to_float(c_[i]);
    }
  }

 private:
  int t_, n_;
  T b_[kSteps], c_[kSteps];
};

/// Four floats of a 16-byte aligned array in shared memory.
struct Four {
  __device__ explicit Four(const float* from) {
    const float4 all = *reinterpret_cast<const float4*>(from);
    values[0] = all.x;
    values[1] = all.y;
    values[2] = all.z;
    values[3] = all.w;
  }
  __device__ float operator[](int i) const { return values[i]; }
  float values[4];
};

/// What a lane keeps of the states of one channel, or one channel's gradients of them.
using LaneStates = float[kLaneStates];

/// The place of a lane's states, those of channel `d` from `first_state` on, in arrays (N, D) and
/// (D, N).
class LanePlace {
 public:
  __device__ LanePlace(int d, int first_state, int D, int N)
      : count_(d < D ? min(N - first_state, kLaneStates) : 0),
        D_(D),
        in_states_(static_cast<unsigned>(first_state) * static_cast<unsigned>(D) +
                   static_cast<unsigned>(d)),
        in_rates_(static_cast<unsigned>(d) * static_cast<unsigned>(N) +
                  static_cast<unsigned>(first_state)) {}

  __device__ void load_rates(const float* a_log, LaneStates& rate) const {
#pragma unroll
    for (int j = 0; j < kLaneStates; ++j) {
      rate[j] = j < count_ ? decay_rate(a_log[in_rates_ + static_cast<unsigned>(j)]) : kNeutralRate;
    }
  }
  /// From an array (N, D), zeros where it is null.
  __device__ void load_states(const float* from, LaneStates& state) const {
#pragma unroll
    for (int j = 0; j < kLaneStates; ++j) {
      state[j] = from && j < count_ ? from[in_state(j)] : 0;
    }
  }
  __device__ void store_states(const LaneStates& state, float* to) const {
#pragma unroll
    for (int j = 0; j < kLaneStates; ++j) {
      if (j < count_) to[in_state(j)] = state[j];
    }
  }
  /// From an array (D, N).
  __device__ void load(const float* from, LaneStates& values) const {
#pragma unroll
    for (int j = 0; j < kLaneStates; ++j)
      values[j] = j < count_ ? from[in_rates_ + static_cast<unsigned>(j)] : 0;
  }
  __device__ void store(const LaneStates& values, float* to) const {
#pragma unroll
    for (int j = 0; j < kLaneStates; ++j) {
      if (j < count_) to[in_rates_ + static_cast<unsigned>(j)] = values[j];
    }
  }

 private:
  __device__ unsigned in_state(int j) const {
    return in_states_ + static_cast<unsigned>(j) * static_cast<unsigned>(D_);
  }

  int count_, D_;
  unsigned in_states_, in_rates_;
};

}  // namespace jiboia::scan_cuda
