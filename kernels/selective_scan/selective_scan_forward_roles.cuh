#pragma once
#include "core/cuda/turns.cuh"
#include "kernels/selective_scan/selective_scan_forward_lanes.cuh"

/// The forward pass of the fast selective scan where there are few warps, so that each has to be
/// fast by itself.
///
/// A block takes kParts parts of a batch row's channels through the steps, period by period. Of its
/// warps, walkers are lanes, one warp a part, which do nothing else; a stager and a finisher are
/// the owners, of all parts: one computes ahead what walkers need, one writes y behind them.
namespace jiboia::scan_tiles {

/// The walkers are the first three warps, the stager is the fourth and the finisher the eighth:
/// both on the scheduler that has no walker. The warps between them end at once.
template <bool kWide>
class ForwardBlock {
  static constexpr int kLaneStates = 4;
  using L = Layout<kLaneStates>;
  static constexpr int kPair = L::kPair, kStateLanes = L::kStateLanes, kWidth = L::kWidth;
  static constexpr int kOwned = L::kOwned, kOwners = L::kOwners, kPeriod = L::kPeriod;
  static constexpr int kStepRow = L::kStepRow, kSumRow = L::kSumRow, kSumStep = L::kSumStep;
  static constexpr int kParts = 3, kStager = 3, kFinisher = 7;
  static constexpr int kOnTheWay = 3;  // periods whose operands are brought
  static constexpr int kRowGroups = kPeriod / 4;
  static constexpr int kWalk = 2, kFinish = 4;  // turns behind the stager
  // A period is in use for two turns, of warps that may be one turn apart.
  static constexpr int kSlots = 4;
  // These come from memory straight to where walkers read them, so they are longer on the way.
  static constexpr int kStateSlots = 8;

 public:
  static constexpr int kThreads = 32 * (kFinisher + 1);
  static constexpr int kBlockWidth = kParts * kWidth;  ///< channels

  /// What owners bring from memory, each thread for itself.
  struct StagerSlot {
    Four u[kParts][32], dt[kParts][32];
    int start[32];
  };
  struct FinisherSlot {
    Four u[kParts][32], z[kParts][32];
  };
  struct Shared {
    alignas(16) float steps[kSlots][kParts][kPeriod * kStepRow];
    /// Of each step, for each state lane: its states of b, then of c.
    alignas(16) Four states[kStateSlots][kPeriod][kStateLanes][2];
    float sums[kSlots][kParts][kPeriod * kSumStep];
    StagerSlot to_stage[kOnTheWay];
    FinisherSlot to_finish[kOnTheWay];
    std::uint64_t turns[2];
  };

  __device__ ForwardBlock(const scan_cuda::Operands<bf16>& in, const ForwardOut& out,
                          Shared& shared, int batch, int first_channel)
      : in_(in),
        out_(out),
        shared_(shared),
        turns_(shared.turns),
        batch_(batch),
        first_channel_(first_channel),
        parts_(min(kParts, (in.D - first_channel) / kWidth)),
        periods_((in.L + kPeriod - 1) / kPeriod),
        thread_(static_cast<int>(threadIdx.x) % 32),
        step_(thread_ / kOwners),
        owner_(thread_ % kOwners) {}

  __device__ void run() {
    const int warp = static_cast<int>(threadIdx.x) / 32, all_turns = periods_ + kFinish;
    if (warp < kParts) {
      walk(warp, all_turns);
    } else if (warp == kStager) {
      stage(all_turns);
    } else if (warp == kFinisher) {
      finish();
    } else {
      turns_.stay_away(all_turns);
    }
  }

 private:
  /// What a walker's lane needs for a step, as it lies in shared memory: 32 bytes instead of 48 as
  /// StepOperands, since shared memory's rate limits too.
  struct Loaded {
    float4 deltas_and_inputs;
    cuda::Vector<bf16, 2 * kLaneStates> b_and_c;
  };
  __device__ static StepOperands<kLaneStates> unpacked(const Loaded& loaded) {
    const float4& both = loaded.deltas_and_inputs;
    float states[2 * kLaneStates];
    cuda::unpack<bf16>(loaded.b_and_c, states);
    StepOperands<kLaneStates> step{{both.x, both.y}, {both.z, both.w}, {}, {}};
#pragma unroll
    for (int j = 0; j < kLaneStates; ++j) {
      step.b[j] = states[j], step.c[j] = states[kLaneStates + j];
    }
    return step;
  }

