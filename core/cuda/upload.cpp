#include "core/upload.h"

#include <vector>

#include "core/cuda/check.cuh"
#include "core/cuda/cuda_exec.h"

namespace jiboia {
namespace {

constexpr const char* kWho = "upload";

/// Pinned slots, each with a place of its own in GPU memory. An upload gets there over the bus
/// beside the GPU's work, and by a copy within the GPU, in order with that work, to where it is
/// seen.
class PinnedRing : public UploadRing {
 public:
  PinnedRing(CudaExec& gpu, int slots, std::int64_t slot_bytes)
      : compute_(gpu.stream()),
        host_(allocate_staging(gpu, slots * slot_bytes, "inputs")),
        device_(allocate(gpu, (slots + 1) * slot_bytes, "inputs")),
        slots_(static_cast<std::size_t>(slots)) {
    gpu.wait();  // the memory is zero before another stream writes to it
    cuda::check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), kWho);
    for (std::size_t i = 0; i < slots_.size(); ++i) {
      const auto offset = static_cast<std::int64_t>(i) * slot_bytes;
      slots_[i].host = host_.data() + offset;
      slots_[i].device = device_.data() + slot_bytes + offset;
      cuda::check(cudaEventCreateWithFlags(&slots_[i].uploaded, cudaEventDisableTiming), kWho);
      cuda::check(cudaEventCreateWithFlags(&slots_[i].read, cudaEventDisableTiming), kWho);
    }
  }
  ~PinnedRing() override {
    cudaStreamSynchronize(stream_);
    for (Slot& slot : slots_) {
      cudaEventDestroy(slot.uploaded);
      cudaEventDestroy(slot.read);
    }
    cudaStreamDestroy(stream_);
  }
  PinnedRing(const PinnedRing&) = delete;
  PinnedRing& operator=(const PinnedRing&) = delete;

  std::byte* fill() override {
    // An event that was never recorded counts as reached.
    cuda::check(cudaEventSynchronize(slots_[next_].uploaded), kWho);
    return slots_[next_].host;
  }

  void upload(std::int64_t bytes) override {
    const Slot& slot = slots_[next_];
    const auto size = static_cast<std::size_t>(bytes);
    cuda::check(cudaStreamWaitEvent(stream_, slot.read), kWho);
    cuda::check(cudaMemcpyAsync(slot.device, slot.host, size, cudaMemcpyHostToDevice, stream_),
                kWho);
    cuda::check(cudaEventRecord(slot.uploaded, stream_), kWho);
    cuda::check(cudaStreamWaitEvent(compute_, slot.uploaded), kWho);
    cuda::check(cudaMemcpyAsync(data(), slot.device, size, cudaMemcpyDeviceToDevice, compute_),
                kWho);
    cuda::check(cudaEventRecord(slot.read, compute_), kWho);
    next_ = (next_ + 1) % slots_.size();
  }

  std::byte* data() const override { return device_.data(); }

 private:
  struct Slot {
    std::byte *host = nullptr, *device = nullptr;
    cudaEvent_t uploaded = nullptr, read = nullptr;
  };

  CUstream_st* compute_;
  CUstream_st* stream_ = nullptr;
  Buffer host_;
  Buffer device_;  // where uploads are seen, then the slots' places
  std::vector<Slot> slots_;
  std::size_t next_ = 0;
};

}  // namespace

std::unique_ptr<UploadRing> make_upload_ring(CudaExec& gpu, int slots, std::int64_t slot_bytes) {
  return std::make_unique<PinnedRing>(gpu, slots, slot_bytes);
}

}  // namespace jiboia
