#pragma once
#include <cstdint>
#include <memory>
#include <type_traits>
#include <variant>

#include "core/cuda/cuda_exec.h"

namespace jiboia {

/// Runs ops on the CPU: a pool of threads that all ops of a process share.
///
/// Determinism rule: an op cuts its work into tiles by shape alone, and a tile runs on one thread,
/// so results do not depend on the number of threads.
class CpuExec {
 public:
  /// `threads` = 0 takes every core that this process may run on. Errors: OutOfMemory when the
  /// system starts fewer.
  explicit CpuExec(int threads = 0);
  ~CpuExec();
  CpuExec(CpuExec&&) noexcept;
  CpuExec& operator=(CpuExec&&) noexcept;

  int threads() const;
  /// All work is done when the call that asked for it returns: nothing to wait for.
  void wait() {}

  /// Calls tile(i) once for every i in [0, tiles), in any order, on any thread, and returns when
  /// all have returned. The first exception of a tile is rethrown. Not reentrant.
  template <class Tile>
  void parallel_for(std::int64_t tiles, Tile&& tile) {
    using Callable = std::remove_reference_t<Tile>;
    run(
        tiles, [](void* context, std::int64_t i) { (*static_cast<Callable*>(context))(i); },
        const_cast<void*>(static_cast<const void*>(&tile)));
  }

 private:
  struct Pool;
  void run(std::int64_t tiles, void (*call)(void*, std::int64_t), void* context);
  std::unique_ptr<Pool> pool_;
};

/// Where ops run: the only backend switch of the project. An op has one overload for each.
#if JIBOIA_WITH_CUDA
using Exec = std::variant<CpuExec, CudaExec>;
#else
using Exec = std::variant<CpuExec>;
#endif

/// Whether `exec` computes on a GPU.
inline bool is_cuda([[maybe_unused]] const Exec& exec) {
#if JIBOIA_WITH_CUDA
  return std::holds_alternative<CudaExec>(exec);
#else
  return false;
#endif
}

/// Returns when everything that `exec` was asked to do is done. Errors: Cuda.
inline void wait(Exec& exec) {
  std::visit([](auto& backend) { backend.wait(); }, exec);
}

}  // namespace jiboia
