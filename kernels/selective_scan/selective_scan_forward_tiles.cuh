#pragma once
#include "kernels/selective_scan/selective_scan_tiles.cuh"

/// The forward pass of the fast selective scan.
///
/// A warp takes one batch row of some channels through the sequence, by itself: it brings its own
/// operands, waits for no other warp, and so drifts to where the others leave the units free. A
/// thread has two parts. As a lane it takes kS states of kC channels through the steps, in
/// registers. As an owner it has 4 channels of one step in each period: it computes whatever is
/// needed once for a channel and step, and writes y.
namespace jiboia::scan_tiles {

/// How sums over states are made, where several lanes have states of a channel.
enum class Sum { kShared, kShuffle, kMatrix };

/// How a warp is laid out whose lanes take kS states of kC channels.
template <int kC, int kS>
struct Layout {
  static constexpr int kStateLanes = static_cast<int>(kStates) / kS;
  static constexpr int kChannelLanes = 32 / kStateLanes;
  static constexpr int kWidth = kChannelLanes * kC;  ///< channels of a warp
  static constexpr int kOwned = 4;                   ///< channels of an owner
  static constexpr int kOwners = kWidth / kOwned;    ///< owners of a step
  static constexpr int kPeriod = 32 / kOwners;       ///< steps that all owners together have
};

struct ForwardOut {
  cuda::Rows<bf16> y;
  Line* states;
  std::int64_t u_step, dt_step, z_step, y_step, b_step,
      c_step;  ///< bytes from one period to the next
};

/// Four floats at an address that is a multiple of 16.
__device__ inline void put(float* to, float a, float b, float c, float d) {
  *reinterpret_cast<float4*>(to) = make_float4(a, b, c, d);
}

/// A thread's part of a warp's work.
template <int kC, int kS, Sum kSum, bool kWide>
class ForwardWarp : Layout<kC, kS> {
  using L = Layout<kC, kS>;
  using L::kStateLanes, L::kChannelLanes, L::kWidth, L::kOwned, L::kOwners, L::kPeriod;
  static constexpr int kAhead = 2;  // periods whose operands are on their way, behind the next one
  static constexpr int kRowGroups = kPeriod / 4;
  using Four = cuda::Words<8>;  // bf16

  // Padding that keeps the banks apart which a warp's access uses at once.
  static constexpr int kStepRow = 2 * kWidth + 8;
  static constexpr int kSumRow = kWidth + (kWidth > 8 ? 8 : 0);
  static constexpr int kSumStep = kStateLanes * kSumRow + (kWidth == 32   ? 0
                                                           : kWidth == 16 ? 16
                                                                          : 8);

 public:
  /// Operands of one period, as they come from memory. Each thread reads what it has brought.
  struct Slot {
    Four u[32], dt[32], z[32];
    Four rows[kRowGroups][32];  ///< four states of b or c
    int start[32];
  };
  struct Shared {
    Slot slots[2][2];
    alignas(16) float steps[2][kPeriod * kStepRow];  ///< delta where it makes the decay; delta * u
    alignas(16) float b[2][kPeriod][kStates], c[2][kPeriod][kStates];
    alignas(16) float sums[2][kSum == Sum::kShared ? kPeriod * kSumStep : 4];
  };

