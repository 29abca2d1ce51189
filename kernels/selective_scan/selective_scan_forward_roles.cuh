#pragma once
#include "core/cuda/turns.cuh"
#include "kernels/selective_scan/selective_scan_forward_lanes.cuh"

/// The forward pass of the fast selective scan where there are few warps, so that each has to be
/// fast by itself.
///
/// A block takes three parts of a batch row's channels through the steps, period by period. Each
/// part has three warps: a walker, whose threads are lanes and do nothing else, and two of owners:
/// a stager computes ahead what the walker needs, a finisher writes y behind it.
namespace jiboia::scan_tiles {

template <bool kWide>
class ForwardBlock {
  static constexpr int kLaneStates = 4, kParts = 3;
  using L = Layout<kLaneStates>;
  static constexpr int kPair = L::kPair, kStateLanes = L::kStateLanes;
  static constexpr int kOwned = L::kOwned, kOwners = L::kOwners, kPeriod = L::kPeriod;
  static constexpr int kStepRow = L::kStepRow, kSumRow = L::kSumRow, kSumStep = L::kSumStep;
  static constexpr int kOnTheWay = 3;  // periods whose operands are brought
  static constexpr int kRowGroups = kPeriod / 4;
  static_assert(kRowGroups <= kParts, "each group of rows of b and c has a stager");
  static constexpr int kWalk = 2, kFinish = 4;  // turns behind the stager
  // A period is in use for two turns, of warps that may be one turn apart.
  static constexpr int kSlots = 4;

 public:
  static constexpr int kWarps = 3 * kParts;
  static constexpr int kWidth = kParts * L::kWidth;  ///< channels

  /// What an owner brings from memory, each thread for itself.
  struct StagerSlot {
    Four u[32], dt[32];
    Four row[32];  ///< four states of b or c
    int start[32];
  };
  struct FinisherSlot {
    Four u[32], z[32];
  };
  struct Part {
    alignas(16) float steps[kSlots][kPeriod * kStepRow];
    float sums[kSlots][kPeriod * kSumStep];
    StagerSlot to_stage[kOnTheWay];
    FinisherSlot to_finish[kOnTheWay];
  };
  struct Shared {
    Part parts[kParts];
    float b[kSlots][kPeriod][kStates], c[kSlots][kPeriod][kStates];
    std::uint64_t turns[2];
  };

  __device__ ForwardBlock(const scan_cuda::Operands<bf16>& in, const ForwardOut& out,
                          Shared& shared, int batch, int first_channel)
      : in_(in),
        out_(out),
        shared_(shared),
        turns_(shared.turns),
        warp_(static_cast<int>(threadIdx.x) / 32),
        part_(warp_ % kParts),
        exists_(first_channel + part_ * L::kWidth < in.D),
        batch_(batch),
        first_channel_(first_channel + (exists_ ? part_ : 0) * L::kWidth),
        periods_((in.L + kPeriod - 1) / kPeriod),
        thread_(static_cast<int>(threadIdx.x) % 32),
        step_(thread_ / kOwners),
        owner_(thread_ % kOwners) {}

  __device__ void run() {
    switch (warp_ / kParts) {
      case 0: return walk();
      case 1: return stage();
      default: return finish();
    }
  }

 private:
  __device__ int all_turns() const { return periods_ + kFinish; }

