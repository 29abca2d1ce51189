#include <cmath>

#include "kernels/cpu_tiles.h"
#include "kernels/global_norm/global_norm.h"
#include "kernels/global_norm/global_norm_levels.h"

namespace jiboia {
namespace {

/// Sum of numbers, halves added first.
double tree_sum(std::span<const double> values) {
  if (values.empty()) return 0;
  if (values.size() == 1) return values[0];
  const std::size_t half = values.size() / 2;
  return tree_sum(values.first(half)) + tree_sum(values.subspan(half));
}

template <class T>
double sum_of_squares(const T* x, std::int64_t count) {
  // Eight running sums, so that the loop is not one chain of additions.
  double sums[8] = {};
  std::int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    for (int k = 0; k < 8; ++k) {
      const double value = static_cast<double>(x[i + k]);
      sums[k] += value * value;
    }
  }
  for (; i < count; ++i) sums[i % 8] += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  return tree_sum(sums);
}

/// A block's sum may overflow where each element is finite, so the elements decide.
template <class T>
std::int64_t first_not_finite(const T* x, std::int64_t size, std::span<const double> partials) {
  for (std::size_t block = 0; block < partials.size(); ++block) {
    if (std::isfinite(partials[block])) continue;
    const std::int64_t begin = static_cast<std::int64_t>(block) * kNormBlock;
    const T* end = x + std::min(size, begin + kNormBlock);
    const T* found = std::find_if(x + begin, end, [](T value) { return !std::isfinite(value); });
    if (found != end) return found - x;
  }
  return -1;
}

template <class T>
void norm_as(CpuExec& cpu, const GlobalNorm& args, std::span<std::byte> scratch) {
  const T* x = args.flat.as<T>();
  const std::int64_t size = args.flat.size(), blocks = ceil_div(size, kNormBlock);
  const std::span<double> partials(ScratchReader(scratch).take<double>(blocks),
                                   static_cast<std::size_t>(blocks));
  cpu.parallel_for(blocks, [&](std::int64_t block) {
    const std::int64_t begin = block * kNormBlock;
    partials[static_cast<std::size_t>(block)] =
        sum_of_squares(x + begin, std::min(kNormBlock, size - begin));
  });
  const double norm = std::sqrt(tree_sum(partials));
  *args.norm.as<double>() = norm;
  *args.first_not_finite.as<std::int64_t>() =
      std::isfinite(norm) ? -1 : first_not_finite(x, size, partials);
}

}  // namespace

void global_norm(CpuExec& cpu, const GlobalNorm& args, std::span<std::byte> scratch) {
  require_consistent(args);
  visit_float(args.flat.dtype, [&]<class T>() { norm_as<T>(cpu, args, scratch); });
}

}  // namespace jiboia
