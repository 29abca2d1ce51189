#include "kernels/selective_scan/selective_scan_cpu.h"

namespace jiboia {
namespace {

using namespace scan;

/// Working memory of the pass. Sums over channels are left per block of channels, sums over time
/// per batch row; both are added up in a fixed order at the end.
template <class T>
struct Partials {
  Partials(ScratchReader scratch, const Operands<T>& in)
      : rates(scratch.take<T>(decay_rates_size<T>(in.D, in.N))),
        gamma(scratch.take<T>(in.B * in.blocks * in.N * kBlock)),
        rate(scratch.take<T>(in.B * in.blocks * in.N * kBlock)),
        d_skip(scratch.take<T>(in.B * in.blocks * kBlock)),
        dt_bias(scratch.take<T>(in.B * in.blocks * kBlock)),
        b(scratch.take<T>(in.blocks * in.B * in.L * in.N)),
        c(scratch.take<T>(in.blocks * in.B * in.L * in.N)) {}

  static std::int64_t bytes(const SelectiveScan::In<Spec>& in) {
    const std::int64_t steps = in.u.rows(), N = in.a_log.shape[1];
    const std::int64_t blocks = ceil_div(in.u.columns(), kBlock), tiles = in.u.shape[0] * blocks;
    const auto padded = ScratchReader::padded_bytes<T>;
    return static_cast<std::int64_t>(padded(blocks * N * kBlock) + 2 * padded(tiles * N * kBlock) +
                                     2 * padded(tiles * kBlock) + 2 * padded(blocks * steps * N));
  }

  T* rates;             ///< (blocks, N, kBlock), from decay_rates()
  T* gamma;             ///< (B, blocks, N, kBlock): the gradient of the state, on its way back
  T* rate;              ///< (B, blocks, N, kBlock): of a_log, before the factor A
  T *d_skip, *dt_bias;  ///< (B, blocks, kBlock)
  T *b, *c;             ///< (blocks, B * L, N)
};

/// One batch row of one block of channels.
template <class T>
class BackwardTile {
  using V = simd::Vec<T>;
  static constexpr std::int64_t kLanes = simd::kLanes<T>;

 public:
  BackwardTile(const Operands<T>& in, const BackwardArgs<SelectiveScan>& args,
               const Partials<T>& partials, std::int64_t batch, std::int64_t block)
      : in_(in),
        grad_y_(args.grad_out.y),
        grad_u_(args.grad_in.u),
        grad_dt_(args.grad_in.dt),
        grad_z_(args.grad_in.z),
        u_mode_(args.grad_in.u.mode),
        dt_mode_(args.grad_in.dt.mode),
        z_mode_(args.grad_in.z.mode),
        first_row_(batch * in.L),
        first_channel_(block * kBlock),
        channels_(std::min(kBlock, in.D - first_channel_)),
        states_(args.out.states.as<T>() + batch * in.chunks * in.N * in.D + first_channel_),
        rates_(partials.rates + block * in.N * kBlock),
        b_partial_(partials.b + block * in.B * in.L * in.N),
        c_partial_(partials.c + block * in.B * in.L * in.N) {
    const std::int64_t tile = batch * in.blocks + block;
    gamma_ = partials.gamma + tile * in.N * kBlock;
    rate_sum_ = partials.rate + tile * in.N * kBlock;
    d_skip_sum_ = partials.d_skip + tile * kBlock;
    dt_bias_sum_ = partials.dt_bias + tile * kBlock;
    std::fill_n(gamma_, in.N * kBlock, T(0));
    std::fill_n(rate_sum_, in.N * kBlock, T(0));
    std::fill_n(d_skip_sum_, kBlock, T(0));
    std::fill_n(dt_bias_sum_, kBlock, T(0));
    if (args.grad_out.final_state) {
      const T* from = args.grad_out.final_state.as<T>() + batch * in.N * in.D + first_channel_;
      for (std::int64_t n = 0; n < in.N; ++n) {
        std::copy_n(from + n * in.D, channels_, gamma_ + n * kBlock);
      }
    }
  }