  __device__ ForwardWarp(const scan_cuda::Operands<bf16>& in, const ForwardOut& out, Shared& shared,
                         int batch, int first_channel)
      : in_(in),
        out_(out),
        shared_(shared),
        lane_(static_cast<int>(threadIdx.x) % 32),
        step_(kSum == Sum::kShared ? lane_ / kOwners : lane_ % kPeriod),
        owner_(kSum == Sum::kShared ? lane_ % kOwners : lane_ / kPeriod),
        kind_(lane_ % 8 >= 4) {
    const std::int64_t row = std::int64_t{batch} * in.L + step_;
    const int d = first_channel + kOwned * owner_;
    u_ = reinterpret_cast<const char*>(in.u[row] + d);
    dt_ = reinterpret_cast<const char*>(in.dt[row] + d);
    z_ = reinterpret_cast<const char*>(in.z[row] + d);
    y_ = reinterpret_cast<char*>(out.y[row - kPeriod] +
                                 d);  // turns begin with the one before the first
    start_ = in.document_start + row;
    const bool is_c = lane_ % 8 >= 4;
    const cuda::Rows<const bf16>& rows = is_c ? in.c : in.b;
    rows_ =
        reinterpret_cast<const char*>(rows[std::int64_t{batch} * in.L + lane_ / 8] + lane_ % 4 * 4);
    row_step_ = is_c ? out.c_step : out.b_step;
    rows_at_ =
        static_cast<int>((is_c ? &shared.c[0][0][0] : &shared.b[0][0][0]) - &shared.b[0][0][0]) +
        lane_ / 8 * 16 + lane_ % 4 * 4;
#pragma unroll
    for (int i = 0; i < kOwned; ++i) {
      d_skip_[i] = in.d_skip[d + i];
      dt_bias_[i] = in.dt_bias[d + i];
    }
#pragma unroll
    for (int k = 0; k < kC; ++k) {
      const int channel = first_channel + kC * channel_lane() + k;
#pragma unroll
      for (int j = 0; j < kS; ++j) {
        const auto at = std::int64_t{channel} * kStates + kS * state_lane() + j;
        rate_[k][j] = scan_cuda::decay_rate(in.a_log[at]);
        state_[k][j] = 0;
      }
    }
    const int tile = first_channel / static_cast<int>(kChannels) * static_cast<int>(kChannels);
    const int c = first_channel - tile + kC * channel_lane(), n = kS * state_lane();
    const std::int64_t chunks = (in.L + kSteps - 1) / kSteps;
    states_ = reinterpret_cast<char*>(out.states + first_line(batch, chunks, 0, in.D, tile)) +
              sizeof(bf16) * place_in_tile(c, n);
    state_step_ = std::int64_t{in.D} * kStates * static_cast<std::int64_t>(sizeof(bf16));
#pragma unroll
    for (int t = 0; t < 4; ++t) {
      mask_[t][0] = channel_lane() == 2 * t ? 1.f : 0.f;
      mask_[t][1] = channel_lane() == 2 * t + 1 ? 1.f : 0.f;
    }
  }

  __device__ void run() {
    // Period p has slot p % 2 of pair p / 2 % 2.
    Slot *here = shared_.slots[0], *there = shared_.slots[1];
    copy(here[0], 0);
    copy(here[1], 1);
    copy(there[0], 2);
    cuda::async_copies_wait<kAhead>();
    stage(here[0], 0);
    put_staged<0>();
    __syncwarp();
    const int periods = (in_.L + kPeriod - 1) / kPeriod;
#pragma unroll 1
    for (int period = 0; period <= periods; period += 2) {
      turn<0>(here[1], there[1], period);
      turn<1>(there[0], here[0], period + 1);
      Slot* const last = here;
      here = there;
      there = last;
    }
  }

 private:
  __device__ int channel_lane() const { return lane_ / kStateLanes; }
  __device__ int state_lane() const { return lane_ % kStateLanes; }

  /// Takes the states through a period, while the one behind is staged, the one before finished,
  /// and a further one brought.
  template <int kParity>
  __device__ void turn(Slot& next, Slot& last, int period) {
    cuda::async_copies_wait<kAhead - 1>();
    stage(next, period + 1);
    finish<!kParity>(last, period - 1);
    copy(last, period + 1 + kAhead);
    walk<kParity>(period);
    put_staged<!kParity>();
    __syncwarp();
  }

  /// Starts to bring the operands of a period.
  __device__ void copy(Slot& slot, int period) {
    const int t = period * kPeriod;
    const bool present = t + step_ < in_.L;
    cuda::async_copy<8>(&slot.u[lane_], u_, present);
    cuda::async_copy<8>(&slot.dt[lane_], dt_, present);
    cuda::async_copy<8>(&slot.z[lane_], z_, present);
    cuda::async_copy<4>(&slot.start[lane_], start_, present && in_.document_start != nullptr);
    u_ += out_.u_step;
    dt_ += out_.dt_step;
    z_ += out_.z_step;
    start_ += kPeriod;
    const int row = t + lane_ / 8;
    if constexpr (kWide) {
#pragma unroll
      for (int r = 0; r < kRowGroups; ++r) {
        cuda::async_copy<8>(&slot.rows[r][lane_], rows_ + r * (row_step_ / kRowGroups),
                            row + 4 * r < in_.L);
      }
    } else {
      for (int r = 0; r < kRowGroups; ++r) {
        unsigned short values[4] = {};
        const auto* from =
            reinterpret_cast<const unsigned short*>(rows_ + r * (row_step_ / kRowGroups));
        for (int i = 0; i < 4 && row + 4 * r < in_.L; ++i) values[i] = from[i];
        Four four;
        four.at[0] = values[0] | unsigned{values[1]} << 16;
        four.at[1] = values[2] | unsigned{values[3]} << 16;
        slot.rows[r][lane_] = four;
      }
    }
    rows_ += row_step_;
    cuda::async_copies_commit();
  }

