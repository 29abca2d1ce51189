#include "kernels/causal_conv1d/causal_conv1d.h"
#include "kernels/cpu_tiles.h"

namespace jiboia {
namespace {

// Forward tiles are runs of steps. A backward tile is a block of channels of one batch row, walked
// from its end in runs of steps.
constexpr std::int64_t kSteps = 32;
constexpr std::int64_t kBlock = 64;

template <class T>
struct Operands {
  explicit Operands(const CausalConv1d::In<>& in)
      : x(in.x),
        bias(in.bias ? in.bias.as<T>() : nullptr),
        document_start(in.document_start ? in.document_start.as<std::int32_t>() : nullptr),
        history(in.history ? in.history.as<T>() : nullptr),
        B(in.x.shape[0]),
        L(in.x.shape[1]),
        D(in.x.shape[2]),
        W(in.weight.shape[1]) {}

  /// The first tap that counts at step `t`: those before it reach back too far.
  std::int64_t first_tap(std::int64_t batch, std::int64_t t) const {
    const std::int64_t start = document_start ? document_start[batch * L + t] : 0;
    const std::int64_t earliest = start == 0 && history ? 1 - W : start;
    return std::max<std::int64_t>(0, earliest - (t - W + 1));
  }
  /// What tap `k` reads at step `t`.
  const T* tap(std::int64_t batch, std::int64_t t, std::int64_t k) const {
    const std::int64_t step = t - W + 1 + k;
    return step >= 0 ? x[batch * L + step] : history + (batch * (W - 1) + W - 1 + step) * D;
  }
  /// s of channels d, d + 1, ... at step `t`; `weights` is (W, D).
  simd::Vec<T> convolve(const T* weights, std::int64_t batch, std::int64_t t, std::int64_t first,
                        std::int64_t d, std::int64_t count) const {
    simd::Vec<T> s = T(0);
    if (bias) s = simd::load(bias + d, count);
    for (std::int64_t k = first; k < W; ++k) {
      s += simd::load(weights + k * D + d, count) * simd::load(tap(batch, t, k) + d, count);
    }
    return s;
  }

  Rows<const T> x;
  const T* bias;
  const std::int32_t* document_start;
  const T* history;
  std::int64_t B, L, D, W;
};

/// weight (D, W) as (W, D), so that channels are neighbours.
template <class T>
void transpose(const T* weight, std::int64_t D, std::int64_t W, T* to) {
  for (std::int64_t d = 0; d < D; ++d) {
    for (std::int64_t k = 0; k < W; ++k) to[k * D + d] = weight[d * W + k];
  }
}

template <class T>
void forward_as(CpuExec& cpu, const ForwardArgs<CausalConv1d>& args) {
  const Operands<T> in(args.in);
  T* weights = ScratchReader(args.scratch).take<T>(in.W * in.D);
  transpose(args.in.weight.as<T>(), in.D, in.W, weights);
  T* u = args.out.u.as<T>();
  parallel_ranges(cpu, in.B * in.L, kSteps, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) {
      const std::int64_t batch = row / in.L, t = row % in.L, first = in.first_tap(batch, t);
      for (std::int64_t d = 0; d < in.D; d += simd::kLanes<T>) {
        const simd::Vec<T> s = in.convolve(weights, batch, t, first, d, in.D - d);
        simd::store(s * simd::sigmoid(s), u + row * in.D + d, in.D - d);
      }
    }
  });
}

/// Working memory of backward.
template <class T>
struct Partials {
  Partials(ScratchReader scratch, std::int64_t B, std::int64_t D, std::int64_t W)
      : weights(scratch.take<T>(W * D)),
        grad_sums(scratch.take<T>(B * ceil_div(D, kBlock) * (kSteps + W - 1) * kBlock)),
        weight(scratch.take<T>(B * W * D)),
        bias(scratch.take<T>(B * D)) {}

  static std::int64_t bytes(std::int64_t B, std::int64_t D, std::int64_t W) {
    const auto padded = ScratchReader::padded_bytes<T>;
    return static_cast<std::int64_t>(padded(W * D) +
                                     padded(B * ceil_div(D, kBlock) * (kSteps + W - 1) * kBlock) +
                                     padded(B * W * D) + padded(B * D));
  }

  T* weights;        ///< (W, D)
  T* grad_sums;      ///< (B, blocks, kSteps + W - 1, kBlock)
  T *weight, *bias;  ///< (B, W, D), (B, D)
};

/// One batch row of one block of channels.
template <class T>
class BackwardTile {
  using V = simd::Vec<T>;
  static constexpr std::int64_t kLanes = simd::kLanes<T>;

 public:
  BackwardTile(const Operands<T>& in, const BackwardArgs<CausalConv1d>& args,
               const Partials<T>& partials, std::int64_t batch, std::int64_t block)
      : in_(in),
        grad_u_(args.grad_out.u),
        grad_x_(args.grad_in.x),
        mode_(args.grad_in.x.mode),
        batch_(batch),
        first_channel_(block * kBlock),
        channels_(std::min(kBlock, in.D - first_channel_)),
        weights_(partials.weights),
        grad_sums_(partials.grad_sums +
                   (batch * ceil_div(in.D, kBlock) + block) * (kSteps + in.W - 1) * kBlock),
        weight_sums_(partials.weight + batch * in.W * in.D + first_channel_),
        bias_sums_(partials.bias + batch * in.D + first_channel_) {
    for (std::int64_t k = 0; k < in.W; ++k) std::fill_n(weight_sums_ + k * in.D, channels_, T(0));
    std::fill_n(bias_sums_, channels_, T(0));
  }

