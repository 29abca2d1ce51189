#pragma once
#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "core/exec.h"
#include "core/op.h"
#include "kernels/simd.h"

/// How CPU ops cut their work: by shape alone, so that results do not depend on threads.
namespace jiboia {

/// Calls range(begin, end) for consecutive runs of at most `grain` items, in parallel.
template <class Range>
void parallel_ranges(CpuExec& cpu, std::int64_t items, std::int64_t grain, Range range) {
  cpu.parallel_for(ceil_div(items, grain), [&](std::int64_t tile) {
    range(tile * grain, std::min(items, (tile + 1) * grain));
  });
}

/// The rows of a tensor, which may be a slice of columns: rows[i] is the start of row i.
template <class T>
struct Rows {
  explicit Rows(const Tensor& tensor)
      : data(tensor ? tensor.as<std::remove_const_t<T>>() : nullptr), stride(tensor.row_stride) {}
  T* operator[](std::int64_t row) const { return data + row * stride; }

  T* data;  ///< null when the tensor is absent
  std::int64_t stride;
};

/// Writes or adds a value to an element of a gradient.
template <class T>
void put(GradMode mode, T& element, T value) {
  element = mode == GradMode::kAdd ? element + value : value;
}

/// Writes or adds the first `count` lanes.
template <class T>
void put(GradMode mode, T* to, simd::Vec<T> value, std::int64_t count = simd::kLanes<T>) {
  if (mode == GradMode::kAdd) value += simd::load(to, count);
  simd::store(value, to, count);
}

/// Second half of a sum over tiles: grad[i] gets partials[0][i] + partials[1][i] + ..., in that
/// order. `partials` is (tiles, grad.size()).
template <class T>
void sum_partials(CpuExec& cpu, const T* partials, std::int64_t tiles, const Grad& grad) {
  if (!grad) return;
  const std::int64_t width = grad.size();
  T* to = grad.as<T>();
  parallel_ranges(cpu, width, 1024, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; i += simd::kLanes<T>) {
      const std::int64_t count = std::min(simd::kLanes<T>, end - i);
      simd::Vec<T> sum = T(0);
      for (std::int64_t tile = 0; tile < tiles; ++tile) {
        sum += simd::load(partials + tile * width + i, count);
      }
      put(grad.mode, to + i, sum, count);
    }
  });
}

}  // namespace jiboia
