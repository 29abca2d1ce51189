#pragma once
#include <cstdint>
#include <functional>
#include <vector>

#include "tests/bench/cache_flush.h"

namespace jiboia::bench {

/// Seconds of repeated runs.
struct Times {
  double median = 0, min = 0, max = 0;
};
/// Of at least one run.
Times times_of(std::vector<double> seconds);

struct Repetition {
  int warmup = 5, repeats = 20;
  /// Before each run the caches are flushed by so much (CacheFlush). On a GPU the CPU launches the
  /// run meanwhile.
  std::int64_t flushed_bytes = 0;
};

/// Times what an Exec is asked to do, by events before and behind it.
class Stopwatch {
 public:
  Stopwatch(Exec& exec, const Repetition& repetition);

  Times time(const std::function<void()>& run);

 private:
  Exec& exec_;
  Repetition repetition_;
  CacheFlush flush_;
};

/// What a device reaches with the simplest work there is.
struct Ceilings {
  double bytes_per_s = 0;  ///< a copy within its memory, bytes read and written
  double flops_per_s = 0;  ///< a product of square matrices
};

/// Measures them by a copy of `bytes` and by a product of matrices of `rows` rows.
Ceilings measure_ceilings(Exec& exec, Stopwatch& stopwatch, std::int64_t bytes, Dtype matrices,
                          std::int64_t rows);

}  // namespace jiboia::bench
