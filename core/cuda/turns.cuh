#pragma once
#include <cstdint>

#include "core/cuda/launch.cuh"

// GPUs before Hopper cannot sleep for it.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
#define JIBOIA_MBARRIER_WAIT "test_wait"
#else
#define JIBOIA_MBARRIER_WAIT "try_wait"
#endif

namespace jiboia::cuda {

/// Keeps kWarps warps of a block at most one turn apart: cheaper than a barrier each turn. Each
/// says for turn 0, 1, ... when its part is done, and waits, before it begins turn 2 or a later
/// one, until all have done the last turn but one.
template <int kWarps>
class Turns {
 public:
  /// To be called by all threads of the block. `barriers` is in shared memory.
  __device__ explicit Turns(std::uint64_t (&barriers)[2]) : barriers_(barriers) {
#ifdef __CUDA_ARCH__
    if (threadIdx.x < 2) {
      asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(address(threadIdx.x)),
                   "r"(32 * kWarps)
                   : "memory");
    }
#endif
    __syncthreads();
  }
  /// Says that this thread's part of a turn is done. Every thread says so for itself: one for all
  /// of its warp would be right after __syncwarp(), but compute-sanitizer cannot know.
  __device__ void done([[maybe_unused]] int turn) const {
#ifdef __CUDA_ARCH__
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(address(turn % 2)) : "memory");
#endif
  }
  /// Waits until all warps have done a turn. To be called where all are known to have done the last
  /// but one before it: otherwise it may return at once.
  __device__ void wait([[maybe_unused]] int turn) const {
#ifdef __CUDA_ARCH__
    unsigned reached;
    do {
      asm volatile(
          "{\n .reg .pred reached;\n"
          " mbarrier." JIBOIA_MBARRIER_WAIT
          ".parity.shared::cta.b64 reached, [%1], %2;\n"
          " selp.u32 %0, 1, 0, reached;\n}"
          : "=r"(reached)
          : "r"(address(turn % 2)), "r"(turn / 2 % 2)
          : "memory");
    } while (!reached);
#else
    meet();
#endif
  }
  /// For a warp that is none of the kWarps, while they do so many turns.
  __device__ static void stay_away([[maybe_unused]] int turns) {
#ifndef __CUDA_ARCH__
    for (int turn = 2; turn < turns; ++turn) meet();
#endif
  }

 private:
#ifdef __CUDA_ARCH__
  __device__ unsigned address(int i) const {
    return static_cast<unsigned>(__cvta_generic_to_shared(&barriers_[i]));
  }
#else
  __device__ static void meet() { __syncthreads(); }
#endif
  std::uint64_t (&barriers_)[2];
};

}  // namespace jiboia::cuda

#undef JIBOIA_MBARRIER_WAIT
