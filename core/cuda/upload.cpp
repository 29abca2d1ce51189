#include "core/upload.h"

#include <vector>

#include "core/cuda/check.cuh"
#include "core/cuda/cuda_exec.h"

namespace jiboia {
namespace {

constexpr const char* kWho = "upload";

class PinnedRing : public UploadRing {
 public:
  PinnedRing(CudaExec& gpu, int slots, std::int64_t slot_bytes)
      : compute_(gpu.stream()),
        host_(allocate_staging(gpu, slots * slot_bytes, "inputs")),
        device_(allocate(gpu, slots * slot_bytes, "inputs")),
        slot_bytes_(slot_bytes),
        slots_(static_cast<std::size_t>(slots)) {
    gpu.wait();  // the memory is zero before another stream writes to it
    cuda::check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), kWho);
    for (Slot& slot : slots_) {
      cuda::check(cudaEventCreateWithFlags(&slot.uploaded, cudaEventDisableTiming), kWho);
      cuda::check(cudaEventCreateWithFlags(&slot.read, cudaEventDisableTiming), kWho);
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
    return host_.data() + offset(next_);
  }

  std::byte* upload(std::int64_t bytes) override {
    // The slot after this one is the next to be overwritten: whatever reads it has been asked for
    // by now.
    cuda::check(cudaEventRecord(slots_[(next_ + 1) % slots_.size()].read, compute_), kWho);
    Slot& slot = slots_[next_];
    std::byte* to = device_.data() + offset(next_);
    cuda::check(cudaStreamWaitEvent(stream_, slot.read), kWho);
    cuda::check(cudaMemcpyAsync(to, host_.data() + offset(next_), static_cast<std::size_t>(bytes),
                                cudaMemcpyHostToDevice, stream_),
                kWho);
    cuda::check(cudaEventRecord(slot.uploaded, stream_), kWho);
    cuda::check(cudaStreamWaitEvent(compute_, slot.uploaded), kWho);
    next_ = (next_ + 1) % slots_.size();
    return to;
  }

 private:
  struct Slot {
    cudaEvent_t uploaded = nullptr, read = nullptr;
  };
  std::int64_t offset(std::size_t slot) const {
    return static_cast<std::int64_t>(slot) * slot_bytes_;
  }

  CUstream_st* compute_;
  CUstream_st* stream_ = nullptr;
  Buffer host_, device_;
  std::int64_t slot_bytes_;
  std::vector<Slot> slots_;
  std::size_t next_ = 0;
};

}  // namespace

std::unique_ptr<UploadRing> make_upload_ring(CudaExec& gpu, int slots, std::int64_t slot_bytes) {
  return std::make_unique<PinnedRing>(gpu, slots, slot_bytes);
}

}  // namespace jiboia
