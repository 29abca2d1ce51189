#include "core/half.h"
#include "kernels/convert/convert.h"
#include "kernels/cpu_tiles.h"

namespace jiboia {

void convert(CpuExec& cpu, const Tensor& from, const Tensor& to) {
  require_convertible(from, to);
  const float* source = from.as<float>();
  auto* target = static_cast<std::uint16_t*>(to.data);
  parallel_ranges(cpu, from.size(), 1 << 14, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) target[i] = bf16_from_float(source[i]);
  });
}

}  // namespace jiboia
