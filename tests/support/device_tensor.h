#pragma once
#include <algorithm>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "core/exec.h"
#include "core/memory.h"
#include "tests/support/device_compare.h"
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
    if (kept_.data()) DeviceBlocks::instance().give(std::move(kept_));
  }

  Tensor tensor() const {
    return {host_->spec(), buffer_.data() ? buffer_.data() + host_->offset() - start_ : nullptr};
  }
  /// Copies what the GPU's memory holds now to elsewhere on the GPU.
  void keep() {
    if (size_ == 0) return;
    if (!kept_.data()) kept_ = DeviceBlocks::instance().take(size_);
    copy(gpu(), on_gpu(), {Spec(Dtype::kU8, {size_}), kept_.data()});
  }
  /// The GPU's memory beside what was kept of it.
  Compared compared() const { return {buffer_.data(), kept_.data(), size_}; }
  /// Makes the TestTensor hold what was kept or else what the GPU's memory holds. Waits for it.
  void fetch() {
    if (size_ == 0) return;
    const Buffer& from = kept_.data() ? kept_ : buffer_;
    copy(gpu(), {Spec(Dtype::kU8, {size_}), from.data()}, on_host(host_->bytes()));
    gpu().wait();
  }

 private:
  Tensor on_gpu() const { return {Spec(Dtype::kU8, {size_}), buffer_.data()}; }
  Tensor on_host(std::vector<std::byte>& bytes) const {
    return {Spec(Dtype::kU8, {size_}), bytes.data() + start_};
  }

  TestTensor* host_;
  std::int64_t start_ = 0;  ///< of what is copied, among the TestTensor's bytes
  std::int64_t size_ = 0;
  Buffer buffer_, kept_;
};

/// A vector's values in GPU memory.
template <class T>
class OnGpu {
 public:
  /// The vector has to stay where it is.
  explicit OnGpu(std::vector<T>& host) : host_(&host) {
    if (host.empty()) return;
    buffer_ = DeviceBlocks::instance().take(spec().bytes());
    copy(gpu(), {spec(), host.data()}, {spec(), buffer_.data()});
  }
  OnGpu(const OnGpu&) = delete;
  ~OnGpu() {
    if (buffer_.data()) DeviceBlocks::instance().give(std::move(buffer_));
  }
  T* data() const { return reinterpret_cast<T*>(buffer_.data()); }
  /// Makes the vector hold what the GPU's memory holds. Waits for it.
  void fetch() const {
    if (buffer_.data()) copy(gpu(), {spec(), buffer_.data()}, {spec(), host_->data()});
    gpu().wait();
  }

 private:
  Spec spec() const {
    return Spec(Dtype::kU8, {static_cast<std::int64_t>(host_->size() * sizeof(T))});
  }

  std::vector<T>* host_;
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
  /// has to write the same bits. Waits when all of it has been launched.
  template <class Pass>
  void run(const Pass& pass, int launches, std::vector<std::string>& failures) {
    pass();
    if (launches > 1) launch_again(pass, launches, failures);
    for (DeviceTensor& tensor : placed_) tensor.fetch();
    placed_.clear();
  }

 private:
  template <class Pass>
  void launch_again(const Pass& pass, int launches, std::vector<std::string>& failures) {
    std::vector<Compared> pairs;
    std::int64_t most_bytes = 0;
    for (DeviceTensor& tensor : placed_) {
      tensor.keep();
      pairs.push_back(tensor.compared());
      most_bytes = std::max(most_bytes, pairs.back().bytes);
    }
    std::vector<std::uint32_t> first(pairs.size(), kNeverDiffered);
    const OnGpu gpu_pairs(pairs);
    const OnGpu gpu_first(first);
    for (int launch = 2; launch <= launches; ++launch) {
      pass();
      note_differences(gpu(), gpu_pairs.data(), static_cast<std::int64_t>(pairs.size()), most_bytes,
                       static_cast<std::uint32_t>(launch), gpu_first.data());
    }
    gpu_first.fetch();
    const auto earliest = std::ranges::min_element(first);
    if (earliest == first.end() || *earliest == kNeverDiffered) return;
    failures.push_back(fmt::format("launch {} gave other bits in tensor {} of {}", *earliest,
                                   earliest - first.begin() + 1, first.size()));
  }

  std::vector<DeviceTensor> placed_;
};

}  // namespace jiboia::test
#endif