  void run() {
    for (std::int64_t chunk = in_.chunks - 1; chunk >= 0; --chunk) {
      begin_ = chunk * kChunk;
      steps_ = std::min(kChunk, in_.L - begin_);
      before_ = states_ + chunk * in_.N * in_.D;
      stage();
      for_each_group(in_.N, [&]<int kStates>(std::int64_t n) {
        std::fill_n(b_sums_, steps_ * kStates * kLanes, T(0));
        std::fill_n(c_sums_, steps_ * kStates * kLanes, T(0));
        for (std::int64_t channel = 0; channel < channels_; channel += kLanes) {
          walk<kStates>(channel, n);
        }
        add_channels<kStates>(b_sums_, b_partial_, n);
        add_channels<kStates>(c_sums_, c_partial_, n);
      });
      finish();
    }
  }

 private:
  std::int64_t row(std::int64_t t) const { return first_row_ + begin_ + t; }

  void stage() {
    for (std::int64_t t = 0; t < steps_; ++t) {
      const std::int64_t later = std::max<std::int64_t>(row(t) - kChunk, 0);
      for (std::int64_t i = 0; i < channels_; i += kLanes) {
        const std::int64_t d = first_channel_ + i, count = channels_ - i;
        // Rows are too far apart for the hardware to see what comes next.
        __builtin_prefetch(in_.u[later] + d);
        __builtin_prefetch(in_.dt[later] + d);
        __builtin_prefetch(in_.z[later] + d);
        if (grad_y_.data) __builtin_prefetch(grad_y_[later] + d);
        const V u = simd::load(in_.u[row(t)] + d, count), z = simd::load(in_.z[row(t)] + d, count);
        const V q = simd::load(in_.dt[row(t)] + d, count) + simd::load(in_.dt_bias + d, count);
        const V delta = simd::softplus(q), gate = simd::sigmoid(z);
        V g = T(0);
        if (grad_y_.data) g = simd::load(grad_y_[row(t)] + d, count);
        simd::store(delta, delta_.at(i, t));
        simd::store(decay_delta(in_, row(t), begin_ + t, delta), decay_delta_.at(i, t));
        simd::store(delta * u, input_.at(i, t));
        simd::store(g * (z * gate), grad_sum_.at(i, t));
        simd::store(g * (gate * (T(1) + z * (T(1) - gate))), grad_gate_.at(i, t));
        simd::store(simd::sigmoid(q), slope_.at(i, t));
        simd::store(simd::load(in_.d_skip + d, count) * u, sum_.at(i, t));
        simd::store(V(T(0)), gamma_b_.at(i, t));
        simd::store(V(T(0)), gamma_rate_.at(i, t));
      }
    }
  }

  /// Takes states n, n + 1, ... of one vector of channels through the chunk, then their gradients
  /// back.
  template <int kStates>
  void walk(std::int64_t channel, std::int64_t n) {
    alignas(64) T decays[kChunk * kStates * kLanes], decayed[kChunk * kStates * kLanes];
    V state[kStates], rate[kStates];
#pragma GCC unroll 16
    for (int j = 0; j < kStates; ++j) {
      state[j] = simd::load(before_ + (n + j) * in_.D + channel, channels_ - channel);
      rate[j] = simd::load(rates_ + (n + j) * kBlock + channel);
    }
    const std::int64_t steps = steps_, b_stride = in_.b.stride, c_stride = in_.c.stride;
    const T *b = in_.b[row(0)] + n, *c = in_.c[row(0)] + n;
    const T *delta = decay_delta_.at(channel), *input = input_.at(channel);
    const T* grad_sum = grad_sum_.at(channel);
    T* sum = sum_.at(channel);
    for (std::int64_t t = 0; t < steps; ++t, b += b_stride, c += c_stride) {
      const V d = simd::load(delta + t * kLanes), x = simd::load(input + t * kLanes);
      const V dy = simd::load(grad_sum + t * kLanes);
      V y = simd::load(sum + t * kLanes);
#pragma GCC unroll 16
      for (int j = 0; j < kStates; ++j) {
        const std::int64_t at = (t * kStates + j) * kLanes;
        const V decay = simd::exp2_nonpositive(d * rate[j]);
        simd::store(decay, decays + at);
        state[j] *= decay;
        simd::store(state[j], decayed + at);
        state[j] += x * b[j];
        y += state[j] * c[j];
        simd::store(simd::load(c_sums_ + at) + dy * state[j], c_sums_ + at);
      }
      simd::store(y, sum + t * kLanes);
    }

    V gamma[kStates], rate_sum[kStates];
#pragma GCC unroll 16
    for (int j = 0; j < kStates; ++j) {
      gamma[j] = simd::load(gamma_ + (n + j) * kBlock + channel);
      rate_sum[j] = simd::load(rate_sum_ + (n + j) * kBlock + channel);
    }
    T *gamma_b = gamma_b_.at(channel), *gamma_rate = gamma_rate_.at(channel);
    for (std::int64_t t = steps - 1; t >= 0; --t) {
      b -= b_stride;
      c -= c_stride;
      const V d = simd::load(delta + t * kLanes), x = simd::load(input + t * kLanes);
      const V dy = simd::load(grad_sum + t * kLanes);
      V to_b = simd::load(gamma_b + t * kLanes), to_rate = simd::load(gamma_rate + t * kLanes);
#pragma GCC unroll 16
      for (int j = 0; j < kStates; ++j) {
        const std::int64_t at = (t * kStates + j) * kLanes;
        const V g = gamma[j] + dy * c[j];
        const V g_decayed = g * simd::load(decayed + at);
        to_b += g * b[j];
        to_rate += g_decayed * rate[j];
        rate_sum[j] += g_decayed * d;
        gamma[j] = g * simd::load(decays + at);
        simd::store(simd::load(b_sums_ + at) + g * x, b_sums_ + at);
      }
      simd::store(to_b, gamma_b + t * kLanes);
      simd::store(to_rate, gamma_rate + t * kLanes);
    }
#pragma GCC unroll 16
    for (int j = 0; j < kStates; ++j) {
      simd::store(gamma[j], gamma_ + (n + j) * kBlock + channel);
      simd::store(rate_sum[j], rate_sum_ + (n + j) * kBlock + channel);
    }
  }