  /// A walker's work.
  __device__ void walk() {
    Lane<kLaneStates> lane(in_.a_log, first_channel_);
    const int tile = first_channel_ / static_cast<int>(kChannels) * static_cast<int>(kChannels);
    const std::int64_t chunks = (in_.L + kSteps - 1) / kSteps;
    char* states =
        reinterpret_cast<char*>(out_.states + first_line(batch_, chunks, 0, in_.D, tile)) +
        place_in_tile(first_channel_ - tile + lane.channel, lane.state) * std::int64_t{2};
    const std::int64_t state_step = in_.D * kStates * std::int64_t{sizeof(bf16)};
    Part& part = shared_.parts[part_];
    const int sums_at = lane.state / kLaneStates * kSumRow + lane.channel;

    const auto load = [&](int period, int t) {
      const int slot = period % kSlots;
      return lane.load(part.steps[slot] + t * kStepRow, shared_.b[slot][t], shared_.c[slot][t]);
    };
    turns_.done(0);
    turns_.wait(0);
    StepOperands<kLaneStates> step = load(0, 0);
    StepOperands<kLaneStates> next = load(0, 1);
    turns_.done(1);
    typename Lane<kLaneStates>::Decay decay;
    lane.start(step, decay);
#pragma unroll 1
    for (int period = 0; period < periods_; ++period) {
      float* const sums = part.sums[period % kSlots] + sums_at;
#pragma unroll
      for (int t = 0; t < kPeriod; ++t) {
        if (t % kSteps == 0) {
          lane.save(states, exists_ && period * kPeriod + t < in_.L);
          states += state_step;
        }
        // Operands are on their way for a step, and exponentials for another.
        if (t == kPeriod - 2) turns_.wait(period + kWalk - 1);
        const StepOperands<kLaneStates> after =
            t < kPeriod - 2 ? load(period, t + 2) : load(period + 1, t + 2 - kPeriod);
        lane.advance(step, decay, next);
        float sum[kPair];
        lane.sum(step, sum);
        *reinterpret_cast<float2*>(sums + t * kSumStep) = make_float2(sum[0], sum[1]);
        step = next;
        next = after;
      }
      turns_.done(period + kWalk);
    }
    for (int turn = periods_ + kWalk; turn + 1 < all_turns(); ++turn) turns_.wait(turn - 1);
  }

  /// A stager's work. Those of the first parts bring b and c, too.
  __device__ void stage() {
    const bool brings_rows = part_ < kRowGroups, row_is_c = thread_ % 8 >= 4;
    const int row_step = 4 * part_ + thread_ / 8;  // of the period
    const std::int64_t first_row = std::int64_t{batch_} * in_.L, row = first_row + step_;
    const int d = first_channel_ + kOwned * owner_;
    const auto* u = reinterpret_cast<const char*>(in_.u[row] + d);
    const auto* dt = reinterpret_cast<const char*>(in_.dt[row] + d);
    const std::int32_t* start = in_.document_start + row;
    const cuda::Rows<const bf16>& rows = row_is_c ? in_.c : in_.b;
    const auto* states =
        reinterpret_cast<const char*>(rows[first_row + row_step] + thread_ % 4 * 4);
    const std::int64_t states_step = row_is_c ? out_.c_step : out_.b_step;
    float dt_bias[kOwned];
#pragma unroll
    for (int i = 0; i < kOwned; ++i) dt_bias[i] = in_.dt_bias[d + i];

    Part& part = shared_.parts[part_];
    const auto bring = [&](int period) {
      StagerSlot& slot = part.to_stage[period % kOnTheWay];
      const int t = period * kPeriod;
      const bool present = t + step_ < in_.L;
      cuda::async_copy<8>(&slot.u[thread_], u, present);
      cuda::async_copy<8>(&slot.dt[thread_], dt, present);
      cuda::async_copy<4>(&slot.start[thread_], start, present && in_.document_start != nullptr);
      if (brings_rows) bring_four<kWide>(slot.row[thread_], states, t + row_step < in_.L);
      u += out_.u_step;
      dt += out_.dt_step;
      start += kPeriod;
      states += states_step;
      cuda::async_copies_commit();
    };
#pragma unroll
    for (int period = 0; period < kOnTheWay; ++period) bring(period);
#pragma unroll 1
    for (int turn = 0; turn < all_turns(); ++turn) {
      if (turn >= 2) turns_.wait(turn - 2);
      if (turn < periods_) {
        cuda::async_copies_wait<kOnTheWay - 1>();
        const StagerSlot& slot = part.to_stage[turn % kOnTheWay];
        const int to = turn % kSlots;
        const Four u_words = slot.u[thread_], dt_words = slot.dt[thread_];
        const bool reset = slot.start[thread_] == turn * kPeriod + step_;
        float u_four[kOwned], dt_four[kOwned];
        cuda::unpack<bf16>(u_words, u_four);
        cuda::unpack<bf16>(dt_words, dt_four);
        Staged staged;
#pragma unroll
        for (int i = 0; i < kOwned; ++i) {
          staged.stage(i, u_four[i], dt_four[i], dt_bias[i], reset);
        }
        staged.put_at(part.steps[to] + step_ * kStepRow + 2 * kOwned * owner_);
        if (brings_rows) {
          const Four four = slot.row[thread_];
          put_widened(&(row_is_c ? shared_.c : shared_.b)[to][row_step][thread_ % 4 * 4], four);
        }
      }
      turns_.done(turn);
      bring(turn + kOnTheWay);
    }
  }

