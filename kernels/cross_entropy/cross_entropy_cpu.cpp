#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/cpu_tiles.h"
#include "kernels/cross_entropy/cross_entropy.h"
#include "kernels/matrix.h"

namespace jiboia {
namespace {

// Logits that exist at a time: big enough for efficient products, small enough for caches.
constexpr std::int64_t kChunkBytes = std::int64_t{16} << 20;
constexpr std::int64_t kRowsPerTile = 8;

std::int64_t rows_per_chunk(std::int64_t rows, std::int64_t V, Dtype dtype) {
  const std::int64_t fitting = kChunkBytes / (V * size_of(dtype)) / 64 * 64;
  return std::min(rows, std::max<std::int64_t>(fitting, 64));
}

struct RowLoss {
  double cross_entropy, lse_squared;
};

/// Coefficients of grad_logits that all rows share.
struct GradScale {
  double per_target, per_lse;
};

/// Loss of one row of logits. With `scale`, the logits become their gradients.
template <class T>
RowLoss score_row(T* logits, std::int64_t V, std::int32_t target, const GradScale* scale) {
  using Vec = simd::Vec<T>;
  constexpr std::int64_t kLanes = simd::kLanes<T>;
  const std::int64_t whole = V / kLanes * kLanes;
  Vec largest_lanes = -std::numeric_limits<T>::infinity();
  for (std::int64_t v = 0; v < whole; v += kLanes) {
    largest_lanes = simd::stdx::max(largest_lanes, simd::load(logits + v));
  }
  T largest = simd::stdx::hmax(largest_lanes);
  for (std::int64_t v = whole; v < V; ++v) largest = std::max(largest, logits[v]);

  const bool has_target = target != kIgnoredTarget;
  const double target_logit = has_target ? static_cast<double>(logits[target]) : 0;
  Vec sums = T(0);
  for (std::int64_t v = 0; v < whole; v += kLanes) {
    const Vec e = simd::exp(simd::load(logits + v) - largest);
    sums += e;
    if (scale) simd::store(e, logits + v);
  }
  T sum = simd::stdx::reduce(sums);
  for (std::int64_t v = whole; v < V; ++v) {
    const T e = std::exp(logits[v] - largest);
    sum += e;
    if (scale) logits[v] = e;
  }
  const double lse = static_cast<double>(largest) + std::log(static_cast<double>(sum));
  if (scale) {
    const double weight = (has_target ? scale->per_target : 0) + scale->per_lse * lse;
    const T factor = static_cast<T>(weight / static_cast<double>(sum));
    for (std::int64_t v = 0; v < whole; v += kLanes) {
      simd::store(simd::load(logits + v) * factor, logits + v);
    }
    for (std::int64_t v = whole; v < V; ++v) logits[v] *= factor;
    if (has_target) logits[target] -= static_cast<T>(scale->per_target);
  }
  return {has_target ? lse - target_logit : 0, lse * lse};
}

template <class T>
void score(CpuExec& cpu, const LossArgs<CrossEntropy>& args, bool with_gradients) {
  const auto& in = args.in;
  const std::int64_t rows = in.x.rows(), V = in.weight.shape[0];
  const std::int64_t chunk_rows = rows_per_chunk(rows, V, in.x.dtype);
  const auto* targets = in.targets.as<std::int32_t>();
  ScratchReader scratch(args.scratch);
  T* logits = scratch.take<T>(chunk_rows * V);
  RowLoss* losses = scratch.take<RowLoss>(rows);

  std::int64_t target_count = 0;
  for (std::int64_t i = 0; i < rows; ++i) target_count += targets[i] != kIgnoredTarget;
  const double per_target = target_count ? 1.0 / static_cast<double>(target_count) : 0;
  const double per_row = 1.0 / static_cast<double>(rows);
  const GradScale scale{per_target, 2 * args.attrs.z_loss * per_row};

  const auto x = matrix_of<T>(in.x);
  const auto weight = matrix_of<T>(in.weight);
  for (std::int64_t begin = 0; begin < rows; begin += chunk_rows) {
    const std::int64_t count = std::min(chunk_rows, rows - begin);
    const auto chunk = x.middle_rows(begin, count);
    const Matrix<T> chunk_logits{logits, count, V, V};
    multiply(cpu, GradMode::kOverwrite, chunk_logits, chunk, weight.transpose());
    parallel_ranges(cpu, count, kRowsPerTile, [&](std::int64_t first, std::int64_t end) {
      for (std::int64_t i = first; i < end; ++i) {
        losses[begin + i] =
            score_row(logits + i * V, V, targets[begin + i], with_gradients ? &scale : nullptr);
      }
    });
    if (const Grad& grad = args.grad_in.x) {
      multiply(cpu, grad.mode, matrix_of<T>(grad).middle_rows(begin, count), chunk_logits, weight);
    }
    if (const Grad& grad = args.grad_in.weight) {
      const GradMode mode = begin == 0 ? grad.mode : GradMode::kAdd;
      multiply(cpu, mode, matrix_of<T>(grad), chunk_logits.transpose(), chunk);
    }
  }

  RowLoss sum{};
  for (std::int64_t i = 0; i < rows; ++i) {
    sum.cross_entropy += losses[i].cross_entropy;
    sum.lse_squared += losses[i].lse_squared;
  }
  const double cross_entropy = sum.cross_entropy * per_target;
  const double lse_squared = sum.lse_squared * per_row;
  *args.out.cross_entropy.as<T>() = static_cast<T>(cross_entropy);
  *args.out.lse_squared.as<T>() = static_cast<T>(lse_squared);
  *args.out.loss.as<T>() = static_cast<T>(cross_entropy + args.attrs.z_loss * lse_squared);
}

}  // namespace

std::int64_t CrossEntropy::scratch_bytes(const CpuExec&, Pass, const In<Spec>& in, const Attrs&) {
  const std::int64_t rows = in.x.rows(), V = in.weight.shape[0];
  return rows_per_chunk(rows, V, in.x.dtype) * V * size_of(in.x.dtype) +
         rows * static_cast<std::int64_t>(sizeof(RowLoss)) + 128;
}

void CrossEntropy::forward(CpuExec& cpu, const ForwardArgs<CrossEntropy>& args) {
  const LossArgs<CrossEntropy> loss_args{
      .in = args.in, .out = args.out, .attrs = args.attrs, .scratch = args.scratch};
  visit_float(args.in.x.dtype, [&]<class T>() { score<T>(cpu, loss_args, false); });
}

void CrossEntropy::forward_backward(CpuExec& cpu, const LossArgs<CrossEntropy>& args) {
  visit_float(args.in.x.dtype, [&]<class T>() { score<T>(cpu, args, true); });
}

}  // namespace jiboia
