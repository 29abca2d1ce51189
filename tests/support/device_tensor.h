#pragma once
#include <map>
#include <string>
#include <vector>

#include "core/exec.h"
#include "core/memory.h"
#include "tests/support/gpu.h"
#include "tests/support/test_tensor.h"

#if JIBOIA_WITH_CUDA
namespace jiboia::test {

/// GPU memory that tests take and give back, kept for the next one of the same size.
class DeviceBlocks {
 public:
  /// One for the process.
  static DeviceBlocks& instance() {
    static auto* blocks = new DeviceBlocks;  // outlives the driver's end
    return *blocks;
  }
  Buffer take(std::int64_t bytes) {
    const auto kept = free_.find(bytes);
    if (kept == free_.end()) return allocate(gpu(), bytes, "a test tensor");
    Buffer buffer = std::move(kept->second);
    free_.erase(kept);
    kept_bytes_ -= bytes;
    return buffer;
  }
  void give(Buffer buffer) {
    const std::int64_t bytes = buffer.bytes();
    if (kept_bytes_ + bytes > kMostKeptBytes) {
      free_.clear();
      kept_bytes_ = 0;
    }
    kept_bytes_ += bytes;
    free_.emplace(bytes, std::move(buffer));
  }

 private:
  static constexpr std::int64_t kMostKeptBytes = std::int64_t{4} << 30;
  std::multimap<std::int64_t, Buffer> free_;
  std::int64_t kept_bytes_ = 0;
};

/// The copy of a TestTensor in GPU memory, made from it and with its guard bytes around it. With
/// JIBOIA_EXACT_BUFFERS=1 it ends with the last element, so that tools see reads behind it, too.
class DeviceTensor {
 public:
  explicit DeviceTensor(TestTensor& host) : host_(&host) {
    const std::vector<std::byte>& bytes = host.bytes();
    const Spec& spec = host.spec();
    size_ = static_cast<std::int64_t>(bytes.size());
    if (is_set("JIBOIA_EXACT_BUFFERS")) {
      const std::int64_t before = host.columns_before() * size_of(spec.dtype);
      start_ = host.offset() - before;
      const std::int64_t elements =
          spec.size() == 0 ? 0 : (spec.rows() - 1) * spec.row_stride + spec.columns();
      size_ = before + elements * size_of(spec.dtype);
    }
    if (size_ == 0) return;
    buffer_ = DeviceBlocks::instance().take(size_);
    copy(gpu(), on_host(host.bytes()), on_gpu());
  }
  DeviceTensor(DeviceTensor&&) = default;
  DeviceTensor(const DeviceTensor&) = delete;
  ~DeviceTensor() {
    if (buffer_.data()) DeviceBlocks::instance().give(std::move(buffer_));
  }

  Tensor tensor() const {
    return {host_->spec(), buffer_.data() ? buffer_.data() + host_->offset() - start_ : nullptr};
  }
  /// Makes the TestTensor hold what the GPU's memory holds. Waits for it.
  void fetch() { fetch(host_->bytes()); }
  /// Whether the GPU's memory holds the TestTensor's bits, guards included. Waits for it.
  bool holds_same_bits() {
    std::vector<std::byte> now = host_->bytes();
    fetch(now);
    return now == host_->bytes();
  }

 private:
  Tensor on_gpu() const { return {Spec(Dtype::kU8, {size_}), buffer_.data()}; }
  Tensor on_host(std::vector<std::byte>& bytes) const {
    return {Spec(Dtype::kU8, {size_}), bytes.data() + start_};
  }
  void fetch(std::vector<std::byte>& bytes) {
    if (size_ == 0) return;
    copy(gpu(), on_gpu(), on_host(bytes));
    gpu().wait();
  }

  TestTensor* host_;
  std::int64_t start_ = 0;  ///< of what is copied, among the TestTensor's bytes
  std::int64_t size_ = 0;
  Buffer buffer_;
};

/// Where an op runs: on GPU 0, in copies of the test tensors.
class CudaPlace {
 public:
  CudaExec& exec() { return gpu(); }
  const CudaExec& exec() const { return gpu(); }
  /// The tensor that an op gets for a test tensor, which has to stay where it is.
  Tensor put(TestTensor& tensor) {
    placed_.emplace_back(tensor);
    return placed_.back().tensor();
  }
  /// Runs a pass on what was put, so that the test tensors hold what it wrote; then again, which
  /// has to write the same bits.
  template <class Pass>
  void run(const Pass& pass, int launches, std::vector<std::string>& failures) {
    pass();
    for (DeviceTensor& tensor : placed_) tensor.fetch();
    for (int i = 1; i < launches; ++i) {
      pass();
      for (std::size_t k = 0; k < placed_.size(); ++k) {
        if (placed_[k].holds_same_bits()) continue;
        failures.push_back(fmt::format("launch {} gave other bits in tensor {} of {}", i + 1, k + 1,
                                       placed_.size()));
        i = launches;
        break;
      }
    }
    placed_.clear();
  }

 private:
  std::vector<DeviceTensor> placed_;
};

}  // namespace jiboia::test
#endif