  /// A walker's work.
  __device__ void walk(int part, int all_turns) {
    const bool exists = part < parts_;
    const int first = first_channel_ + (exists ? part : 0) * kWidth;
    Lane<kLaneStates> lane(in_.a_log, first);
    const int tile = first / static_cast<int>(kChannels) * static_cast<int>(kChannels);
    const std::int64_t chunks = (in_.L + kSteps - 1) / kSteps;
    char* states =
        reinterpret_cast<char*>(out_.states + first_line(batch_, chunks, 0, in_.D, tile)) +
        place_in_tile(first - tile + lane.channel, lane.state) * std::int64_t{2};
    const std::int64_t state_step = in_.D * kStates * std::int64_t{sizeof(bf16)};
    const int sums_at = lane.state / kLaneStates * kSumRow + lane.channel;

    const auto load = [&](int period, int t) {
      const float* row = shared_.steps[period % kSlots][part] + t * kStepRow + 2 * lane.channel;
      const Four* states = shared_.states[period % kStateSlots][t][lane.state / kLaneStates];
      return Loaded{*reinterpret_cast<const float4*>(row),
                    *reinterpret_cast<const cuda::Vector<bf16, 2 * kLaneStates>*>(states)};
    };
    turns_.done(0);
    turns_.wait(0);
    Loaded step = load(0, 0);
    Loaded next = load(0, 1);
    turns_.done(1);
    typename Lane<kLaneStates>::Decay decay;
    lane.start(unpacked(step), decay);
#pragma unroll 1
    for (int period = 0; period < periods_; ++period) {
      float* const sums = shared_.sums[period % kSlots][part] + sums_at;
#pragma unroll
      for (int t = 0; t < kPeriod; ++t) {
        if (t % kSteps == 0) {
          lane.save(states, exists && period * kPeriod + t < in_.L);
          states += state_step;
        }
        // Operands are on their way for a step, and exponentials for another.
        if (t == kPeriod - 2) turns_.wait(period + kWalk - 1);
        const Loaded after =
            t < kPeriod - 2 ? load(period, t + 2) : load(period + 1, t + 2 - kPeriod);
        const StepOperands<kLaneStates> operands = unpacked(step);
        lane.advance(operands, decay, unpacked(next));
        float sum[kPair];
        lane.sum(operands, sum);
        *reinterpret_cast<float2*>(sums + t * kSumStep) = make_float2(sum[0], sum[1]);
        step = next;
        next = after;
      }
      turns_.done(period + kWalk);
    }
    for (int turn = periods_ + kWalk; turn + 1 < all_turns; ++turn) turns_.wait(turn - 1);
  }

  /// The stager's work.
  __device__ void stage(int all_turns) {
    const bool row_is_c = thread_ % 8 >= 4;
    const std::int64_t first_row = std::int64_t{batch_} * in_.L, row = first_row + step_;
    const int d = first_channel_ + kOwned * owner_;
    const auto* u = reinterpret_cast<const char*>(in_.u[row] + d);
    const auto* dt = reinterpret_cast<const char*>(in_.dt[row] + d);
    const std::int32_t* start = in_.document_start + row;
    const cuda::Rows<const bf16>& rows = row_is_c ? in_.c : in_.b;
    const auto* states =
        reinterpret_cast<const char*>(rows[first_row + thread_ / 8] + thread_ % 4 * 4);
    const std::int64_t group_step = (row_is_c ? out_.c_step : out_.b_step) / kRowGroups;
    float dt_bias[kParts][kOwned];
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
#pragma unroll
      for (int i = 0; i < kOwned; ++i) {
        dt_bias[part][i] = part < parts_ ? in_.dt_bias[d + part * kWidth + i] : 0;
      }
    }

