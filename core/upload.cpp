#include "core/upload.h"

namespace jiboia {
namespace {

/// The host's memory is where the exec computes.
class HostRing : public UploadRing {
 public:
  HostRing(CpuExec& cpu, int slots, std::int64_t slot_bytes)
      : memory_(allocate(cpu, slots * slot_bytes, "inputs")),
        slots_(slots),
        slot_bytes_(slot_bytes) {}
  std::byte* fill() override { return memory_.data() + next_ * slot_bytes_; }
  std::byte* upload(std::int64_t) override {
    std::byte* filled = fill();
    next_ = (next_ + 1) % slots_;
    return filled;
  }

 private:
  Buffer memory_;
  std::int64_t slots_, slot_bytes_, next_ = 0;
};

}  // namespace

std::unique_ptr<UploadRing> make_upload_ring(CpuExec& cpu, int slots, std::int64_t slot_bytes) {
  return std::make_unique<HostRing>(cpu, slots, slot_bytes);
}

}  // namespace jiboia