  /// Adds up the lanes of `sums` (steps, kStates) into states n, n + 1, ... of `partial`.
  template <int kStates>
  void add_channels(const T* sums, T* partial, std::int64_t n) {
    static_assert(kChunk * kStates % kLanes == 0);
    T added[kChunk * kStates];
    for (std::int64_t i = 0; i < steps_ * kStates; i += kLanes) {
      simd::store(simd::sums_of_rows(sums + i * kLanes), added + i);
    }
    for (std::int64_t t = 0; t < steps_; ++t) {
      std::copy_n(added + t * kStates, kStates, partial + row(t) * in_.N + n);
    }
  }

  void finish() {
    for (std::int64_t i = 0; i < channels_; i += kLanes) {
      const std::int64_t d = first_channel_ + i, count = channels_ - i;
      const V d_skip = simd::load(in_.d_skip + d, count);
      V d_skip_sum = simd::load(d_skip_sum_ + i), dt_bias_sum = simd::load(dt_bias_sum_ + i);
      for (std::int64_t t = steps_ - 1; t >= 0; --t) {
        const V u = simd::load(in_.u[row(t)] + d, count);
        const V grad_sum = simd::load(grad_sum_.at(i, t)), to_b = simd::load(gamma_b_.at(i, t));
        const V grad_delta = u * to_b + simd::load(gamma_rate_.at(i, t)) * T(0.6931471805599453);
        const V grad_dt = grad_delta * simd::load(slope_.at(i, t));
        d_skip_sum += grad_sum * u;
        dt_bias_sum += grad_dt;
        if (grad_u_.data) {
          put(u_mode_, grad_u_[row(t)] + d, d_skip * grad_sum + simd::load(delta_.at(i, t)) * to_b,
              count);
        }
        if (grad_dt_.data) put(dt_mode_, grad_dt_[row(t)] + d, grad_dt, count);
        if (grad_z_.data) {
          put(z_mode_, grad_z_[row(t)] + d,
              simd::load(grad_gate_.at(i, t)) * simd::load(sum_.at(i, t)), count);
        }
      }
      simd::store(d_skip_sum, d_skip_sum_ + i);
      simd::store(dt_bias_sum, dt_bias_sum_ + i);
    }
  }

  const Operands<T>& in_;
  const Rows<const T> grad_y_;
  const Rows<T> grad_u_, grad_dt_, grad_z_;
  const GradMode u_mode_, dt_mode_, z_mode_;
  const std::int64_t first_row_, first_channel_, channels_;
  const T *states_, *rates_;
  T *b_partial_, *c_partial_;
  T *gamma_, *rate_sum_, *d_skip_sum_, *dt_bias_sum_;  // of this tile

