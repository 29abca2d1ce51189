#pragma once
#include "kernels/selective_scan/selective_scan_forward_lanes.cuh"

/// The forward pass of the fast selective scan, where every warp works by itself.
///
/// A warp takes one segment of a batch row of some channels through its steps: it brings its own
/// operands, waits for no other warp, and so drifts to where the others leave the units free. Its
/// threads are lanes and owners: while they walk through a period as lanes, they do as owners what
/// the one ahead and the one behind need, in between, so that neither waits for its own results.
namespace jiboia::scan_tiles {

/// A thread's part of a warp's work. kAhead is the pass ahead, which only finds how a segment ends
/// that begins in zeros, and the sums of its deltas.
template <bool kWide, bool kAhead>
class ForwardWarp {
  static constexpr int kLaneStates = 8;
  using L = Layout<kLaneStates>;
  static constexpr int kPair = L::kPair, kStateLanes = L::kStateLanes;
  static constexpr int kOwned = L::kOwned, kOwners = L::kOwners, kPeriod = L::kPeriod;
  static constexpr int kStepRow = L::kStepRow, kSumRow = L::kSumRow, kSumStep = L::kSumStep;
  static constexpr int kOnTheWay = 2;  // periods, behind the one that is staged
  static_assert(kPeriod == 4, "a thread brings four states of b or c");

 public:
  static constexpr int kWidth = L::kWidth;
  /// Operands of one period, as they come from memory. Each thread reads what it has brought.
  struct Slot {
    Four u[32], dt[32], z[kAhead ? 1 : 32];
    Four row[32];  ///< four states of b or c
    int start[32];
  };
  struct Shared {
    Slot slots[2][2];
    alignas(16) float steps[2][kPeriod * kStepRow];
    alignas(16) float b[2][kPeriod][kStates], c[2][kPeriod][kStates];
    alignas(16) float sums[2][kAhead ? 4 : kPeriod * kSumStep];
  };

  __device__ ForwardWarp(const scan_cuda::Operands<bf16>& in, const ForwardOut& out, Shared& shared,
                         const Segment& segment, int first_channel)
      : in_(in),
        out_(out),
        shared_(shared),
        segment_(segment),
        lane_(in.a_log, first_channel),
        thread_(static_cast<int>(threadIdx.x) % 32),
        step_(thread_ / kOwners),
        owner_(thread_ % kOwners),
        row_is_c_(thread_ % 8 >= 4) {
    const std::int64_t first_row = std::int64_t{segment.batch} * in.L + segment.begin;
    const std::int64_t row = first_row + step_;
    const int d = first_channel + kOwned * owner_;
    u_ = reinterpret_cast<const char*>(in.u[row] + d);
    dt_ = reinterpret_cast<const char*>(in.dt[row] + d);
    z_ = reinterpret_cast<const char*>(in.z[row] + d);
    y_ = reinterpret_cast<char*>(out.y[row - kPeriod] + d);  // turns begin with the one before
    start_ = in.document_start + row;
    const cuda::Rows<const bf16>& rows = row_is_c_ ? in.c : in.b;
    rows_ = reinterpret_cast<const char*>(rows[first_row + thread_ / 8] + thread_ % 4 * 4);
    row_step_ = row_is_c_ ? out.c_step : out.b_step;
#pragma unroll
    for (int i = 0; i < kOwned; ++i) {
      d_skip_[i] = in.d_skip[d + i];
      dt_bias_[i] = in.dt_bias[d + i];
    }
    const int tile = first_channel / static_cast<int>(kChannels) * static_cast<int>(kChannels);
    const std::int64_t chunks = (in.L + kSteps - 1) / kSteps;
    states_ = reinterpret_cast<char*>(out.states + first_line(segment.batch, chunks,
                                                              segment.begin / kSteps, in.D, tile)) +
              place_in_tile(first_channel - tile + lane_.channel, lane_.state) * std::int64_t{2};
  }

  /// Takes the states to where the segment begins, which is behind all segments before it.
  __device__ void pass_segments(std::int64_t first_warp, int warps) {
#pragma unroll 2
    for (int s = 0; s < segment_.index; ++s) {
      const std::int64_t warp = first_warp + std::int64_t{s} * warps;
      lane_.pass(out_.ends + warp * Lane<kLaneStates>::kVectors * 32,
                 out_.delta_sums + warp * kWidth);
    }
  }