  /// A finisher's work.
  __device__ void finish() {
    const std::int64_t row = std::int64_t{batch_} * in_.L + step_;
    const int d = first_channel_ + kOwned * owner_;
    const auto* u = reinterpret_cast<const char*>(in_.u[row] + d);
    const auto* z = reinterpret_cast<const char*>(in_.z[row] + d);
    auto* y = reinterpret_cast<char*>(out_.y[row] + d);
    float d_skip[kOwned];
#pragma unroll
    for (int i = 0; i < kOwned; ++i) d_skip[i] = in_.d_skip[d + i];

    Part& part = shared_.parts[part_];
    const auto bring = [&](int period) {
      FinisherSlot& slot = part.to_finish[period % kOnTheWay];
      const bool present = period * kPeriod + step_ < in_.L;
      cuda::async_copy<8>(&slot.u[thread_], u, present);
      cuda::async_copy<8>(&slot.z[thread_], z, present);
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
      const FinisherSlot& slot = part.to_finish[period % kOnTheWay];
      const Four u_words = slot.u[thread_], z_words = slot.z[thread_];
      float u_four[kOwned], z_four[kOwned], result[kOwned];
      cuda::unpack<bf16>(u_words, u_four);
      cuda::unpack<bf16>(z_words, z_four);
      const float* sums = part.sums[period % kSlots] + step_ * kSumStep + kOwned * owner_;
      load_fours(sums, result);
#pragma unroll
      for (int q = 1; q < kStateLanes; ++q) {
        float more[kOwned];
        load_fours(sums + q * kSumRow, more);
#pragma unroll
        for (int i = 0; i < kOwned; ++i) result[i] += more[i];
      }
      turns_.done(period + kFinish);
      bring(period + kOnTheWay);
#pragma unroll
      for (int i = 0; i < kOwned; ++i) {
        result[i] = gated(result[i], d_skip[i], u_four[i], z_four[i]);
      }
      if (exists_ && period * kPeriod + step_ < in_.L) {
        cuda::store(result, reinterpret_cast<bf16*>(y));
      }
      y += out_.y_step;
    }
  }

  const scan_cuda::Operands<bf16>& in_;
  const ForwardOut& out_;
  Shared& shared_;
  const cuda::Turns<kWarps> turns_;
  const int warp_, part_;
  const bool exists_;  ///< where not, the part's warps do the first part's work, and write nothing
  const int batch_, first_channel_, periods_, thread_, step_, owner_;
};

/// Grid: a block for each three parts of the channels, and batch row. Limited by the units that
/// make exponentials.
template <bool kWide>
__global__ void __launch_bounds__(32 * ForwardBlock<kWide>::kWarps)
    scan_forward_roles(const __grid_constant__ scan_cuda::Operands<bf16> in,
                       const __grid_constant__ ForwardOut out) {
  using Block = ForwardBlock<kWide>;
  const int blocks = (in.D + Block::kWidth - 1) / Block::kWidth;
  const int block = static_cast<int>(blockIdx.x);
  auto& shared = *reinterpret_cast<typename Block::Shared*>(cuda::dynamic_shared());
  Block(in, out, shared, block / blocks, block % blocks * Block::kWidth).run();
}

}  // namespace jiboia::scan_tiles
