#pragma once
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

/// The part of a GPU that runs the blocks of a kernel. One kernel runs at a time, its blocks one
/// after another, the threads of a block as fibers that change over where they wait for each other.
namespace jiboia::emulated {

/// One launch: call(context) is what a thread does.
struct KernelLaunch {
  dim3 grid, block;
  std::size_t shared_bytes = 0;
  const char* name = "";  ///< who launches, and where, for errors
  const char* file = "";
  unsigned line = 0;
  void (*call)(const void* context) = nullptr;
  const void* context = nullptr;
};

/// Returns when all threads have returned. A launch shape that no GPU takes gives the runtime's
/// error. A deadlock, a shuffle with a mask that lacks the caller, or a write past the dynamic
/// shared memory ends the process with a message that names the launch and the thread.
///
/// JIBOIA_EMULATED_ORDER = forward (default), backward or random is the order of blocks, and of
/// threads between two points where they wait; JIBOIA_EMULATED_SEED chooses the random one.
cudaError_t run_kernel(const KernelLaunch& launch);

// What kernels see as threadIdx, blockIdx, blockDim, gridDim, and as their dynamic shared memory.
extern uint3 thread_index, block_index;
extern dim3 block_size, grid_size;
extern std::byte* dynamic_shared_memory;

/// Line of a kernel that waits.
struct Site {
  const char* file = "";
  int line = 0;
};

/// What the threads of a warp do together.
enum class Collective : std::uint8_t { kSync, kShuffle, kBallot, kAdd, kMin, kMax };

/// Waits until every thread of `mask` is at this site with this mask. Returns, for kShuffle, the
/// `value` of lane `source` (all bits set when that lane takes no part); for kBallot, the lanes
/// whose value is not 0; for kAdd, kMin and kMax that of the values, taken as signed integers.
std::uint64_t collective(Collective kind, unsigned mask, std::uint64_t value, unsigned source,
                         Site site);

/// __syncthreads(): waits until all threads of the block are at this site; returns for how many of
/// them `predicate` holds.
int sync_block(bool predicate, Site site);

/// Index of this thread in its warp.
unsigned lane_index();

}  // namespace jiboia::emulated
