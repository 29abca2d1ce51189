#include <cmath>

#include "kernels/add_rms_norm/add_rms_norm.h"
#include "kernels/cpu_tiles.h"

namespace jiboia {
namespace {

constexpr std::int64_t kTileRows = 64;

template <class T>
void forward_row(const T* residual, const T* update, const T* weight, double eps, std::int64_t E,
                 T* sum, T* normed, T* rstd) {
  using V = simd::Vec<T>;
  V squares = T(0);
  for (std::int64_t i = 0; i < E; i += simd::kLanes<T>) {
    V x = simd::load(residual + i, E - i);
    if (update) {
      x += simd::load(update + i, E - i);
      simd::store(x, sum + i, E - i);
    }
    squares += x * x;
  }
  *rstd = T(1) / std::sqrt(simd::stdx::reduce(squares) / T(E) + T(eps));
  const T* x = update ? sum : residual;
  for (std::int64_t i = 0; i < E; i += simd::kLanes<T>) {
    simd::store(simd::load(weight + i, E - i) * (simd::load(x + i, E - i) * *rstd), normed + i,
                E - i);
  }
}

template <class T>
void forward_as(CpuExec& cpu, const ForwardArgs<AddRmsNorm>& args) {
  const auto& [in, out, attrs, scratch] = args;
  const std::int64_t E = in.residual.columns();
  const T *residual = in.residual.as<T>(), *weight = in.weight.as<T>();
  const T* update = in.update ? in.update.as<T>() : nullptr;
  T *sum = in.update ? out.sum.as<T>() : nullptr, *normed = out.normed.as<T>();
  T* rstd = out.rstd.as<T>();
  parallel_ranges(cpu, in.residual.rows(), kTileRows, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) {
      const std::int64_t at = row * E;
      forward_row(residual + at, update ? update + at : nullptr, weight, args.attrs.eps, E,
                  update ? sum + at : nullptr, normed + at, rstd + row);
    }
  });
}

template <class T>
void backward_as(CpuExec& cpu, const BackwardArgs<AddRmsNorm>& args) {
  using V = simd::Vec<T>;
  const Tensor& value = args.in.update ? args.out.sum : args.in.residual;
  const std::int64_t E = value.columns(), rows = value.rows();
  const T *x = value.as<T>(), *weight = args.in.weight.as<T>(), *rstd = args.out.rstd.as<T>();
  const T* grad_sum = args.grad_out.sum ? args.grad_out.sum.as<T>() : nullptr;
  const T* grad_normed = args.grad_out.normed ? args.grad_out.normed.as<T>() : nullptr;
  const Grad &grad_residual = args.grad_in.residual, &grad_update = args.grad_in.update;
  T* weight_partials = ScratchReader(args.scratch).take<T>(ceil_div(rows, kTileRows) * E);

  parallel_ranges(cpu, rows, kTileRows, [&](std::int64_t begin, std::int64_t end) {
    T* partial = weight_partials + begin / kTileRows * E;
    std::fill_n(partial, E, T(0));
    for (std::int64_t row = begin; row < end; ++row) {
      const T* xr = x + row * E;
      const T* gr = grad_normed ? grad_normed + row * E : nullptr;
      V dot = T(0);
      for (std::int64_t i = 0; gr && i < E; i += simd::kLanes<T>) {
        const V xhat = simd::load(xr + i, E - i) * rstd[row];
        const V g = simd::load(gr + i, E - i);
        dot += simd::load(weight + i, E - i) * g * xhat;
        simd::store(simd::load(partial + i, E - i) + g * xhat, partial + i, E - i);
      }
      const T mean = simd::stdx::reduce(dot) / T(E);
      for (std::int64_t i = 0; i < E; i += simd::kLanes<T>) {
        V grad = T(0);
        if (gr) {
          const V a = simd::load(weight + i, E - i) * simd::load(gr + i, E - i);
          grad = rstd[row] * (a - simd::load(xr + i, E - i) * rstd[row] * mean);
        }
        if (grad_sum) grad += simd::load(grad_sum + row * E + i, E - i);
        for (const Grad* to : {&grad_residual, &grad_update}) {
          if (*to) put(to->mode, to->as<T>() + row * E + i, grad, E - i);
        }
      }
    }
  });
  sum_partials(cpu, weight_partials, ceil_div(rows, kTileRows), args.grad_in.weight);
}

}  // namespace

std::int64_t AddRmsNorm::scratch_bytes(const CpuExec&, Pass pass, const In<Spec>& in,
                                       const Attrs&) {
  if (pass == Pass::kForward) return 0;
  return ceil_div(in.residual.rows(), kTileRows) * in.residual.columns() *
             size_of(in.residual.dtype) +
         64;
}

void AddRmsNorm::forward(CpuExec& cpu, const ForwardArgs<AddRmsNorm>& args) {
  visit_float(args.in.residual.dtype, [&]<class T>() { forward_as<T>(cpu, args); });
}

void AddRmsNorm::backward(CpuExec& cpu, const BackwardArgs<AddRmsNorm>& args) {
  visit_float(args.in.residual.dtype, [&]<class T>() { backward_as<T>(cpu, args); });
}

}  // namespace jiboia