    const auto bring = [&](int period) {
      StagerSlot& slot = shared_.to_stage[period % kOnTheWay];
      const int t = period * kPeriod;
      const bool present = t + step_ < in_.L;
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        const int at = part * kWidth * static_cast<int>(sizeof(bf16));
        cuda::async_copy<8>(&slot.u[part][thread_], u + at, present && part < parts_);
        cuda::async_copy<8>(&slot.dt[part][thread_], dt + at, present && part < parts_);
      }
      cuda::async_copy<4>(&slot.start[thread_], start, present && in_.document_start != nullptr);
#pragma unroll
      for (int r = 0; r < kRowGroups; ++r) {
        const int step = thread_ / 8 + 4 * r;
        Four& to = shared_.states[period % kStateSlots][step][thread_ % 4][row_is_c];
        bring_four<kWide>(to, states, t + step < in_.L);
        states += group_step;
      }
      u += out_.u_step;
      dt += out_.dt_step;
      start += kPeriod;
      cuda::async_copies_commit();
    };
#pragma unroll
    for (int period = 0; period < kOnTheWay; ++period) bring(period);
#pragma unroll 1
    for (int turn = 0; turn < periods_; ++turn) {
      cuda::async_copies_wait<kOnTheWay - 1>();
      const StagerSlot& slot = shared_.to_stage[turn % kOnTheWay];
      const bool reset = slot.start[thread_] == turn * kPeriod + step_;
      Staged staged[kParts];
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        const Four u_words = slot.u[part][thread_], dt_words = slot.dt[part][thread_];
        float u_four[kOwned], dt_four[kOwned];
        cuda::unpack<bf16>(u_words, u_four);
        cuda::unpack<bf16>(dt_words, dt_four);
#pragma unroll
        for (int i = 0; i < kOwned; ++i) {
          staged[part].stage(i, u_four[i], dt_four[i], dt_bias[part][i], reset);
        }
      }
      if (turn >= 2) turns_.wait(turn - 2);
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        staged[part].put_at(shared_.steps[turn % kSlots][part] + step_ * kStepRow +
                            2 * kOwned * owner_);
      }
      turns_.done(turn);
      bring(turn + kOnTheWay);
    }
    // Walkers load operands behind the last period, for nothing.
    cuda::async_copies_wait<0>();
    for (int turn = periods_; turn < all_turns; ++turn) {
      if (turn >= 2) turns_.wait(turn - 2);
      turns_.done(turn);
    }
  }

  /// The finisher's work.
  __device__ void finish() {
    const std::int64_t row = std::int64_t{batch_} * in_.L + step_;
    const int d = first_channel_ + kOwned * owner_;
    const auto* u = reinterpret_cast<const char*>(in_.u[row] + d);
    const auto* z = reinterpret_cast<const char*>(in_.z[row] + d);
    auto* y = reinterpret_cast<char*>(out_.y[row] + d);
    float d_skip[kParts][kOwned];
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
#pragma unroll
      for (int i = 0; i < kOwned; ++i) {
        d_skip[part][i] = part < parts_ ? in_.d_skip[d + part * kWidth + i] : 0;
      }
    }

    const auto bring = [&](int period) {
      FinisherSlot& slot = shared_.to_finish[period % kOnTheWay];
      const bool present = period * kPeriod + step_ < in_.L;
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        const int at = part * kWidth * static_cast<int>(sizeof(bf16));
        cuda::async_copy<8>(&slot.u[part][thread_], u + at, present && part < parts_);
        cuda::async_copy<8>(&slot.z[part][thread_], z + at, present && part < parts_);
      }
      u += out_.u_step;
      z += out_.z_step;
      cuda::async_copies_commit();
    };
#pragma unroll
    for (int period = 0; period < kOnTheWay; ++period) bring(period);
    for (int turn = 0; turn < kFinish; ++turn) {
      if (turn >= 2) turns_.wait(turn - 2);
      turns_.done(turn);
    }
#pragma unroll 1
    for (int period = 0; period < periods_; ++period) {
      turns_.wait(period + kFinish - 2);
      cuda::async_copies_wait<kOnTheWay - 1>();
      const FinisherSlot& slot = shared_.to_finish[period % kOnTheWay];
      float u_four[kParts][kOwned], z_four[kParts][kOwned], sums[kParts][kOwned];
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        const Four u_words = slot.u[part][thread_], z_words = slot.z[part][thread_];
        cuda::unpack<bf16>(u_words, u_four[part]);
        cuda::unpack<bf16>(z_words, z_four[part]);
        const float* from =
            shared_.sums[period % kSlots][part] + step_ * kSumStep + kOwned * owner_;
        load_fours(from, sums[part]);
#pragma unroll
        for (int q = 1; q < kStateLanes; ++q) {
          float more[kOwned];
          load_fours(from + q * kSumRow, more);
#pragma unroll
          for (int i = 0; i < kOwned; ++i) sums[part][i] += more[i];
        }
      }
      turns_.done(period + kFinish);
      bring(period + kOnTheWay);
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        float result[kOwned];
#pragma unroll
        for (int i = 0; i < kOwned; ++i) {
          result[i] = gated(sums[part][i], d_skip[part][i], u_four[part][i], z_four[part][i]);
        }
        if (part < parts_ && period * kPeriod + step_ < in_.L) {
          cuda::store(result, reinterpret_cast<bf16*>(y) + part * kWidth);
        }
      }
      y += out_.y_step;
    }
  }

  const scan_cuda::Operands<bf16>& in_;
  const ForwardOut& out_;
  Shared& shared_;
  const cuda::Turns<kParts + 2> turns_;
  const int batch_, first_channel_, parts_, periods_, thread_, step_, owner_;
};

/// Grid: a block for each kParts parts of the channels, and batch row. Limited, where a
/// multiprocessor has one block, by how long a walker waits for its own exponentials: it takes 810
/// cycles for a period's 460 instructions. With two blocks also by the rate of shared memory, which
/// is busy for 7/10 of the time.
template <bool kWide>
__global__ void __launch_bounds__(ForwardBlock<kWide>::kThreads, 2)
    scan_forward_roles(const __grid_constant__ scan_cuda::Operands<bf16> in,
                       const __grid_constant__ ForwardOut out) {
  using Block = ForwardBlock<kWide>;
  const int blocks = (in.D + Block::kBlockWidth - 1) / Block::kBlockWidth;
  const int block = static_cast<int>(blockIdx.x);
  auto& shared = *reinterpret_cast<typename Block::Shared*>(cuda::dynamic_shared());
  Block(in, out, shared, block / blocks, block % blocks * Block::kBlockWidth).run();
}

}  // namespace jiboia::scan_tiles