  __device__ void run() {
    // Period p has slot p % 2 of pair p / 2 % 2.
    Slot *here = shared_.slots[0], *there = shared_.slots[1];
    copy(here[0], 0);
    copy(here[1], 1);
    copy(there[0], 2);
    cuda::async_copies_wait<kOnTheWay>();
    const Staging staging(here[0], thread_);
    Staged staged;
#pragma unroll
    for (int i = 0; i < kOwned; ++i) stage(staged, staging, i, 0);
    put_staged<0>(staged, staging);
    __syncwarp();
    const int periods = (segment_.length + kPeriod - 1) / kPeriod;
#pragma unroll 1
    for (int period = 0; period <= periods; period += 2) {
      turn<0>(here[1], there[1], period);
      turn<1>(there[0], here[0], period + 1);
      Slot* const last = here;
      here = there;
      there = last;
    }
  }

  /// In the pass ahead: what pass_segments() wants to know.
  __device__ void leave(std::int64_t warp) const {
    lane_.leave(out_.ends + warp * Lane<kLaneStates>::kVectors * 32);
    if (lane_.state == 0) {
      *reinterpret_cast<float2*>(out_.delta_sums + warp * kWidth + lane_.channel) =
          make_float2(delta_sums_[0], delta_sums_[1]);
    }
  }

 private:
  /// Operands that become Staged.
  struct Staging {
    __device__ Staging(const Slot& slot, int thread) : start(slot.start[thread]) {
      const Four u_words = slot.u[thread], dt_words = slot.dt[thread];
      cuda::unpack<bf16>(u_words, u);
      cuda::unpack<bf16>(dt_words, dt);
      row = slot.row[thread];
    }
    float u[kOwned], dt[kOwned];
    Four row;
    int start;
  };
  /// Operands that become y.
  struct Finishing {
    __device__ Finishing(const Slot& slot, const float* sums, int thread) {
      const Four u_words = slot.u[thread], z_words = slot.z[thread];
      cuda::unpack<bf16>(u_words, u);
      cuda::unpack<bf16>(z_words, z);
      load_fours(sums, y);
#pragma unroll
      for (int q = 1; q < kStateLanes; ++q) {
        float part[kOwned];
        load_fours(sums + q * kSumRow, part);
#pragma unroll
        for (int i = 0; i < kOwned; ++i) y[i] += part[i];
      }
    }
    float u[kOwned], z[kOwned], y[kOwned];
  };

  /// Takes the states through a period, while the one behind is staged, the one before finished,
  /// and a further one brought.
  template <int kParity>
  __device__ void turn(Slot& next, Slot& last, int period) {
    cuda::async_copies_wait<kOnTheWay - 1>();
    const Staging staging(next, thread_);
    Staged staged;
    [[maybe_unused]] float y[kOwned];
    if constexpr (kAhead) {
      copy(last, period + 1 + kOnTheWay);
      walk<kParity>(period, [&](int i) { stage(staged, staging, i, period + 1); });
    } else {
      const Finishing finishing(last, shared_.sums[!kParity] + step_ * kSumStep + kOwned * owner_,
                                thread_);
      copy(last, period + 1 + kOnTheWay);
      walk<kParity>(period, [&](int i) {
        stage(staged, staging, i, period + 1);
        y[i] = gated(finishing.y[i], d_skip_[i], finishing.u[i], finishing.z[i]);
      });
      const int t = (period - 1) * kPeriod + step_;
      if (static_cast<unsigned>(t) < static_cast<unsigned>(segment_.length)) {
        cuda::store(y, reinterpret_cast<bf16*>(y_));
      }
      y_ += out_.y_step;
    }
    put_staged<!kParity>(staged, staging);
    __syncwarp();
  }

  /// Starts to bring the operands of a period.
  __device__ void copy(Slot& slot, int period) {
    const int t = period * kPeriod;
    const bool present = t + step_ < segment_.length;
    cuda::async_copy<8>(&slot.u[thread_], u_, present);
    cuda::async_copy<8>(&slot.dt[thread_], dt_, present);
    if constexpr (!kAhead) cuda::async_copy<8>(&slot.z[thread_], z_, present);
    cuda::async_copy<4>(&slot.start[thread_], start_, present && in_.document_start != nullptr);
    u_ += out_.u_step;
    dt_ += out_.dt_step;
    z_ += out_.z_step;
    start_ += kPeriod;
    const bool row_present = t + thread_ / 8 < segment_.length && !(kAhead && row_is_c_);
    bring_four<kWide>(slot.row[thread_], rows_, row_present);
    rows_ += row_step_;
    cuda::async_copies_commit();
  }

