#include <algorithm>

#include "kernels/cpu_tiles.h"
#include "kernels/linear/linear.h"
#include "kernels/matrix.h"

namespace jiboia {
namespace {

constexpr std::int64_t kBiasTileRows = 256;

template <class T>
void forward_as(CpuExec& cpu, const ForwardArgs<Linear>& args) {
  multiply(cpu, GradMode::kOverwrite, matrix_of<T>(args.out.y), matrix_of<T>(args.in.x),
           matrix_of<T>(args.in.weight).transpose());
  if (!args.in.bias) return;
  const std::int64_t M = args.out.y.columns();
  const T* bias = args.in.bias.as<T>();
  T* y = args.out.y.as<T>();
  parallel_ranges(cpu, args.out.y.rows(), kBiasTileRows, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) {
      for (std::int64_t i = 0; i < M; ++i) y[row * M + i] += bias[i];
    }
  });
}

template <class T>
void backward_as(CpuExec& cpu, const BackwardArgs<Linear>& args) {
  const auto grad_y = matrix_of<T>(args.grad_out.y);
  if (const Grad& grad = args.grad_in.x) {
    multiply(cpu, grad.mode, matrix_of<T>(grad), grad_y, matrix_of<T>(args.in.weight));
  }
  if (const Grad& grad = args.grad_in.weight) {
    multiply(cpu, grad.mode, matrix_of<T>(grad), grad_y.transpose(), matrix_of<T>(args.in.x));
  }
  if (const Grad& grad = args.grad_in.bias) {
    const std::int64_t M = grad.size(), rows = args.grad_out.y.rows();
    const std::int64_t tiles = ceil_div(rows, kBiasTileRows);
    T* partials = ScratchReader(args.scratch).take<T>(tiles * M);
    const T* from = args.grad_out.y.as<T>();
    cpu.parallel_for(tiles, [&](std::int64_t tile) {
      T* partial = partials + tile * M;
      std::fill_n(partial, M, T(0));
      const std::int64_t end = std::min(rows, (tile + 1) * kBiasTileRows);
      for (std::int64_t row = tile * kBiasTileRows; row < end; ++row) {
        for (std::int64_t i = 0; i < M; ++i) partial[i] += from[row * M + i];
      }
    });
    sum_partials(cpu, partials, tiles, grad);
  }
}

}  // namespace

std::int64_t Linear::scratch_bytes(const CpuExec&, Pass pass, const In<Spec>& in, const Attrs&) {
  if (pass == Pass::kForward || !in.bias) return 0;
  return ceil_div(in.x.rows(), kBiasTileRows) * in.bias.bytes() + 64;
}

void Linear::forward(CpuExec& cpu, const ForwardArgs<Linear>& args) {
  visit_float(args.in.x.dtype, [&]<class T>() { forward_as<T>(cpu, args); });
}

void Linear::backward(CpuExec& cpu, const BackwardArgs<Linear>& args) {
  visit_float(args.in.x.dtype, [&]<class T>() { backward_as<T>(cpu, args); });
}

}  // namespace jiboia
