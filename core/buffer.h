#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>

namespace jiboia {

/// Owning, movable memory of any kind: the host's, the host's that a GPU reads (pinned), a GPU's.
/// core/memory.h makes buffers where an Exec computes.
class Buffer {
 public:
  Buffer() = default;
  /// Takes over `data`, whose deleter gives it back.
  Buffer(std::shared_ptr<std::byte> data, std::int64_t bytes)
      : data_(std::move(data)), bytes_(bytes) {}
  Buffer(Buffer&& other) noexcept
      : data_(std::move(other.data_)), bytes_(std::exchange(other.bytes_, 0)) {}
  Buffer& operator=(Buffer&& other) noexcept {
    data_ = std::move(other.data_);
    bytes_ = std::exchange(other.bytes_, 0);
    return *this;
  }

  std::byte* data() const { return data_.get(); }
  std::int64_t bytes() const { return bytes_; }

 private:
  std::shared_ptr<std::byte> data_;
  std::int64_t bytes_ = 0;
};

/// Zero-filled, 4096-byte aligned host memory. `purpose` names it in the error.
/// Errors: OutOfMemory, with the bytes asked for.
Buffer allocate_host(std::int64_t bytes, const char* purpose);

/// Bytes of memory that this machine could still give to this process; 0 when unknown.
std::int64_t available_host_bytes();

}  // namespace jiboia