  __device__ void stage(Staged& staged, const Staging& staging, int i, int period) const {
    const int t = period * kPeriod + step_;
    // Zero is what absent starts are filled with. It is a start itself where the row begins: a
    // decay of the zeros before it.
    staged.stage(i, staging.u[i], staging.dt[i], dt_bias_[i], staging.start == segment_.begin + t);
    if constexpr (kAhead) {  // the states must not change behind the segment
      if (t >= segment_.length) staged.delta[i] = 0;
    }
  }
  template <int which>
  __device__ void put_staged(const Staged& staged, const Staging& staging) {
    staged.put_at(shared_.steps[which] + step_ * kStepRow + 2 * kOwned * owner_);
    put_widened(&(row_is_c_ ? shared_.c : shared_.b)[which][thread_ / 8][thread_ % 4 * 4],
                staging.row);
  }

  /// As lane: takes the states through a period. In between calls beside(i) for i < kOwned.
  template <int which, class Beside>
  __device__ void walk(int period, const Beside& beside) {
    constexpr int kPause = kPeriod / kOwned;
    [[maybe_unused]] float sums[kPeriod][kPair];
#pragma unroll
    for (int t = 0; t < kPeriod; ++t) {
      if constexpr (!kAhead) {
        if (t % kSteps == 0) {
          lane_.save(states_, period * kPeriod + t < segment_.length);
          states_ += in_.D * kStates * std::int64_t{sizeof(bf16)};
        }
      }
      const auto step = lane_.load(shared_.steps[which] + t * kStepRow, shared_.b[which][t],
                                   kAhead ? nullptr : shared_.c[which][t]);
      lane_.advance(step);
      if constexpr (kAhead) {
#pragma unroll
        for (int k = 0; k < kPair; ++k) delta_sums_[k] += step.delta[k];
      } else {
        lane_.sum(step, sums[t]);
      }
      if (t % kPause == 0) beside(t / kPause);
    }
    if constexpr (!kAhead) {
      float* to = shared_.sums[which] + lane_.state / kLaneStates * kSumRow + lane_.channel;
#pragma unroll
      for (int t = 0; t < kPeriod; ++t) {
        *reinterpret_cast<float2*>(to + t * kSumStep) = make_float2(sums[t][0], sums[t][1]);
      }
    }
  }

  const scan_cuda::Operands<bf16>& in_;
  const ForwardOut& out_;
  Shared& shared_;
  const Segment segment_;
  Lane<kLaneStates> lane_;
  const int thread_, step_, owner_;
  const bool row_is_c_;
  const char *u_, *dt_, *z_, *rows_;
  char *y_, *states_;
  const std::int32_t* start_;
  std::int64_t row_step_;
  float d_skip_[kOwned], dt_bias_[kOwned];
  float delta_sums_[kPair] = {};
};

inline constexpr int kAloneWarps = 4;  ///< of a block, which do not know of each other

/// Grid: a warp for each part of the channels, segment (all but the last in the pass ahead) and
/// batch row. Limited by instruction issue and the units that make exponentials, 3/4 of whose time
/// it uses at large batch. (Registers for a fourth block on a multiprocessor make it 15 % slower.)
template <bool kWide, bool kAhead>
__global__ void __launch_bounds__(32 * kAloneWarps, 3)
    scan_forward_alone(const __grid_constant__ scan_cuda::Operands<bf16> in,
                       const __grid_constant__ ForwardOut out, int warps) {
  using Warp = ForwardWarp<kWide, kAhead>;
  const int in_block = static_cast<int>(threadIdx.x) / 32;
  const int warp = static_cast<int>(blockIdx.x) * kAloneWarps + in_block;
  if (warp >= warps) return;
  auto& shared = reinterpret_cast<typename Warp::Shared*>(cuda::dynamic_shared())[in_block];
  const int parts = in.D / Warp::kWidth, part = warp % parts;
  const int segments = kAhead ? out.segments - 1 : out.segments;
  const Segment segment(out, in.L, warp / parts / segments, warp / parts % segments);
  Warp work(in, out, shared, segment, part * Warp::kWidth);
  if constexpr (!kAhead) {
    work.pass_segments(std::int64_t{segment.batch} * (segments - 1) * parts + part, parts);
  }
  work.run();
  if constexpr (kAhead) work.leave(warp);
}

}  // namespace jiboia::scan_tiles
