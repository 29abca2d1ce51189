#pragma once
#include <cstdint>

#include "core/memory.h"

namespace jiboia::bench {

/// Reads so much memory that the caches hold nothing that a run uses, and nothing that has to be
/// written back meanwhile. On a GPU by one kernel that fills it to its end: behind smaller ones the
/// next kernel would begin late.
class CacheFlush {
 public:
  /// 0 bytes: leaves the caches as they are. Errors: OutOfMemory.
  CacheFlush(Exec& exec, std::int64_t bytes);
  /// Asynchronous.
  void run();

 private:
  Exec& exec_;
  Buffer much_, result_;
};

#if JIBOIA_WITH_CUDA
/// Reads `much`, zeros; `result` is 4 bytes that nobody reads.
void read_all(CudaExec& gpu, const Buffer& much, const Buffer& result);
#endif

}  // namespace jiboia::bench