  /// As owner: computes what lanes need.
  __device__ void stage(const Slot& slot, int period) {
    const Four u_words = slot.u[lane_], dt_words = slot.dt[lane_];
    float u[kOwned], dt[kOwned];
    cuda::unpack<bf16>(u_words, u);
    cuda::unpack<bf16>(dt_words, dt);
    const bool reset = slot.start[lane_] == period * kPeriod + step_;
#pragma unroll
    for (int i = 0; i < kOwned; ++i) {
      const float delta = Softplus(dt[i] + dt_bias_[i]).value;
      staged_delta_[i] = reset ? scan_cuda::kResetDelta : delta;
      staged_input_[i] = delta * u[i];
    }
#pragma unroll
    for (int r = 0; r < kRowGroups; ++r) {
      staged_rows_[r] = slot.rows[r][lane_];
    }
  }
  template <int which>
  __device__ void put_staged() {
    float* steps = shared_.steps[which] + step_ * kStepRow;
    if constexpr (kC == 4) {
      put(steps + kOwned * owner_, staged_delta_[0], staged_delta_[1], staged_delta_[2],
          staged_delta_[3]);
      put(steps + kWidth + kOwned * owner_, staged_input_[0], staged_input_[1], staged_input_[2],
          staged_input_[3]);
    } else {
#pragma unroll
      for (int i = 0; i < kOwned; i += 4 / kC * kC / 2) {
        static_assert(kC == 1 || kC == 2);
        float four[4];
        if constexpr (kC == 2) {
          four[0] = staged_delta_[i], four[1] = staged_delta_[i + 1];
          four[2] = staged_input_[i], four[3] = staged_input_[i + 1];
        } else {
          four[0] = staged_delta_[i], four[1] = staged_input_[i];
          four[2] = staged_delta_[i + 1], four[3] = staged_input_[i + 1];
        }
        put(steps + 2 * (kOwned * owner_ + i), four[0], four[1], four[2], four[3]);
      }
    }
#pragma unroll
    for (int r = 0; r < kRowGroups; ++r) {
      const unsigned low = staged_rows_[r].at[0], high = staged_rows_[r].at[1];
      *reinterpret_cast<uint4*>(&shared_.b[which][4 * r][0] + rows_at_) =
          make_uint4(low << 16, low & 0xFFFF0000U, high << 16, high & 0xFFFF0000U);
    }
  }

  /// As lane: takes the states through a period.
  template <int which>
  __device__ void walk(int period) {
    const float* steps = shared_.steps[which];
    float sums[kPeriod][kC];
#pragma unroll
    for (int t = 0; t < kPeriod; ++t) {
      if (t % kSteps == 0) save(period * kPeriod + t);
      float delta[kC], input[kC], b[kS], c[kS];
      if constexpr (kC == 4) {
        cuda::load(steps + t * kStepRow + kC * channel_lane(), delta);
        cuda::load(steps + t * kStepRow + kWidth + kC * channel_lane(), input);
      } else {
        float both[2 * kC];
        cuda::load(steps + t * kStepRow + 2 * kC * channel_lane(), both);
#pragma unroll
        for (int k = 0; k < kC; ++k) {
          delta[k] = both[k];
          input[k] = both[kC + k];
        }
      }
      load_states(shared_.b[which][t] + kS * state_lane(), b);
      load_states(shared_.c[which][t] + kS * state_lane(), c);
#pragma unroll
      for (int k = 0; k < kC; ++k) {
        float sum = 0;
#pragma unroll
        for (int j = 0; j < kS; ++j) {
          const float decay = cuda::exp2_approx(delta[k] * rate_[k][j]);
          state_[k][j] = fmaf(decay, state_[k][j], input[k] * b[j]);
          sum = j == 0 ? state_[k][j] * c[j] : fmaf(state_[k][j], c[j], sum);
        }
        sums[t][k] = sum;
      }
#ifdef __CUDA_ARCH__
      if constexpr (kSum == Sum::kMatrix) {
        if (t == 0) totals_[0] = totals_[1] = totals_[2] = totals_[3] = 0;
        asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
            "{%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
            : "+f"(totals_[0]), "+f"(totals_[1]), "+f"(totals_[2]), "+f"(totals_[3])
            : "r"(__float_as_uint(sums[t][0])), "r"(__float_as_uint(sums[t][2])),
              "r"(__float_as_uint(sums[t][1])), "r"(__float_as_uint(sums[t][3])),
              "r"(__float_as_uint(mask_[t][0])), "r"(__float_as_uint(mask_[t][1])));
      }
#endif
    }
    if constexpr (kSum == Sum::kShared) {
      float* to = shared_.sums[which] + state_lane() * kSumRow + kC * channel_lane();
#pragma unroll
      for (int t = 0; t < kPeriod; ++t) {
        if constexpr (kC == 4)
          put(to + t * kSumStep, sums[t][0], sums[t][1], sums[t][2], sums[t][3]);
        else if constexpr (kC == 2)
          *reinterpret_cast<float2*>(to + t * kSumStep) = make_float2(sums[t][0], sums[t][1]);
        else
          to[t * kSumStep] = sums[t][0];
      }
    } else if constexpr (kSum == Sum::kShuffle) {
      static_assert(kPeriod == 4 && kStateLanes == 4);
      const scan_cuda::Lane lane;
#pragma unroll
      for (int k = 0; k < kC; ++k) {
        const float values[4] = {sums[0][k], sums[1][k], sums[2][k], sums[3][k]};
        totals_[k] = scan_cuda::sum_over_states(values, lane);
      }
    }
  }
  template <int kCount>
  __device__ static void load_states(const float* from, float (&to)[kCount]) {
    if constexpr (kCount <= 4) {
      cuda::load(from, to);
    } else {
#pragma unroll
      for (int i = 0; i < kCount; i += 4) {
        float four[4];
        cuda::load(from + i, four);
#pragma unroll
        for (int j = 0; j < 4; ++j) to[i + j] = four[j];
      }
    }
  }

