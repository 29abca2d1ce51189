#pragma once
#include <cstddef>
#include <memory>

namespace jiboia::emulated {

/// The variables that kernels declare __shared__. In the emulator these are thread_local, which
/// tells them from all other variables: a program's own thread_local variables lie together. While
/// this lives, those of the calling thread have all bits set, as shared memory that nobody wrote;
/// then those that are no kernel's are again what they were.
///
/// With AddressSanitizer they are static instead, for the sake of its red zones between variables,
/// and keep what they have.
class StaticSharedMemory {
 public:
  StaticSharedMemory();
  ~StaticSharedMemory();
  StaticSharedMemory(const StaticSharedMemory&) = delete;
  StaticSharedMemory& operator=(const StaticSharedMemory&) = delete;

 private:
  std::byte* variables_ = nullptr;
  std::size_t bytes_ = 0;
  std::unique_ptr<std::byte[]> saved_;
};

}  // namespace jiboia::emulated
