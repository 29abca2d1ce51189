#pragma once
#include <limits>

#include "kernels/cpu_tiles.h"
#include "kernels/selective_scan/selective_scan.h"

/// What the two passes of the CPU's selective scan share.
///
/// A tile is a block of channels of one batch row. It walks the sequence chunk by chunk. A chunk is
/// staged first: whatever is computed once for a channel and step, whatever the number of states,
/// goes into small arrays. Then the states run through the chunk, vector of channels by vector of
/// channels, in groups small enough to stay in registers.
namespace jiboia::scan {

inline constexpr std::int64_t kChunk = SelectiveScan::kChunk;
/// Channels of a tile: few enough for eight tiles a row at D = 512, enough to read whole cache
/// lines in a row and to spread the sums over channels in backward.
inline constexpr std::int64_t kBlock = 64;
/// States that go through a chunk together.
inline constexpr int kGroup = 4;

/// Calls group.operator()<count>(n) for the states n, n + 1, ..., n + count - 1, groups covering
/// all N.
template <class Group>
void for_each_group(std::int64_t N, Group group) {
  std::int64_t n = 0;
  for (; n + kGroup <= N; n += kGroup) group.template operator()<kGroup>(n);
  for (; n < N; ++n) group.template operator()<1>(n);
}

/// A value for every step of a chunk and channel of a block; the steps of one vector of channels
/// lie together.
template <class T>
class Staged {
 public:
  /// Step `t` of the vector that begins at `channel`.
  T* at(std::int64_t channel, std::int64_t t = 0) {
    return values_ + channel * kChunk + t * simd::kLanes<T>;
  }

 private:
  alignas(64) T values_[kBlock * kChunk];
};

/// The op's operands, by row of the (B * L) steps.
template <class T>
struct Operands {
  explicit Operands(const SelectiveScan::In<>& in)
      : u(in.u),
        dt(in.dt),
        b(in.b),
        c(in.c),
        z(in.z),
        d_skip(in.d_skip.as<T>()),
        dt_bias(in.dt_bias.as<T>()),
        document_start(in.document_start ? in.document_start.as<std::int32_t>() : nullptr),
        B(in.u.shape[0]),
        L(in.u.shape[1]),
        D(in.u.shape[2]),
        N(in.a_log.shape[1]),
        blocks(ceil_div(D, kBlock)),
        chunks(ceil_div(L, kChunk)) {}

  Rows<const T> u, dt, b, c, z;
  const T *d_skip, *dt_bias;
  const std::int32_t* document_start;
  std::int64_t B, L, D, N, blocks, chunks;
};

/// delta where it makes the decay into step `t`, which is `row` of the (B * L). At a document's
/// first token it is so large that the decay is 0.
template <class T>
simd::Vec<T> decay_delta(const Operands<T>& in, std::int64_t row, std::int64_t t,
                         const simd::Vec<T>& delta) {
  if (in.document_start && in.document_start[row] == t) {
    return std::numeric_limits<T>::max();
  }
  return delta;
}

/// Elements of decay_rates().
template <class T>
std::int64_t decay_rates_size(std::int64_t D, std::int64_t N) {
  return ceil_div(D, kBlock) * N * kBlock;
}

/// Fills `rates` (blocks, N, kBlock) with -exp(a_log) / ln 2: a decay is 2^(delta * rate).
template <class T>
void decay_rates(CpuExec& cpu, const Tensor& a_log, T* rates) {
  const std::int64_t D = a_log.shape[0], N = a_log.shape[1];
  const T* from = a_log.as<T>();
  // Bounds that change no decay of a real step. None is closer to 0 than `slowest`, so that the
  // decay of decay_delta()'s huge step is 0 even where a_log is hugely negative; none is infinite,
  // so that 0 times a rate is 0.
  const simd::Vec<T> slowest = T(-1e-30), fastest = T(-1e30);
  cpu.parallel_for(ceil_div(D, kBlock), [&](std::int64_t block) {
    T* to = rates + block * N * kBlock;
    for (std::int64_t i = 0; i < kBlock; ++i) {
      const std::int64_t d = block * kBlock + i;
      for (std::int64_t n = 0; n < N; ++n) to[n * kBlock + i] = d < D ? from[d * N + n] : T(0);
    }
    for (std::int64_t i = 0; i < N * kBlock; i += simd::kLanes<T>) {
      simd::Vec<T> rate = simd::exp(simd::load(to + i)) * T(-1.4426950408889634);
      simd::stdx::where(rate > slowest, rate) = slowest;
      simd::stdx::where(rate < fastest, rate) = fastest;
      simd::store(rate, to + i);
    }
  });
}

}  // namespace jiboia::scan