  void run() {
    for (begin_ = (ceil_div(in_.L, kSteps) - 1) * kSteps; begin_ >= 0; begin_ -= kSteps) {
      end_ = std::min(in_.L, begin_ + kSteps);
      for (std::int64_t channel = 0; channel < channels_; channel += kLanes) {
        differentiate(channel);
        put_grad_x(channel);
        add_to_weights(channel);
      }
      // The earliest of these steps are the later ones of the next run.
      std::copy_backward(grad_sums_, grad_sums_ + (in_.W - 1) * kBlock,
                         grad_sums_ + (kSteps + in_.W - 1) * kBlock);
    }
  }

 private:
  /// The gradient of s at step `t`, of the run or one of the W - 1 steps behind it.
  T* grad_sum(std::int64_t t, std::int64_t channel) {
    return grad_sums_ + (t - begin_) * kBlock + channel;
  }

  /// Fills the run's grad_sum().
  void differentiate(std::int64_t channel) {
    const std::int64_t d = first_channel_ + channel, count = channels_ - channel;
    V bias_sum = simd::load(bias_sums_ + channel, count);
    for (std::int64_t t = end_ - 1; t >= begin_; --t) {
      const V s = in_.convolve(weights_, batch_, t, in_.first_tap(batch_, t), d, count);
      const V gate = simd::sigmoid(s);
      V grad = T(0);
      if (grad_u_.data) grad = simd::load(grad_u_[batch_ * in_.L + t] + d, count);
      grad *= gate * (T(1) + s * (T(1) - gate));
      bias_sum += grad;
      simd::store(grad, grad_sum(t, channel));
    }
    simd::store(bias_sum, bias_sums_ + channel, count);
  }

  void put_grad_x(std::int64_t channel) {
    if (!grad_x_.data) return;
    const std::int64_t d = first_channel_ + channel, count = channels_ - channel;
    for (std::int64_t t = begin_; t < end_; ++t) {
      V grad = T(0);
      for (std::int64_t k = in_.W - 1, reader = t; k >= 0 && reader < in_.L; --k, ++reader) {
        if (k < in_.first_tap(batch_, reader)) continue;
        grad += simd::load(weights_ + k * in_.D + d, count) * simd::load(grad_sum(reader, channel));
      }
      put(mode_, grad_x_[batch_ * in_.L + t] + d, grad, count);
    }
  }

  void add_to_weights(std::int64_t channel) {
    const std::int64_t d = first_channel_ + channel, count = channels_ - channel;
    for (std::int64_t k = 0; k < in_.W; ++k) {
      V sum = simd::load(weight_sums_ + k * in_.D + channel, count);
      for (std::int64_t t = end_ - 1; t >= begin_; --t) {
        if (k < in_.first_tap(batch_, t)) continue;
        sum += simd::load(grad_sum(t, channel)) * simd::load(in_.tap(batch_, t, k) + d, count);
      }
      simd::store(sum, weight_sums_ + k * in_.D + channel, count);
    }
  }

  const Operands<T>& in_;
  const Rows<const T> grad_u_;
  const Rows<T> grad_x_;
  const GradMode mode_;
  const std::int64_t batch_, first_channel_, channels_;
  const T* weights_;
  T *grad_sums_, *weight_sums_, *bias_sums_;
  std::int64_t begin_ = 0, end_ = 0;  // the run of steps at hand
};

template <class T>
void backward_as(CpuExec& cpu, const BackwardArgs<CausalConv1d>& args) {
  const Operands<T> in(args.in);
  const std::int64_t D = in.D, W = in.W, blocks = ceil_div(D, kBlock);
  const Partials<T> partials(ScratchReader(args.scratch), in.B, D, W);
  transpose(args.in.weight.as<T>(), D, W, partials.weights);
  cpu.parallel_for(in.B * blocks, [&](std::int64_t tile) {
    BackwardTile<T>(in, args, partials, tile / blocks, tile % blocks).run();
  });
  sum_partials(cpu, partials.bias, in.B, args.grad_in.bias);
  if (const Grad& grad = args.grad_in.weight; grad) {
    for (std::int64_t i = 0; i < D * W; ++i) {
      T sum = 0;
      for (std::int64_t batch = 0; batch < in.B; ++batch) {
        sum += partials.weight[(batch * W + i % W) * D + i / W];
      }
      put(grad.mode, grad.as<T>()[i], sum);
    }
  }
}

}  // namespace

std::int64_t CausalConv1d::scratch_bytes(const CpuExec&, Pass pass, const In<Spec>& in,
                                         const Attrs&) {
  return visit_float(in.x.dtype, [&]<class T>() {
    const std::int64_t B = in.x.shape[0], D = in.x.shape[2], W = in.weight.shape[1];
    if (pass == Pass::kBackward) return Partials<T>::bytes(B, D, W);
    return static_cast<std::int64_t>(ScratchReader::padded_bytes<T>(W * D));
  });
}

void CausalConv1d::forward(CpuExec& cpu, const ForwardArgs<CausalConv1d>& args) {
  visit_float(args.in.x.dtype, [&]<class T>() { forward_as<T>(cpu, args); });
}

void CausalConv1d::backward(CpuExec& cpu, const BackwardArgs<CausalConv1d>& args) {
  visit_float(args.in.x.dtype, [&]<class T>() { backward_as<T>(cpu, args); });
}

}  // namespace jiboia
