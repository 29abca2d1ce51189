#include "kernels/global_norm/global_norm.h"

#include "core/check.h"
#include "core/op.h"
#include "kernels/global_norm/global_norm_levels.h"

namespace jiboia {

NormLevels::NormLevels(std::int64_t n) {
  std::int64_t count = n;
  do {
    count = ceil_div(count, kNormBlock);
    counts[static_cast<std::size_t>(levels++)] = count;
  } while (count > kNormBlock);
}

void require_consistent(const GlobalNorm& args) {
  const Dtype dtype = args.flat.dtype == Dtype::kF64 ? Dtype::kF64 : Dtype::kF32;
  expect("global_norm", "flat", args.flat, dtype, args.flat.shape, "(n)");
  expect("global_norm", "norm", args.norm, Dtype::kF64, {1}, "(1)");
  expect("global_norm", "first_not_finite", args.first_not_finite, Dtype::kI64, {1}, "(1)");
}

std::int64_t global_norm_scratch_bytes(std::int64_t n) {
  const NormLevels levels(n);
  std::size_t bytes = 0;
  for (std::int64_t count : levels.counts) bytes += ScratchReader::padded_bytes<double>(count);
  return static_cast<std::int64_t>(bytes);
}

}  // namespace jiboia
