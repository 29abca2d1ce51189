#pragma once
#include "core/cuda/turns.cuh"
#include "kernels/selective_scan/selective_scan_backward_lanes.cuh"
#include "kernels/selective_scan/selective_scan_backward_tiles.cuh"

/// What the warps of a block have in common in the fast backward pass: its shared memory, how they
/// keep in step, the rows of b and c, and their sums for grad_b and grad_c.
namespace jiboia::scan_tiles {

/// What comes from memory for each step and channel.
enum Array { kU, kDt, kGradY, kZ, kY, kArrays };
/// What is written for each.
enum Result { kGradU, kGradDt, kGradZ, kResults };
/// What is the same for all states of a channel, at a step: vectors of the 4 channels of a lane, in
/// the order of channel lanes.
enum Column {
  kDelta = 0,  ///< where it makes the decay
  kDeltaU = kDelta + kChannelLanes,
  kStagedGradY = kDeltaU + kChannelLanes,  ///< of y before the gate
  kSlope = kStagedGradY + kChannelLanes,   ///< of softplus
  kStagedU = kSlope + kChannelLanes,       ///< bf16
  kStep = kStagedU + kChannelLanes,        ///< delta, at a document's first step too
  /// An odd multiple of 2, so that what 4 state lanes write lies in different banks.
  kColumns = kStep + kChannelLanes + 2
};

// Chunks are counted in the order in which they are done; chunk c has the place c % kRing of each
// ring, so a place is found by few instructions.
inline constexpr int kRing = 4, kWideRing = 8;

/// Two addresses in global memory, read at once.
struct alignas(16) Places {
  std::byte* of[2];
};

struct WarpShared {
  uint4 rows[kArrays][kRing][kChunk * 4];  ///< a step's 32 channels are 4 vectors
  Line states[kRing][2][32];
  float4 staged[2][kChunk][kColumns];
  float4 exchange[kChunk][2][32 + 4];  ///< parts of grad_b and grad_c
  float4 dt_bias[kChannelLanes], d_skip[kChannelLanes];
  float4 is_lane[2][kChannelLanes];      ///< of channel lane g: 1 at g, 0 at all others
  Places places[kArrays / 2 + 1][32];    ///< of the lane in the piece's first period
  Places results[kResults / 2 + 1][32];  ///< of the lane in the piece's first chunk
  int document_start[kRing][kChunk];
};

/// Of the value of b or c that a thread brings in each period.
struct alignas(16) TablePlace {
  const std::byte* from;  ///< in the piece's first period
  unsigned stride_bytes;  ///< of its rows
  unsigned to;            ///< in the first two places of BlockShared::tables
};

inline constexpr int kChunkSums = kChunk * kRowStates, kPeriodSums = kPeriodChunks * kChunkSums;
struct BlockShared {
  float tables[kWideRing][2][kChunk][kStates];     ///< b and c in fp32
  float sums[kWideRing][kBlockTiles][kChunkSums];  ///< over a tile's channels, for grad_b, grad_c
  WarpShared warps[kBlockTiles];
  TablePlace table_places[kBlockThreads];
  std::uint64_t turns[2];
  int worker;
};
static_assert(kPeriodSums == kBlockThreads, "a thread adds up one sum of a period");
static_assert(sizeof(BlockShared) <= kSharedBytes);

/// The object of type T at an offset in the block's shared memory.
template <class T>
__device__ T& shared_at(unsigned offset) {
  return *reinterpret_cast<T*>(cuda::dynamic_shared() + offset);
}
/// The offset of a member.
template <class T>
__device__ unsigned offset_of(const T& member) {
  return static_cast<unsigned>(reinterpret_cast<const std::byte*>(&member) -
                               cuda::dynamic_shared());
}

/// Writes to an offset in the block's shared memory where `present`.
__device__ inline void store_shared(unsigned offset, const float4& value, bool present) {
#ifdef __CUDA_ARCH__
  // By predicate, since a branch would part what is computed before it from what comes behind.
  const auto to = static_cast<unsigned>(__cvta_generic_to_shared(cuda::dynamic_shared() + offset));
  asm volatile(
      "{.reg .pred p; setp.ne.b32 p, %5, 0; @p st.shared.v4.f32 [%0], {%1, %2, %3, %4};}" ::"r"(to),
      "f"(value.x), "f"(value.y), "f"(value.z), "f"(value.w), "r"(static_cast<int>(present))
      : "memory");
#else
  if (present) shared_at<float4>(offset) = value;
#endif
}

/// Brings b and c of a period, a thread one of the values, in two acts: the second waits for the
/// first one's load.
class TableLoader {
 public:
  __device__ TableLoader(const BackwardTiles& pass, BlockShared& shared)
      : pass_(pass), at_(offset_of(shared.table_places[threadIdx.x])) {}

  __device__ void begin(int batch, const Piece& piece) {
    const unsigned state = threadIdx.x % static_cast<unsigned>(kStates);
    const unsigned is_c = threadIdx.x / static_cast<unsigned>(kStates) % 2;
    const auto first_step = static_cast<unsigned>(piece.begin) * kPeriod;
    const unsigned row =
        static_cast<unsigned>(batch) * static_cast<unsigned>(pass_.L) + first_step + step();
    steps_ = static_cast<unsigned>(pass_.L) - first_step;
    const TileRows<bf16>& rows = is_c ? pass_.c : pass_.b;
    const unsigned value = ((1 - step() / kChunk) * 2 + is_c) * kChunk + step() % kChunk;
    shared_at<TablePlace>(at_) = {reinterpret_cast<const std::byte*>(rows.at(row, state)),
                                  rows.stride_bytes,
                                  static_cast<unsigned>(offsetof(BlockShared, tables) +
                                                        (value * kStates + state) * sizeof(float))};
  }
  /// The period that begins with the piece's step t; t < 0: none.
  __device__ void load(unsigned t) {
    const TablePlace place = shared_at<TablePlace>(at_);
    const auto* from =
        reinterpret_cast<const unsigned short*>(place.from + std::uint64_t{t} * place.stride_bytes);
    value_ = 0;
    if (static_cast<int>(t) >= 0 && t + step() < steps_) value_ = __ldg(from);
    to_ = place.to;
  }
  /// The period has the chunks `count` and `count` + 1.
  __device__ void store(unsigned count) const {
    shared_at<float>(to_ + count % kWideRing * (2 * kChunk * kStates * sizeof(float))) =
        __uint_as_float(unsigned{value_} << 16);
  }

 private:
  __device__ static unsigned step() { return threadIdx.x / kRowStates; }

  const BackwardTiles& pass_;
  const unsigned at_;
  unsigned steps_ = 0;  ///< from the piece's first one to the row's end
  unsigned to_ = 0;
  unsigned short value_ = 0;
};

/// One of the (kPeriod, kRowStates) sums over a block's tiles, in order, of the period with the
/// chunks `count` and `count` + 1.
__device__ inline float sum_warps(const BlockShared& shared, unsigned count) {
  const unsigned later = threadIdx.x / kChunkSums;
  const auto& sums = shared.sums[count % kWideRing + 1 - later];
  float sum = sums[0][threadIdx.x % kChunkSums];
#pragma unroll
  for (int warp = 1; warp < kBlockTiles; ++warp) sum += sums[warp][threadIdx.x % kChunkSums];
  return sum;
}
}  // namespace jiboia::scan_tiles
