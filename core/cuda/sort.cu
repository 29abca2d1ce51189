#include <algorithm>
#include <bit>
#include <cub/device/device_radix_sort.cuh>
#include <limits>

#include "core/cuda/check.cuh"
#include "core/cuda/sort.h"
#include "core/error.h"

namespace jiboia::cuda {
namespace {

// Radix sort goes digit by digit and keeps the order within a digit, so equal keys stay in order
// and every run gives the same result. Keys are not negative: as unsigned numbers they sort alike,
// without a step for the sign.
cudaError_t sort(void* scratch, std::size_t& scratch_bytes, const SortPairs& pairs,
                 cudaStream_t stream) {
  const auto key_limit = static_cast<std::uint64_t>(std::max<std::int64_t>(pairs.key_limit, 2));
  return cub::DeviceRadixSort::SortPairs(
      scratch, scratch_bytes, reinterpret_cast<const std::uint32_t*>(pairs.keys),
      reinterpret_cast<std::uint32_t*>(pairs.sorted_keys), pairs.values, pairs.sorted_values,
      static_cast<std::int32_t>(pairs.count), 0, static_cast<int>(std::bit_width(key_limit - 1)),
      stream);
}

void require_countable(std::int64_t count, const char* op) {
  require(count >= 0 && count <= std::numeric_limits<std::int32_t>::max(), ErrorKind::kUnsupported,
          "{}: {} values are to be sorted, at most {} can be", op, count,
          std::numeric_limits<std::int32_t>::max());
}

}  // namespace

std::int64_t sort_pairs_scratch_bytes(std::int64_t count, std::int64_t key_limit) {
  require_countable(count, "sort_pairs");
  std::size_t bytes = 0;
  check(sort(nullptr, bytes, {.count = count, .key_limit = key_limit}, nullptr), "sort_pairs");
  return static_cast<std::int64_t>(bytes);
}

void sort_pairs(CudaExec& gpu, const char* op, const SortPairs& pairs,
                std::span<std::byte> scratch) {
  if (pairs.count == 0) return;
  require_countable(pairs.count, op);
  const std::int64_t wanted = sort_pairs_scratch_bytes(pairs.count, pairs.key_limit);
  require(static_cast<std::int64_t>(scratch.size()) >= wanted, ErrorKind::kInternal,
          "{}: a sort of {} pairs got {} bytes of scratch, {} are needed", op, pairs.count,
          scratch.size(), wanted);
  std::size_t bytes = scratch.size();
  check(sort(scratch.data(), bytes, pairs, gpu.stream()), op);
}

}  // namespace jiboia::cuda
