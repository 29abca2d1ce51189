#pragma once
#include <array>
#include <cmath>
#include <cstdint>
#include <numbers>

namespace jiboia {

/// What random numbers are for: streams of one seed that never overlap.
enum class RandomPurpose : std::uint32_t { kInitialisation, kSampling, kTest };

/// Counter-based random numbers: Philox4x32-10. The i-th number of a stream is a function of
/// (seed, purpose, stream, i) alone, so it does not depend on ranks, threads or the order of calls,
/// and its words and uniforms are the same on every backend; normal() also depends on the C
/// library's logarithm and cosine. Source: Salmon et al. 2011, "Parallel random numbers: as easy as
/// 1, 2, 3".
class Philox {
 public:
  using Block = std::array<std::uint32_t, 4>;

  Philox(std::uint64_t seed, RandomPurpose purpose, std::uint32_t stream = 0)
      : key_{static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)},
        purpose_(static_cast<std::uint32_t>(purpose)),
        stream_(stream) {}

  /// Four random 32-bit words for counter `i`.
  Block block(std::uint64_t i) const {
    Block x{static_cast<std::uint32_t>(i), static_cast<std::uint32_t>(i >> 32), stream_, purpose_};
    std::uint32_t k0 = key_[0], k1 = key_[1];
    for (int round = 0; round < 10; ++round) {
      const std::uint64_t p0 = std::uint64_t{0xD2511F53} * x[0];
      const std::uint64_t p1 = std::uint64_t{0xCD9E8D57} * x[2];
      x = {static_cast<std::uint32_t>(p1 >> 32) ^ x[1] ^ k0, static_cast<std::uint32_t>(p1),
           static_cast<std::uint32_t>(p0 >> 32) ^ x[3] ^ k1, static_cast<std::uint32_t>(p0)};
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
    return x;
  }

  /// Uniform in [0, 1), 53 random bits.
  double uniform(std::uint64_t i) const {
    const Block x = block(i);
    const std::uint64_t bits = (std::uint64_t{x[0]} << 32 | x[1]) >> 11;
    return static_cast<double>(bits) * 0x1p-53;
  }

  /// Standard normal (Box-Muller on the four words of counter `i`).
  double normal(std::uint64_t i) const {
    const Block x = block(i);
    const double radius =
        (static_cast<double>(std::uint64_t{x[0]} << 20 | x[1] >> 12) + 0.5) * 0x1p-52;
    const double angle = static_cast<double>(std::uint64_t{x[2]} << 20 | x[3] >> 12) * 0x1p-52;
    return std::sqrt(-2.0 * std::log(radius)) * std::cos(2.0 * std::numbers::pi * angle);
  }

 private:
  std::array<std::uint32_t, 2> key_;
  std::uint32_t purpose_;
  std::uint32_t stream_;
};

}  // namespace jiboia
