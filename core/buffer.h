#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>

namespace jiboia {

/// Owning, zero-filled, 4096-byte aligned host memory. Movable.
class HostBuffer {
 public:
  HostBuffer() = default;
  /// `purpose` names the memory in the error. Errors: OutOfMemory, with the bytes asked for.
  HostBuffer(std::int64_t bytes, const char* purpose);

  std::byte* data() const { return data_.get(); }
  std::int64_t bytes() const { return bytes_; }

 private:
  struct Unmap {
    std::int64_t bytes;
    void operator()(std::byte* data) const;
  };
  std::unique_ptr<std::byte, Unmap> data_{nullptr, Unmap{0}};
  std::int64_t bytes_ = 0;
};

/// Bytes of memory that this machine could still give to this process; 0 when unknown.
std::int64_t available_host_bytes();

}  // namespace jiboia
