#include "tests/bench/cache_flush.h"

#include <algorithm>

namespace jiboia::bench {
namespace {

void read_all(CpuExec&, const Buffer& much, const Buffer& result) {
  *result.data() = *std::max_element(much.data(), much.data() + much.bytes());
}

}  // namespace

CacheFlush::CacheFlush(Exec& exec, std::int64_t bytes) : exec_(exec) {
  if (bytes == 0) return;
  much_ = allocate(exec, bytes, "what flushes the caches");
  result_ = allocate(exec, 4, "what flushes the caches");
}

void CacheFlush::run() {
  if (much_.bytes() == 0) return;
  std::visit([&](auto& backend) { read_all(backend, much_, result_); }, exec_);
}

}  // namespace jiboia::bench
