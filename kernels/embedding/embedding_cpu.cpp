#include <algorithm>

#include "kernels/cpu_tiles.h"
#include "kernels/embedding/embedding.h"

namespace jiboia {
namespace {

template <class T>
void forward_as(CpuExec& cpu, const ForwardArgs<Embedding>& args) {
  const std::int64_t E = args.out.x.columns();
  const auto* tokens = args.in.tokens.as<std::int32_t>();
  const T* weight = args.in.weight.as<T>();
  T* x = args.out.x.as<T>();
  parallel_ranges(cpu, args.in.tokens.size(), 64, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) std::copy_n(weight + tokens[i] * E, E, x + i * E);
  });
}

// A tile owns some columns of the table and walks all positions in order, so that repeated tokens
// add up in a fixed order without atomics.
template <class T>
void backward_as(CpuExec& cpu, const BackwardArgs<Embedding>& args) {
  const Grad& grad = args.grad_in.weight;
  if (!grad) return;
  const std::int64_t E = grad.columns(), V = grad.rows(), positions = args.in.tokens.size();
  const auto* tokens = args.in.tokens.as<std::int32_t>();
  const T* grad_x = args.grad_out.x.as<T>();
  T* to = grad.as<T>();
  parallel_ranges(cpu, E, 64, [&](std::int64_t begin, std::int64_t end) {
    if (grad.mode == GradMode::kOverwrite) {
      for (std::int64_t v = 0; v < V; ++v) std::fill(to + v * E + begin, to + v * E + end, T(0));
    }
    for (std::int64_t i = 0; i < positions; ++i) {
      T* row = to + tokens[i] * E;
      for (std::int64_t e = begin; e < end; ++e) row[e] += grad_x[i * E + e];
    }
  });
}

}  // namespace

void Embedding::forward(CpuExec& cpu, const ForwardArgs<Embedding>& args) {
  visit_float(args.in.weight.dtype, [&]<class T>() { forward_as<T>(cpu, args); });
}

void Embedding::backward(CpuExec& cpu, const BackwardArgs<Embedding>& args) {
  visit_float(args.grad_out.x.dtype, [&]<class T>() { backward_as<T>(cpu, args); });
}

}  // namespace jiboia
