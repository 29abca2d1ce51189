#pragma once
#include "kernels/selective_scan/selective_scan.h"

/// The GPU's fast selective scan: bf16, 16 states a channel, tiles of 32 channels. Which scans take
/// it, and how the states look that its forward pass saves for its backward pass. All others take
/// the general one.
namespace jiboia::scan_tiles {

inline constexpr std::int64_t kChannels = 32;  ///< of a tile
inline constexpr std::int64_t kStates = 16;    ///< of a channel
/// Steps of a chunk. Saved is the state before each.
inline constexpr std::int64_t kSteps = 4;
/// Elements of a tile's saved state: kLines vectors of kLineSize, each read by one access.
inline constexpr std::int64_t kLineSize = 8;
inline constexpr std::int64_t kLines = kChannels * kStates / kLineSize;

/// The most shared memory that a block takes.
inline constexpr std::int64_t kSharedBytes = 224 * 1024;

/// Whether forward saves tiles, and backward reads them.
inline bool uses_tiles(const SelectiveScan::In<Spec>& in, const SelectiveScan::Attrs& attrs) {
  // Backward reads 8 elements of a row by one access.
  const auto aligned = [](const Spec& rows) { return rows.row_stride % 8 == 0; };
  return attrs.kernels == ScanKernels::kAny && in.u.dtype == Dtype::kBf16 &&
         in.a_log.shape[1] == kStates && in.u.shape[2] % kChannels == 0 && aligned(in.u) &&
         aligned(in.dt) && aligned(in.z) && !in.initial_state &&
         attrs.final_state == FinalState::kDiscard;
}

/// Saved states (B, ceil(L / kSteps), D * kStates), bf16: tile after tile, kLines lines each.
/// Line k * 32 + lane, with k = 0 or 1 and lane = 4 * g + q, has the channels 4 * g + 2 * k and the
/// one behind it, of each the states 4 * q to 4 * q + 3. (bf16, as states of 1e6 were seen.)
inline Spec states_spec(const Spec& u) {
  return Spec(Dtype::kBf16, {u.shape[0], ceil_div(u.shape[1], kSteps), u.shape[2] * kStates});
}

/// The place of a state in its tile: the element's index, of kLines * kLineSize.
constexpr std::int64_t place_in_tile(std::int64_t channel, std::int64_t state) {
  const std::int64_t g = channel / 4, k = channel % 4 / 2, q = state / 4;
  return (k * 32 + 4 * g + q) * kLineSize + channel % 2 * 4 + state % 4;
}

/// How warps share the work: each by itself, or with roles, which is faster where there are few.
enum class Warps { kAlone, kRoles };

/// Parts of a row that are scanned at the same time, by warps alone. A pass ahead finds the state
/// before each.
struct Segments {
  std::int64_t count = 1;
  /// Of each but the last. If there are several, a multiple of kSegmentUnit.
  std::int64_t steps = 0;
};
inline constexpr std::int64_t kSegmentUnit = 8;

/// How forward goes about a scan. It decides about the bits of the results.
struct ForwardPlan {
  /// The best for u (B, L, D), whatever the GPU.
  static ForwardPlan of(const Spec& u);
  Warps warps;
  Segments segments;
};

/// SelectiveScan::forward() where uses_tiles(). `args.scratch` has forward_scratch_bytes(). Errors:
/// Unsupported when u, dt or z are not aligned to 8 bytes.
void forward(CudaExec& gpu, const ForwardArgs<SelectiveScan>& args, const ForwardPlan& plan);
std::int64_t forward_scratch_bytes(const Spec& u, const ForwardPlan& plan);

}  // namespace jiboia::scan_tiles
