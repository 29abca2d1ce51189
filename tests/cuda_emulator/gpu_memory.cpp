#include "tests/cuda_emulator/gpu_memory.h"

#include <sys/mman.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <mutex>
#include <string>

#include "tests/cuda_emulator/environment.h"

namespace jiboia::emulated {
namespace {

/// What no program should take for data that it wrote: NaN as a float, -1 as an integer.
constexpr int kGarbage = 0xFF;
constexpr std::size_t kAlignment = 256;
/// Addresses that are set aside for all GPUs; memory of this machine only where something is
/// written.
constexpr std::size_t kRegionBytes = std::size_t{1} << 38;

constexpr std::size_t kHugePage = std::size_t{2} << 20;

/// Whether this machine gives huge pages. Protecting memory takes 0.3 ns a byte without.
[[maybe_unused]] bool has_huge_pages() {
  std::ifstream file("/sys/kernel/mm/transparent_hugepage/enabled");
  std::string text;
  return std::getline(file, text) && text.find("[never]") == std::string::npos;
}

struct Allocation {
  std::size_t bytes = 0;
  int device = 0;
};

class GpuMemory {
 public:
  GpuMemory() {
#if !defined(__SANITIZE_ADDRESS__)
    const int protection = protected_ ? PROT_NONE : PROT_READ | PROT_WRITE;
    void* region =
        mmap(nullptr, kRegionBytes, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (region == MAP_FAILED) {
      std::perror("the addresses of emulated GPU memory");
      std::abort();
    }
    region_ = static_cast<std::byte*>(region);
    madvise(region, kRegionBytes, MADV_HUGEPAGE);  // fewer pages to lock and unlock
    if (!protected_) return;
    struct sigaction action {};
    action.sa_sigaction = explain_fault;
    action.sa_flags = SA_SIGINFO | SA_RESETHAND;
    sigaction(SIGSEGV, &action, nullptr);
#endif
  }

  cudaError_t allocate(void** to, std::size_t bytes, int device) {
    const std::lock_guard<std::mutex> lock(mutex_);
    *to = nullptr;
    if (bytes == 0) return cudaSuccess;
    const std::size_t limit = gpu_memory_bytes(), used = used_by(device);
    if (bytes > limit || used > limit - bytes) return cudaErrorMemoryAllocation;
    std::byte* memory = take(bytes);
    if (!memory) return cudaErrorMemoryAllocation;
    allocations_[memory] = {bytes, device};
    unlock();
    std::memset(memory, kGarbage, bytes);
    relock();
    *to = memory;
    return cudaSuccess;
  }

  cudaError_t free(void* memory) {
    if (!memory) return cudaSuccess;
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = allocations_.find(static_cast<std::byte*>(memory));
    if (found == allocations_.end()) return cudaErrorInvalidValue;
    give_back(found->first, found->second.bytes);
    allocations_.erase(found);
    return cudaSuccess;
  }

  std::size_t used(int device) {
    const std::lock_guard<std::mutex> lock(mutex_);
    return used_by(device);
  }

  Place place_of(const void* data, std::size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    auto* start = static_cast<std::byte*>(const_cast<void*>(data));
    auto after = allocations_.upper_bound(start);
    if (after == allocations_.begin()) return Place::kElsewhere;
    const auto& [memory, allocation] = *--after;
    const auto offset = static_cast<std::size_t>(start - memory);
    if (offset >= allocation.bytes) return Place::kElsewhere;
    return bytes <= allocation.bytes - offset ? Place::kInGpuMemory : Place::kPastAllocation;
  }

  void begin_access() {
    const std::lock_guard<std::mutex> lock(mutex_);
    unlock();
  }
  void end_access() {
    const std::lock_guard<std::mutex> lock(mutex_);
    relock();
  }

 private:
  std::size_t used_by(int device) const {
    std::size_t sum = 0;
    for (const auto& [memory, allocation] : allocations_) {
      if (allocation.device == device) sum += allocation.bytes;
    }
    return sum;
  }

#if defined(__SANITIZE_ADDRESS__)
  std::byte* take(std::size_t bytes) {
    void* memory = nullptr;
    return posix_memalign(&memory, kAlignment, bytes) == 0 ? static_cast<std::byte*>(memory)
                                                           : nullptr;
  }
  void give_back(std::byte* memory, std::size_t) { std::free(memory); }
  void unlock() {}
  void relock() {}
#else
  /// The first gap between allocations that holds so many bytes.
  std::byte* take(std::size_t bytes) const {
    std::size_t start = 0;
    for (const auto& [memory, allocation] : allocations_) {
      const auto offset = static_cast<std::size_t>(memory - region_);
      if (offset - start >= bytes) return region_ + start;
      start = (offset + allocation.bytes + kAlignment - 1) / kAlignment * kAlignment;
    }
    return kRegionBytes - start >= bytes ? region_ + start : nullptr;
  }
  void give_back(std::byte* memory, std::size_t bytes) const {
    // Whole huge pages alone: parts of one would split it.
    const auto start = reinterpret_cast<std::uintptr_t>(memory);
    const std::uintptr_t first = (start + kHugePage - 1) / kHugePage * kHugePage;
    const std::uintptr_t end = (start + bytes) / kHugePage * kHugePage;
    if (first < end) madvise(reinterpret_cast<void*>(first), end - first, MADV_DONTNEED);
  }
  void protect(int protection) const {
    if (mprotect(region_, kRegionBytes, protection) == 0) return;
    std::perror("the protection of emulated GPU memory");
    std::abort();
  }
  void unlock() {
    if (protected_ && accesses_++ == 0) protect(PROT_READ | PROT_WRITE);
  }
  void relock() {
    if (protected_ && --accesses_ == 0) protect(PROT_NONE);
  }
  static void explain_fault(int, siginfo_t* info, void*);

  const bool protected_ =
      from_environment("JIBOIA_EMULATED_PROTECTION", has_huge_pages() ? 1 : 0) != 0;
  std::byte* region_ = nullptr;
  int accesses_ = 0;
#endif
  std::mutex mutex_;
  std::map<std::byte*, Allocation> allocations_;
};

/// Never destroyed: buffers of static storage are freed late.
GpuMemory& memory() {
  static auto* memory = new GpuMemory;
  return *memory;
}

#if !defined(__SANITIZE_ADDRESS__)
void GpuMemory::explain_fault(int, siginfo_t* info, void*) {
  const auto* address = static_cast<const std::byte*>(info->si_addr);
  const std::byte* region = memory().region_;
  if (address >= region && address < region + kRegionBytes) {
    constexpr char kText[] = "emulated GPU: CPU code reads or writes GPU memory\n";
    [[maybe_unused]] const auto written = write(STDERR_FILENO, kText, sizeof kText - 1);
  }
  // The handler is gone: the same access ends the process when this returns.
}
#endif

}  // namespace

std::size_t gpu_memory_bytes() {
  struct sysinfo info {};
  sysinfo(&info);
  const std::size_t machine = std::size_t{info.totalram} * info.mem_unit;
  return from_environment("JIBOIA_EMULATED_MEMORY", std::min(machine, kRegionBytes));
}

cudaError_t allocate_gpu_memory(void** to, std::size_t bytes, int device) {
  return memory().allocate(to, bytes, device);
}
cudaError_t free_gpu_memory(void* data) { return memory().free(data); }
std::size_t used_gpu_memory(int device) { return memory().used(device); }
Place place_of(const void* data, std::size_t bytes) { return memory().place_of(data, bytes); }

GpuMemoryAccess::GpuMemoryAccess() { memory().begin_access(); }
GpuMemoryAccess::~GpuMemoryAccess() { memory().end_access(); }

}  // namespace jiboia::emulated
