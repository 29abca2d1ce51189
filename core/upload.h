#pragma once
#include <cstdint>
#include <memory>

#include "core/memory.h"

namespace jiboia {

/// Carries small inputs from the host to where an Exec computes, beside the work on inputs that
/// came before: on a GPU through pinned memory, on a stream of its own. A ring of slots.
class UploadRing {
 public:
  virtual ~UploadRing() = default;
  /// The host's side of the next slot, to be filled. Waits only until the slot's last upload is
  /// through, which was as many uploads ago as there are slots. Errors: Cuda.
  virtual std::byte* fill() = 0;
  /// Starts the upload of the slot's first `bytes`. What the exec is asked for sees them at the
  /// address that this returns, from now on until as many further uploads as there are slots less
  /// one.
  virtual std::byte* upload(std::int64_t bytes) = 0;
};

/// `slots` is at least 2. Takes slots * slot_bytes where the exec computes.
/// Errors: OutOfMemory, Cuda.
std::unique_ptr<UploadRing> make_upload_ring(CpuExec& cpu, int slots, std::int64_t slot_bytes);
std::unique_ptr<UploadRing> make_upload_ring(CudaExec& gpu, int slots, std::int64_t slot_bytes);
inline std::unique_ptr<UploadRing> make_upload_ring(Exec& exec, int slots,
                                                    std::int64_t slot_bytes) {
  return std::visit([&](auto& backend) { return make_upload_ring(backend, slots, slot_bytes); },
                    exec);
}

}  // namespace jiboia