  /// Writes the states before step `t`, the first of a chunk.
  __device__ void save(int t) {
    const bool present = t < in_.L;
    if constexpr (kC == 1) {
      cuda::store_streaming(states_, cuda::pack<bf16>(state_[0]).at, present);
    } else {
#pragma unroll
      for (int k = 0; k < kC; k += 2) {
#pragma unroll
        for (int j = 0; j < kS; j += 4) {
          float values[kLineSize];
#pragma unroll
          for (int i = 0; i < 8; ++i) values[i] = state_[k + i / 4][j + i % 4];
          cuda::store_streaming(states_ + place_in_tile(k, j) * 2, cuda::pack<bf16>(values).at,
                                present);
        }
      }
    }
    states_ += state_step_;
  }

  /// As owner: writes y.
  template <int which>
  __device__ void finish(const Slot& slot, int period) {
    const Four u_words = slot.u[lane_], z_words = slot.z[lane_];
    float u[kOwned], z[kOwned], y[kOwned];
    cuda::unpack<bf16>(u_words, u);
    cuda::unpack<bf16>(z_words, z);
    if constexpr (kSum == Sum::kShared) {
      const float* from = shared_.sums[which] + step_ * kSumStep + kOwned * owner_;
      cuda::load(from, y);
#pragma unroll
      for (int q = 1; q < kStateLanes; ++q) {
        float part[kOwned];
        cuda::load(from + q * kSumRow, part);
#pragma unroll
        for (int i = 0; i < kOwned; ++i) y[i] += part[i];
      }
    } else {
#pragma unroll
      for (int i = 0; i < kOwned; ++i) y[i] = totals_[i];
    }
#pragma unroll
    for (int i = 0; i < kOwned; ++i) {
      const float at = gate_argument(z[i]);
      const float e = cuda::exp2_approx(at * -1.4426950408889634f);
      y[i] = fmaf(d_skip_[i], u[i], y[i]) * (at * cuda::reciprocal_approx(1 + e));
    }
    const int t = period * kPeriod + step_;
    if (static_cast<unsigned>(t) < static_cast<unsigned>(in_.L))
      cuda::store(y, reinterpret_cast<bf16*>(y_));
    y_ += out_.y_step;
  }

  const scan_cuda::Operands<bf16>& in_;
  const ForwardOut& out_;
  Shared& shared_;
  const int lane_, step_, owner_;
  const bool kind_;
  const char *u_, *dt_, *z_, *rows_;
  char* y_;
  const std::int32_t* start_;
  char* states_;
  std::int64_t row_step_, state_step_;
  int rows_at_;
  float d_skip_[kOwned], dt_bias_[kOwned];
  float rate_[kC][kS], state_[kC][kS];
  float staged_delta_[kOwned], staged_input_[kOwned];
  Four staged_rows_[kRowGroups];
  float totals_[4] = {};
  float mask_[4][2];
};

template <int kC, int kS, Sum kSum, bool kWide, int kWarps, int kBlocks>
__global__ void __launch_bounds__(32 * kWarps, kBlocks)
    scan_forward_tiles(const __grid_constant__ scan_cuda::Operands<bf16> in,
                       const __grid_constant__ ForwardOut out, int warps) {
  using Warp = ForwardWarp<kC, kS, kSum, kWide>;
  const int in_block = static_cast<int>(threadIdx.x) / 32;
  const int warp = static_cast<int>(blockIdx.x) * kWarps + in_block;
  if (warp >= warps) return;
  auto& shared = reinterpret_cast<typename Warp::Shared*>(cuda::dynamic_shared())[in_block];
  const int in_row = in.D / Layout<kC, kS>::kWidth;
  Warp(in, out, shared, warp / in_row, warp % in_row * Layout<kC, kS>::kWidth).run();
}

}  // namespace jiboia::scan_tiles
