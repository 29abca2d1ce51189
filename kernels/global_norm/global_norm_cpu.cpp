#include <cmath>
#include <vector>

#include "kernels/cpu_tiles.h"
#include "kernels/global_norm/global_norm.h"

namespace jiboia {
namespace {

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

}  // namespace

double tree_sum(std::span<const double> values) {
  if (values.empty()) return 0;
  if (values.size() == 1) return values[0];
  const std::size_t half = values.size() / 2;
  return tree_sum(values.first(half)) + tree_sum(values.subspan(half));
}

double global_norm(CpuExec& cpu, const Tensor& flat) {
  const std::int64_t blocks = ceil_div(flat.size(), kNormBlock);
  std::vector<double> partials(static_cast<std::size_t>(blocks));
  visit_float(flat.dtype, [&]<class T>() {
    const T* x = flat.as<T>();
    cpu.parallel_for(blocks, [&](std::int64_t block) {
      const std::int64_t begin = block * kNormBlock;
      partials[static_cast<std::size_t>(block)] =
          sum_of_squares(x + begin, std::min(kNormBlock, flat.size() - begin));
    });
  });
  return std::sqrt(tree_sum(partials));
}

}  // namespace jiboia
