#include "core/buffer.h"

#include <sys/mman.h>

#include <fstream>
#include <string>

#include "core/error.h"

namespace jiboia {

Buffer allocate_host(std::int64_t bytes, const char* purpose) {
  if (bytes == 0) return {};
  const auto size = static_cast<std::size_t>(bytes);
  void* data = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) {
    fail(ErrorKind::kOutOfMemory, "{} needs {} bytes, {} are available", purpose, bytes,
         available_host_bytes());
  }
  // Huge pages save most of the page faults and TLB misses of buffers that are swept every step.
  madvise(data, size, MADV_HUGEPAGE);
  return {{static_cast<std::byte*>(data), [size](std::byte* memory) { munmap(memory, size); }},
          bytes};
}

std::int64_t available_host_bytes() {
  std::ifstream meminfo("/proc/meminfo");
  std::string key, unit;
  std::int64_t kibibytes = 0;
  while (meminfo >> key >> kibibytes >> unit) {
    if (key == "MemAvailable:") return kibibytes * 1024;
  }
  return 0;
}

}  // namespace jiboia
