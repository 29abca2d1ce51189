#include "data/row_permutation.h"

#include "core/error.h"

namespace jiboia {
namespace {

constexpr int kRounds = 8;

/// Finalizer of SplitMix64: every input bit changes every output bit with probability 1/2.
/// Source: Steele, Lea & Flood 2014, "Fast Splittable Pseudorandom Number Generators".
std::uint64_t mix(std::uint64_t x) {
  x += 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

}  // namespace

std::int64_t permuted_row(std::uint64_t seed, std::int64_t epoch, std::int64_t position,
                          std::int64_t rows) {
  require(0 <= position && position < rows, ErrorKind::kInternal,
          "row permutation: position {} is outside [0, {})", position, rows);
  const auto count = static_cast<std::uint64_t>(rows);
  int half_bits = 1;
  while (half_bits < 31 && (std::uint64_t{1} << (2 * half_bits)) < count) ++half_bits;
  require(count <= std::uint64_t{1} << (2 * half_bits), ErrorKind::kUnsupported,
          "row permutation: {} rows, at most 2^62 can be shuffled", rows);
  const std::uint64_t mask = (std::uint64_t{1} << half_bits) - 1;
  const std::uint64_t key = mix(mix(seed) ^ static_cast<std::uint64_t>(epoch));

  auto value = static_cast<std::uint64_t>(position);
  do {
    std::uint64_t left = value >> half_bits;
    std::uint64_t right = value & mask;
    for (std::uint64_t round = 0; round < kRounds; ++round) {
      const std::uint64_t next = left ^ (mix(key + (round << 56) + right) & mask);
      left = right;
      right = next;
    }
    value = left << half_bits | right;
  } while (value >= count);
  return static_cast<std::int64_t>(value);
}

}  // namespace jiboia
