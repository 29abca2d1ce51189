#include "kernels/selective_scan/selective_scan_cpu.h"

namespace jiboia {
namespace {

using namespace scan;

/// One batch row of one block of channels.
template <class T>
class ForwardTile {
  using V = simd::Vec<T>;
  static constexpr std::int64_t kLanes = simd::kLanes<T>;

 public:
  /// `rates` are decay_rates() of all blocks.
  ForwardTile(const Operands<T>& in, const ForwardArgs<SelectiveScan>& args, const T* rates,
              std::int64_t batch, std::int64_t block)
      : in_(in),
        y_(args.out.y),
        first_row_(batch * in.L),
        first_channel_(block * kBlock),
        channels_(std::min(kBlock, in.D - first_channel_)),
        rates_(rates + block * in.N * kBlock),
        states_(args.out.states.as<T>() + batch * in.chunks * in.N * in.D + first_channel_) {
    const std::int64_t offset = batch * in.N * in.D + first_channel_;
    if (args.out.final_state) final_state_ = args.out.final_state.as<T>() + offset;
    for (std::int64_t n = 0; n < in.N; ++n) {
      if (args.in.initial_state) {
        const T* from = args.in.initial_state.as<T>() + offset + n * in.D;
        std::copy_n(from, channels_, states_ + n * in.D);
      } else {
        std::fill_n(states_ + n * in.D, channels_, T(0));
      }
    }
  }

  void run() {
    for (std::int64_t chunk = 0; chunk < in_.chunks; ++chunk) {
      begin_ = chunk * kChunk;
      steps_ = std::min(kChunk, in_.L - begin_);
      T* states = states_ + chunk * in_.N * in_.D;
      before_ = states;
      behind_ = chunk + 1 < in_.chunks ? states + in_.N * in_.D : final_state_;
      stage();
      for (std::int64_t channel = 0; channel < channels_; channel += kLanes) {
        for_each_group(in_.N, [&]<int kStates>(std::int64_t n) { walk<kStates>(channel, n); });
      }
      gate();
    }
  }

 private:
  std::int64_t row(std::int64_t t) const { return first_row_ + begin_ + t; }

  void stage() {
    for (std::int64_t t = 0; t < steps_; ++t) {
      const std::int64_t later = std::min(row(t) + kChunk, in_.B * in_.L - 1);
      for (std::int64_t i = 0; i < channels_; i += kLanes) {
        const std::int64_t d = first_channel_ + i, count = channels_ - i;
        // Rows are too far apart for the hardware to see what comes next.
        __builtin_prefetch(in_.u[later] + d);
        __builtin_prefetch(in_.dt[later] + d);
        __builtin_prefetch(in_.z[row(t)] + d);
        const V u = simd::load(in_.u[row(t)] + d, count);
        const V delta = simd::softplus(simd::load(in_.dt[row(t)] + d, count) +
                                       simd::load(in_.dt_bias + d, count));
        simd::store(decay_delta(in_, row(t), begin_ + t, delta), decay_delta_.at(i, t));
        simd::store(delta * u, input_.at(i, t));
        simd::store(simd::load(in_.d_skip + d, count) * u, sum_.at(i, t));
      }
    }
  }

  /// Takes states n, n + 1, ... of one vector of channels through the chunk.
  template <int kStates>
  void walk(std::int64_t channel, std::int64_t n) {
    const std::int64_t count = channels_ - channel, state_at = n * in_.D + channel;
    V state[kStates], rate[kStates];
#pragma GCC unroll 16
    for (int j = 0; j < kStates; ++j) {
      state[j] = simd::load(before_ + state_at + j * in_.D, count);
      rate[j] = simd::load(rates_ + (n + j) * kBlock + channel);
    }
    const std::int64_t steps = steps_, b_stride = in_.b.stride, c_stride = in_.c.stride;
    const T *b = in_.b[row(0)] + n, *c = in_.c[row(0)] + n;
    const T *delta = decay_delta_.at(channel), *input = input_.at(channel);
    T* sum = sum_.at(channel);
    for (std::int64_t t = 0; t < steps; ++t, b += b_stride, c += c_stride) {
      const V d = simd::load(delta + t * kLanes), x = simd::load(input + t * kLanes);
      V y = simd::load(sum + t * kLanes);
#pragma GCC unroll 16
      for (int j = 0; j < kStates; ++j) {
        state[j] = simd::exp2_nonpositive(d * rate[j]) * state[j] + x * b[j];
        y += state[j] * c[j];
      }
      simd::store(y, sum + t * kLanes);
    }
    if (!behind_) return;
#pragma GCC unroll 16
    for (int j = 0; j < kStates; ++j) simd::store(state[j], behind_ + state_at + j * in_.D, count);
  }

  void gate() {
    for (std::int64_t t = 0; t < steps_; ++t) {
      for (std::int64_t i = 0; i < channels_; i += kLanes) {
        const std::int64_t d = first_channel_ + i, count = channels_ - i;
        const V z = simd::load(in_.z[row(t)] + d, count);
        simd::store(simd::load(sum_.at(i, t)) * (z * simd::sigmoid(z)), y_[row(t)] + d, count);
      }
    }
  }

  const Operands<T>& in_;
  const Rows<T> y_;
  const std::int64_t first_row_, first_channel_, channels_;
  const T* rates_;
  T* states_;
  T* final_state_ = nullptr;

  // The chunk at hand.
  std::int64_t begin_ = 0, steps_ = 0;
  const T* before_ = nullptr;  // the states before it
  T* behind_ = nullptr;        // where those behind it go; null: nowhere
  Staged<T> decay_delta_;      // the step size where it makes the decay
  Staged<T> input_;            // delta * u
  Staged<T> sum_;              // y before the gate
};

template <class T>
void forward_as(CpuExec& cpu, const ForwardArgs<SelectiveScan>& args) {
  const Operands<T> in(args.in);
  T* rates = ScratchReader(args.scratch).take<T>(decay_rates_size<T>(in.D, in.N));
  decay_rates(cpu, args.in.a_log, rates);
  cpu.parallel_for(in.B * in.blocks, [&](std::int64_t tile) {
    ForwardTile<T>(in, args, rates, tile / in.blocks, tile % in.blocks).run();
  });
}

}  // namespace

void SelectiveScan::forward(CpuExec& cpu, const ForwardArgs<SelectiveScan>& args) {
  visit_float(args.in.u.dtype, [&]<class T>() { forward_as<T>(cpu, args); });
}

}  // namespace jiboia
