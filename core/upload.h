#pragma once
#include <cstdint>
#include <memory>

#include "core/memory.h"

namespace jiboia {

/// Carries small inputs from the host to one place where an Exec computes, beside its work on the
/// inputs that came before: on a GPU through a ring of slots in pinned memory, on a stream of its
/// own.
class UploadRing {
 public:
  virtual ~UploadRing() = default;
  /// The host's side of the next slot, to be filled. Waits only until the slot's last upload is
  /// through, which was as many uploads ago as there are slots. Errors: Cuda.
  virtual std::byte* fill() = 0;
  /// Starts the upload of the slot's first `bytes`. What the exec is asked for from now on sees
  /// them at data(); what it was asked for before sees what was there before.
  virtual void upload(std::int64_t bytes) = 0;
  /// Where the uploads are seen: always the same address.
  virtual std::byte* data() const = 0;
};

/// Errors: OutOfMemory, Cuda.
std::unique_ptr<UploadRing> make_upload_ring(CpuExec& cpu, int slots, std::int64_t slot_bytes);
std::unique_ptr<UploadRing> make_upload_ring(CudaExec& gpu, int slots, std::int64_t slot_bytes);
inline std::unique_ptr<UploadRing> make_upload_ring(Exec& exec, int slots,
                                                    std::int64_t slot_bytes) {
  return std::visit([&](auto& backend) { return make_upload_ring(backend, slots, slot_bytes); },
                    exec);
}

/// Bytes that a ring takes where `exec` computes.
inline std::int64_t upload_ring_bytes(const Exec& exec, int slots, std::int64_t slot_bytes) {
  return is_cuda(exec) ? (slots + 1) * slot_bytes : slot_bytes;
}

}  // namespace jiboia