  // The chunk at hand.
  std::int64_t begin_ = 0, steps_ = 0;
  const T* before_ = nullptr;       // the states before it
  Staged<T> delta_, decay_delta_;   // the step size, and where it makes the decay
  Staged<T> input_;                 // delta * u
  Staged<T> sum_;                   // y before the gate
  Staged<T> grad_sum_, grad_gate_;  // the gradients of that sum, and of z but for the sum
  Staged<T> slope_;                 // softplus' of dt + dt_bias
  Staged<T> gamma_b_, gamma_rate_;  // sums over states of gamma * b, gamma * rate * decayed h
  alignas(64) T b_sums_[kChunk * kGroup * kLanes];  // sums over the vectors of channels, by step
  alignas(64) T c_sums_[kChunk * kGroup * kLanes];  // and state of the group
};

/// grad (B, L, N), perhaps a slice of columns, gets the sum over blocks of `partials`.
template <class T>
void sum_blocks(CpuExec& cpu, const T* partials, std::int64_t blocks, const Grad& grad) {
  if (!grad) return;
  const std::int64_t N = grad.columns(), rows = grad.rows();
  const Rows<T> to(grad);
  parallel_ranges(cpu, rows, 64, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) {
      for (std::int64_t n = 0; n < N; n += simd::kLanes<T>) {
        simd::Vec<T> sum = T(0);
        for (std::int64_t block = 0; block < blocks; ++block) {
          sum += simd::load(partials + (block * rows + row) * N + n, N - n);
        }
        put(grad.mode, to[row] + n, sum, N - n);
      }
    }
  });
}

/// grad (D) gets the sum over batch rows of `partials` (B, blocks, kBlock).
template <class T>
void sum_batch(const Operands<T>& in, const T* partials, const Grad& grad) {
  if (!grad) return;
  T* to = grad.as<T>();
  for (std::int64_t d = 0; d < in.D; ++d) {
    T sum = 0;
    for (std::int64_t batch = 0; batch < in.B; ++batch) {
      sum += partials[batch * in.blocks * kBlock + d];
    }
    put(grad.mode, to[d], sum);
  }
}

/// grad_a_log (D, N) gets A times the sum over batch rows of the partials.
template <class T>
void sum_rates(CpuExec& cpu, const Operands<T>& in, const Partials<T>& partials, const Grad& grad) {
  if (!grad) return;
  T* to = grad.as<T>();
  const std::int64_t size = in.N * kBlock;
  cpu.parallel_for(in.blocks, [&](std::int64_t block) {
    const T *rates = partials.rates + block * size, *sums = partials.rate + block * size;
    for (std::int64_t i = 0; i < size; ++i) {
      const std::int64_t n = i / kBlock, d = block * kBlock + i % kBlock;
      if (d >= in.D) continue;
      T sum = 0;
      for (std::int64_t batch = 0; batch < in.B; ++batch) sum += sums[batch * in.blocks * size + i];
      put(grad.mode, to[d * in.N + n], rates[i] * T(0.6931471805599453) * sum);
    }
  });
}

template <class T>
void backward_as(CpuExec& cpu, const BackwardArgs<SelectiveScan>& args) {
  const Operands<T> in(args.in);
  const Partials<T> partials(ScratchReader(args.scratch), in);
  decay_rates(cpu, args.in.a_log, partials.rates);
  cpu.parallel_for(in.B * in.blocks, [&](std::int64_t tile) {
    BackwardTile<T>(in, args, partials, tile / in.blocks, tile % in.blocks).run();
  });
  sum_blocks(cpu, partials.b, in.blocks, args.grad_in.b);
  sum_blocks(cpu, partials.c, in.blocks, args.grad_in.c);
  sum_batch(in, partials.d_skip, args.grad_in.d_skip);
  sum_batch(in, partials.dt_bias, args.grad_in.dt_bias);
  sum_rates(cpu, in, partials, args.grad_in.a_log);
}

}  // namespace

std::int64_t SelectiveScan::scratch_bytes(const CpuExec&, Pass pass, const In<Spec>& in,
                                          const Attrs&) {
  return visit_float(in.u.dtype, [&]<class T>() {
    if (pass == Pass::kBackward) return Partials<T>::bytes(in);
    return static_cast<std::int64_t>(
        ScratchReader::padded_bytes<T>(decay_rates_size<T>(in.u.columns(), in.a_log.columns())));
  });
}

void SelectiveScan::backward(CpuExec& cpu, const BackwardArgs<SelectiveScan>& args) {
  visit_float(args.in.u.dtype, [&]<class T>() { backward_as<T>(cpu, args); });
}

}  // namespace jiboia
