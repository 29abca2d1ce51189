#include "kernels/selective_scan/selective_scan_backward_lanes.cuh"
#include "kernels/selective_scan/selective_scan_backward_tiles.cuh"

namespace jiboia::scan_tiles {
namespace {

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
constexpr int kRing = 4, kWideRing = 8;

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

constexpr int kChunkSums = kChunk * kRowStates, kPeriodSums = kPeriodChunks * kChunkSums;
struct BlockShared {
  float tables[kWideRing][2][kChunk][kStates];     ///< b and c in fp32
  float sums[kWideRing][kBlockTiles][kChunkSums];  ///< over a tile's channels, for grad_b, grad_c
  WarpShared warps[kBlockTiles];
  TablePlace table_places[kBlockThreads];
  std::uint64_t turns[2];
  int worker;
};
static_assert(kPeriodSums == kBlockThreads, "a thread adds up one sum of a period");

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

/// Keeps the warps of a block less than a turn apart: cheaper than a barrier each turn.
class Turns {
 public:
  __device__ explicit Turns(std::uint64_t (&barriers)[2]) : barriers_(barriers) {
#ifdef __CUDA_ARCH__
    if (threadIdx.x < 2) {
      asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(address(threadIdx.x)),
                   "r"(kBlockTiles)
                   : "memory");
    }
#endif
    __syncthreads();
  }
  /// Says that this warp is past the middle of turn `turn`; to be said of every turn.
  __device__ void done([[maybe_unused]] unsigned turn) const {
    __syncwarp();
#ifdef __CUDA_ARCH__
    if (threadIdx.x % 32 == 0) {
      asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(address(turn % 2)) : "memory");
    }
#endif
  }
  /// Waits until all warps have said so of turn `turn`, the last one.
  __device__ void wait([[maybe_unused]] unsigned turn) const {
#ifdef __CUDA_ARCH__
    unsigned reached;
    do {
      asm volatile(
          "{\n .reg .pred reached;\n"
          " mbarrier.try_wait.parity.shared::cta.b64 reached, [%1], %2;\n"
          " selp.u32 %0, 1, 0, reached;\n}"
          : "=r"(reached)
          : "r"(address(turn % 2)), "r"(turn / 2 % 2)
          : "memory");
    } while (!reached);
#else
    __syncthreads();
#endif
  }

 private:
#ifdef __CUDA_ARCH__
  __device__ unsigned address(unsigned i) const {
    return static_cast<unsigned>(__cvta_generic_to_shared(&barriers_[i]));
  }
#endif
  [[maybe_unused]] std::uint64_t (&barriers_)[2];
};

/// Sums over the 4 state lanes, of 4 values of each step: state lane `step` gets those of `step`.
/// Method: a product with a matrix of 0 and 1, in which each value is cut to 11 bits, so up to
/// 2^-10 of itself too small. (Shuffles take twice as long.)
class StateSums {
 public:
  /// `is_lane`: whether this is channel lane 2 * step, and the one behind it.
  __device__ void add(const float (&values)[4], [[maybe_unused]] int step,
                      [[maybe_unused]] const float2& is_lane) {
#ifdef __CUDA_ARCH__
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(__float_as_uint(values[0])), "r"(__float_as_uint(values[2])),
          "r"(__float_as_uint(values[1])), "r"(__float_as_uint(values[3])),
          "r"(__float_as_uint(is_lane.x)), "r"(__float_as_uint(is_lane.y)));
#else
    for (int i = 0; i < 4; ++i) {
      float sum = __uint_as_float(__float_as_uint(values[i]) & 0xFFFFE000U);
      sum += __shfl_xor_sync(kAllLanes, sum, 1);
      sum += __shfl_xor_sync(kAllLanes, sum, 2);
      if (static_cast<int>(threadIdx.x) % kStateLanes == step) sums[i] += sum;
    }
#endif
  }
  float sums[4] = {};
};

/// A warp with its tile. Work on three chunks overlaps, so that there is always something to do
/// while other things wait: while a chunk goes through its steps, what depends on no state is
/// prepared for the next one (stage()), and the results of the last one are written (finish()).
template <bool kDocuments, bool kPlain>
class TileScan {
 public:
  __device__ TileScan(const BackwardTiles& pass, BlockShared& block)
      : pass_(pass),
        shared_(block.warps[threadIdx.x / 32]),
        lane_(threadIdx.x % 32),
        at_g_(kept(offset_of(shared_.staged[0][0][lane_ / kStateLanes]))),
        at_step_(kept(at_g_ + lane_ % kStateLanes * (kColumns * kVector))),
        at_lane_(kept(offset_of(shared_) + lane_ * kVector)) {
    if (q() < 2) {
      float* is_lane = reinterpret_cast<float*>(&shared_.is_lane[q()][g()]);
      for (unsigned i = 0; i < 4; ++i) is_lane[i] = g() == q() * 4 + i ? 1.f : 0.f;
    }
  }

  /// Begins a piece of the tile's channels from `first_channel` on. Nothing is written but what
  /// store_sums() and hand_over() say unless `writes`.
  __device__ void begin(int batch, int first_channel, const Piece& piece, bool writes) {
    const auto first_step = static_cast<unsigned>(piece.begin) * kPeriod;
    const auto row = static_cast<unsigned>(batch) * static_cast<unsigned>(pass_.L) + first_step;
    const auto channel = static_cast<unsigned>(first_channel);
    steps_ = static_cast<unsigned>(pass_.L) - first_step;
    written_steps_ =
        writes ? min(steps_, static_cast<unsigned>(piece.end) * kPeriod - first_step) : 0;
    const TileRows<bf16> from[kArrays] = {pass_.u, pass_.dt, pass_.grad_y, pass_.z, pass_.y};
    const TileRows<bf16> to[kResults] = {pass_.grad_u, pass_.grad_dt, pass_.grad_z};
#pragma unroll
    for (int i = 0; i < kArrays; ++i) {
      shared_.places[i / 2][lane_].of[i % 2] =
          reinterpret_cast<std::byte*>(from[i].at(row + lane_ / 4, channel + lane_ % 4 * 8));
    }
#pragma unroll
    for (int i = 0; i < kResults; ++i) {
      shared_.results[i / 2][lane_].of[i % 2] =
          reinterpret_cast<std::byte*>(to[i].at(row + q(), channel + g() * kLaneChannels));
    }
    shared_.places[kArrays / 2][lane_].of[1] = reinterpret_cast<std::byte*>(
        const_cast<Line*>(pass_.states) +
        first_line(batch, pass_.chunks, piece.begin * kPeriodChunks, pass_.D, first_channel) +
        lane_);
    first_step_ = first_step;
    row_ = row;
    channel_ = channel + g() * kLaneChannels;
#pragma unroll
    for (int i = 0; i < kLaneChannels; ++i) {
      const std::int64_t d = channel_ + static_cast<unsigned>(i);
      unpack(*reinterpret_cast<const float4*>(pass_.a_log + d * kStates + q() * kLaneStates),
             rate_[i]);
#pragma unroll
      for (int j = 0; j < kLaneStates; ++j) {
        rate_[i][j] = scan_cuda::decay_rate(rate_[i][j]);
        gamma_[i][j] = 0;
        rate_sum_[i][j] = 0;
      }
      d_skip_sum_[i] = 0;
      dt_bias_sum_[i] = 0;
    }
    if (q() == 0) {
      shared_.dt_bias[g()] = *reinterpret_cast<const float4*>(pass_.dt_bias + channel_);
      shared_.d_skip[g()] = *reinterpret_cast<const float4*>(pass_.d_skip + channel_);
    }
  }

  /// Starts to bring the period that begins with the piece's step t, the chunks `count` and
  /// `count` + 1. What lies behind the row's end gets no weight: delta and the gradient of y are 0
  /// there.
  template <bool kWhole>
  __device__ void load(unsigned t, unsigned count) {
    static_assert(kArrays % 2 == 1);
    const unsigned step = lane_ / 4;
    const bool present = kWhole || t + step < steps_;
    const unsigned strides[kArrays] = {pass_.u.stride_bytes, pass_.dt.stride_bytes,
                                       pass_.grad_y.stride_bytes, pass_.z.stride_bytes,
                                       pass_.y.stride_bytes};
    const std::byte* from[kArrays + 1];
#pragma unroll
    for (int i = 0; i <= kArrays; ++i) {
      from[i] = shared_at<Places>(at_lane_ + offsetof(WarpShared, places) + i / 2 * 32 * kVector)
                    .of[i % 2];
    }
    const unsigned chunk_bytes = static_cast<unsigned>(pass_.D) * (kStates * sizeof(bf16));
    from[kArrays] += std::uint64_t{t / kChunk} * chunk_bytes;
    // The chunk of the later steps comes first.
    const unsigned at = at_lane_ + (count + 1) % kRing * (kChunk * 4 * kVector) -
                        lane_ / 16 * (2 * kChunk * 4 * kVector);
#pragma unroll
    for (int i = 0; i < kArrays; ++i) {
      uint4* to = &shared_at<uint4>(at + offsetof(WarpShared, rows) + i * sizeof(shared_.rows[0]));
      if (i == kDt && !present) {
        constexpr unsigned kMinusInfinities = 0xFF80FF80;  // softplus makes 0 of it
        *to = make_uint4(kMinusInfinities, kMinusInfinities, kMinusInfinities, kMinusInfinities);
      } else {
        cuda::async_copy<16>(to, from[i] + std::uint64_t{t} * strides[i], present);
      }
    }
    const unsigned states =
        at_lane_ + count % kRing * (2 * 32 * kVector) + offsetof(WarpShared, states);
#pragma unroll
    for (unsigned i = 0; i < kPeriodChunks; ++i) {
      const bool there = kWhole || t + i * kChunk < steps_;
#pragma unroll
      for (unsigned k = 0; k < 2; ++k) {
        cuda::async_copy<16>(&shared_at<uint4>(states + (2 * (1 - i) + k) * 32 * kVector),
                             from[kArrays] + k * 32 * kVector, there);
      }
      from[kArrays] += chunk_bytes;
    }
    if (kDocuments && lane_ % 4 == 0) {
      const bool has = present && pass_.document_start;
      cuda::async_copy<4>(
          &shared_.document_start[count % kRing + 1 - lane_ / 16][lane_ / 4 % kChunk],
          pass_.document_start + (has ? row_ + t + step : 0), has);
    }
  }

  /// Prepares a piece's first chunk, number `count`, with its steps from t on, once its rows are
  /// there.
  __device__ void prepare(unsigned count, unsigned t) {
    stage(count, t);
    // The chunk before it, which is none, has no results.
    const unsigned last = staged_own(count - 1);
    for (Column which : {kDelta, kStagedGradY, kSlope, kStagedU, kStep}) {
      column(last, which) = make_float4(0, 0, 0, 0);
    }
    gamma_b_ = StateSums();
    gamma_rate_ = StateSums();
    __syncwarp();
  }
  /// Takes gamma through the chunk `count`, with the piece's steps from t on, prepares the next one
  /// and writes the results of the last one.
  __device__ void chunk(unsigned count, unsigned t) {
    LaneTile decay[kChunk], state[kChunk];
    // In the order that left the fewest gaps: ptxas moves little across the lines.
    finish(count - 1, t + kChunk);
    stage(count + 1, t - kChunk);
    get_state(count, state[0]);
    walk_forward<0, 2>(count, decay, state);
    sum_channels(count - 1);
    walk_forward<2, kChunk>(count, decay, state);
    __syncwarp();
    walk_backward(count, decay, state);
    __syncwarp();
  }
  /// Writes the results of a piece's last chunk.
  __device__ void flush(unsigned count, unsigned t) {
    sum_channels(count);
    finish(count, t);
  }
  /// Gives the sums over the steps of piece `index` to the partials; that of a row's last piece
  /// writes zeros for those that the row does not have.
  __device__ void store_sums(int batch, int index, bool is_last) {
#pragma unroll
    for (int i = 0; i < kLaneChannels; ++i) {
#pragma unroll
      for (int j = 0; j < kLaneStates; ++j) rate_sum_[i][j] *= rate_[i][j] * kLn2;
#pragma unroll
      for (int lanes = 1; lanes < kStateLanes; lanes *= 2) {
        d_skip_sum_[i] += __shfl_xor_sync(kAllLanes, d_skip_sum_[i], lanes);
        dt_bias_sum_[i] += __shfl_xor_sync(kAllLanes, dt_bias_sum_[i], lanes);
      }
    }
    const int end = is_last ? static_cast<int>(pass_.partials.pieces) : index + 1;
#pragma unroll 1
    for (int piece = index; piece < end; ++piece) {
      const std::int64_t d = (std::int64_t{piece} * pass_.B + batch) * pass_.D + channel_;
#pragma unroll
      for (int i = 0; i < kLaneChannels; ++i) {
        *reinterpret_cast<float4*>(pass_.partials.a_log + (d + i) * kStates + q() * kLaneStates) =
            pack(rate_sum_[i]);
#pragma unroll
        for (float& sum : rate_sum_[i]) sum = 0;
      }
      if (q() == 0) {
        *reinterpret_cast<float4*>(pass_.partials.d_skip + d) = pack(d_skip_sum_);
        *reinterpret_cast<float4*>(pass_.partials.dt_bias + d) = pack(dt_bias_sum_);
      }
#pragma unroll
      for (int i = 0; i < kLaneChannels; ++i) d_skip_sum_[i] = dt_bias_sum_[i] = 0;
    }
  }

  /// Hands gamma over to the worker that has the row's other piece.
  __device__ void hand_over(std::int64_t row) const {
    const std::int64_t tile = row * kBlockTiles + threadIdx.x / 32;
    float4* to = pass_.partials.gamma + tile * Partials::kTileVectors + lane_;
#pragma unroll
    for (int i = 0; i < kLaneChannels; ++i) to[i * 32] = pack(gamma_[i]);
    __threadfence();
    __syncwarp();
    if (lane_ == 0) cuda::store_release(pass_.partials.counters + 1 + tile, 1);
  }
  /// Waits for what hand_over() gives.
  __device__ void take_over(std::int64_t row) {
    const std::int64_t tile = row * kBlockTiles + threadIdx.x / 32;
    while (cuda::load_acquire(pass_.partials.counters + 1 + tile) == 0) {
    }
    const float4* from = pass_.partials.gamma + tile * Partials::kTileVectors + lane_;
#pragma unroll
    for (int i = 0; i < kLaneChannels; ++i) unpack(__ldcg(from + i * 32), gamma_[i]);
  }
  /// Puts gamma together from what the pass ahead found for the row's pieces in front of `index`.
  __device__ void gather(std::int64_t row, int index) {
    const std::int64_t first = row * pass_.partials.pieces * kAheadParts;
#pragma unroll 1
    for (int part = 0; part < index * kAheadParts; ++part) {
      const std::int64_t tile = (first + part) * kBlockTiles + threadIdx.x / 32;
      const float4* from = pass_.partials.gamma + tile * Partials::kTileVectors + lane_;
      PerChannel delta;
      unpack(pass_.partials.delta[tile * Partials::kDeltaVectors + g()], delta);
#pragma unroll
      for (int i = 0; i < kLaneChannels; ++i) {
        PerState added;
        unpack(from[i * 32], added);
#pragma unroll
        for (int j = 0; j < kLaneStates; ++j) {
          gamma_[i][j] = fmaf(cuda::exp2_approx(delta[i] * rate_[i][j]), gamma_[i][j], added[j]);
        }
      }
    }
  }

 private:
  static constexpr unsigned kVector = sizeof(float4), kStagedBytes = kChunk * kColumns * kVector;

  __device__ unsigned g() const { return lane_ / kStateLanes; }
  __device__ unsigned q() const { return lane_ % kStateLanes; }

  /// The value, not to be computed again wherever it is needed.
  __device__ static unsigned kept(unsigned value) {
    return __shfl_sync(kAllLanes, value, static_cast<int>(threadIdx.x) % 32);
  }
  /// The offset of step 0 of a staged chunk, for the lane's channels, and of step q.
  __device__ unsigned staged(unsigned count) const { return at_g_ + count % 2 * kStagedBytes; }
  __device__ unsigned staged_own(unsigned count) const {
    return at_step_ + count % 2 * kStagedBytes;
  }
  __device__ static float4& column(unsigned step, Column which) {
    return shared_at<float4>(step + which * kVector);
  }
  /// The lane's part of the state before a chunk.
  __device__ void get_state(unsigned count, LaneTile& to) const {
#pragma unroll
    for (unsigned k = 0; k < 2; ++k) {
      const Line line = shared_at<Line>(at_lane_ + offsetof(WarpShared, states) +
                                        count % kRing * (2 * 32 * kVector) + k * 32 * kVector);
      float values[kLineSize];
      cuda::unpack<bf16>(line, values);
#pragma unroll
      for (int i = 0; i < static_cast<int>(kLineSize); ++i) to[2 * k + i / 4][i % 4] = values[i];
    }
  }
  /// The lane's states of a step in a table of b or c.
  __device__ void get_row(unsigned count, int which, int t, PerState& to) const {
    constexpr unsigned kChunkBytes = 2 * kChunk * kStates * sizeof(float);
    unpack(shared_at<float4>(offsetof(BlockShared, tables) + count % kWideRing * kChunkBytes +
                             static_cast<unsigned>(which * kChunk + t) * (kStates * sizeof(float)) +
                             q() * kVector),
           to);
  }

  /// Whatever is the same for all states, at step q of a chunk: leaves it in shared memory, and
  /// writes grad_z. With silu(z) = z * s it is g * y / silu(z) * silu'(z) = g * y * (1 / z + 1 -
  /// s).
  __device__ void stage(unsigned count, unsigned t) {
    const unsigned to = staged_own(count);
    const auto get = [&](Array array, PerChannel& values) {
      const auto* of_step = reinterpret_cast<const uint2*>(shared_.rows[array][count % kRing]);
      const uint2 packed = of_step[q() * kChannelLanes + g()];
      if (array == kU) reinterpret_cast<uint2&>(column(to, kStagedU)) = packed;
      unpack(packed, values);
    };
    PerChannel u, dt, grad_y, z, y, bias, delta, delta_u, slope, grad_z;
    get(kU, u);
    get(kDt, dt);
    get(kGradY, grad_y);
    get(kZ, z);
    get(kY, y);
    unpack(shared_.dt_bias[g()], bias);
#pragma unroll
    for (int i = 0; i < kLaneChannels; ++i) {
      const float x = dt[i] + bias[i];
      const Softplus step(x);
      const float r = cuda::reciprocal_approx(1 + step.e);
      slope[i] = x < 0 ? step.e * r : r;
      delta[i] = step.value;
      delta_u[i] = delta[i] * u[i];
      const float at = gate_argument(z[i]);
      const float s = cuda::reciprocal_approx(1 + cuda::exp2_approx(at * -kLog2E));
      grad_z[i] = grad_y[i] * (y[i] * (cuda::reciprocal_approx(at) + (1 - s)));
      grad_y[i] *= at * s;
    }
    if (kDocuments) {
      column(to, kStep) = pack(delta);
      const bool begins = pass_.document_start && shared_.document_start[count % kRing][q()] ==
                                                      static_cast<int>(first_step_ + t + q());
#pragma unroll
      for (float& value : delta) value = begins ? scan_cuda::kResetDelta : value;
    }
    column(to, kDelta) = pack(delta);
    column(to, kDeltaU) = pack(delta_u);
    column(to, kStagedGradY) = pack(grad_y);
    column(to, kSlope) = pack(slope);
    store(kGradZ, pass_.grad_z, pass_.z_mode, t, grad_z);
  }

  /// Takes the state through steps of a chunk; keeps decays and states. state[0] begins as the one
  /// before the chunk.
  template <int kBegin, int kEnd>
  __device__ void walk_forward(unsigned count, LaneTile (&decay)[kChunk],
                               LaneTile (&state)[kChunk]) const {
#pragma unroll
    for (int t = kBegin; t < kEnd; ++t) {
      const unsigned at = staged(count) + static_cast<unsigned>(t) * (kColumns * kVector);
      PerChannel delta, delta_u;
      PerState b;
      unpack(column(at, kDelta), delta);
      unpack(column(at, kDeltaU), delta_u);
      get_row(count, 0, t, b);
#pragma unroll
      for (int i = 0; i < kLaneChannels; ++i) {
#pragma unroll
        for (int j = 0; j < kLaneStates; ++j) {
          const float last = state[t == 0 ? 0 : t - 1][i][j];
          decay[t][i][j] = cuda::exp2_approx(delta[i] * rate_[i][j]);
          state[t][i][j] = fmaf(decay[t][i][j], last, delta_u[i] * b[j]);
        }
      }
    }
  }

  /// Takes gamma back through the chunk, and leaves parts of grad_b and grad_c for sum_channels().
  __device__ void walk_backward(unsigned count, const LaneTile (&decay)[kChunk],
                                const LaneTile (&state)[kChunk]) {
    gamma_b_ = StateSums();
    gamma_rate_ = StateSums();
#pragma unroll
    for (int t = kChunk - 1; t >= 0; --t) {
      LaneTile before;
      if (t == 0) get_state(count, before);
      const unsigned at = staged(count) + static_cast<unsigned>(t) * (kColumns * kVector);
      PerChannel delta, delta_u, grad_y, with_b, with_rate;
      PerState b, c, grad_b, grad_c;
      unpack(column(at, kDelta), delta);
      unpack(column(at, kDeltaU), delta_u);
      unpack(column(at, kStagedGradY), grad_y);
      get_row(count, 0, t, b);
      get_row(count, 1, t, c);
#pragma unroll
      for (int i = 0; i < kLaneChannels; ++i) {
#pragma unroll
        for (int j = 0; j < kLaneStates; ++j) {
          const float last = t == 0 ? before[i][j] : state[t - 1][i][j];
          const float g = fmaf(grad_y[i], c[j], gamma_[i][j]);
          add(i, grad_y[i], state[t][i][j], grad_c[j]);
          add(i, delta_u[i], g, grad_b[j]);
          add(j, g, b[j], with_b[i]);
          gamma_[i][j] = g * decay[t][i][j];
          const float g_decayed = gamma_[i][j] * last;
          add(j, rate_[i][j], g_decayed, with_rate[i]);
          rate_sum_[i][j] = fmaf(delta[i], g_decayed, rate_sum_[i][j]);
        }
      }
      const unsigned to = at_lane_ + offsetof(WarpShared, exchange) +
                          static_cast<unsigned>(t) * sizeof(shared_.exchange[0]);
      shared_at<float4>(to) = pack(grad_b);
      shared_at<float4>(to + sizeof(shared_.exchange[0][0])) = pack(grad_c);
      const float2 is_lane = reinterpret_cast<const float2*>(&shared_.is_lane[t / 2][g()])[t % 2];
      gamma_b_.add(with_b, t, is_lane);
      gamma_rate_.add(with_rate, t, is_lane);
    }
  }

  /// Adds up what the channel lanes left of a chunk, in order, and gives it to the block's sums.
  __device__ void sum_channels(unsigned count) const {
    const float4* from = &shared_.exchange[lane_ / 8][lane_ / 4 % 2][lane_ % 4];
    float4 sum = from[0];
#pragma unroll
    for (int i = 1; i < kChannelLanes; ++i) {
      const float4 part = from[i * kStateLanes];
      sum.x += part.x;
      sum.y += part.y;
      sum.z += part.z;
      sum.w += part.w;
    }
    constexpr unsigned kTileBytes = kChunkSums * sizeof(float);
    if (written_steps_ != 0)
      shared_at<float4>(offsetof(BlockShared, sums) +
                        count % kWideRing * (kBlockTiles * kTileBytes) +
                        threadIdx.x / 32 * kTileBytes + lane_ * kVector) = sum;
  }

  /// Writes grad_u and grad_dt at step q of a chunk, from the sums over states.
  __device__ void finish(unsigned count, unsigned t) {
    const unsigned from = staged_own(count);
    PerChannel u, delta, grad_y, slope, d_skip, grad_u, grad_dt;
    unpack(reinterpret_cast<const uint2&>(column(from, kStagedU)), u);
    unpack(column(from, kDocuments ? kStep : kDelta), delta);
    unpack(column(from, kStagedGradY), grad_y);
    unpack(column(from, kSlope), slope);
    unpack(shared_.d_skip[g()], d_skip);
#pragma unroll
    for (int i = 0; i < kLaneChannels; ++i) {
      const float gamma_b = gamma_b_.sums[i], gamma_rate = gamma_rate_.sums[i];
      grad_u[i] = fmaf(d_skip[i], grad_y[i], delta[i] * gamma_b);
      grad_dt[i] = slope[i] * fmaf(u[i], gamma_b, kLn2 * gamma_rate);
      dt_bias_sum_[i] += grad_dt[i];
      d_skip_sum_[i] = fmaf(grad_y[i], u[i], d_skip_sum_[i]);
    }
    store(kGradU, pass_.grad_u, pass_.u_mode, t, grad_u);
    store(kGradDt, pass_.grad_dt, pass_.dt_mode, t, grad_dt);
  }

  /// Writes the lane's values at step q of the chunk that begins with step t.
  __device__ void store(Result result, const TileRows<bf16>& rows, GradMode mode, unsigned t,
                        const PerChannel& values) const {
    const bool write = t + q() < written_steps_;
    std::byte* first =
        shared_at<Places>(at_lane_ + offsetof(WarpShared, results) + result / 2 * 32 * kVector)
            .of[result % 2];
    bf16* to = reinterpret_cast<bf16*>(first + std::uint64_t{t} * rows.stride_bytes);
    if (kPlain) {
      cuda::store_streaming(to, cuda::pack<bf16>(values).at, write);
    } else if (rows && write) {
      cuda::put(mode, to, values);
    }
  }

  /// sum = a * b for the first of the terms, sum + a * b for the others.
  __device__ static void add(int term, float a, float b, float& sum) {
    sum = term == 0 ? a * b : fmaf(a, b, sum);
  }

  const BackwardTiles& pass_;
  WarpShared& shared_;
  const unsigned lane_;
  const unsigned at_g_, at_step_;  ///< offset of what is staged for the lane's channels; step q's
  const unsigned at_lane_;         ///< offset of the warp's memory, and a vector a lane further
  unsigned row_ = 0, channel_ = 0;
  unsigned first_step_ = 0;     ///< of the piece
  unsigned steps_ = 0;          ///< from the first one to the row's end
  unsigned written_steps_ = 0;  ///< of the piece
  LaneTile rate_, gamma_, rate_sum_;
  PerChannel d_skip_sum_, dt_bias_sum_;
  StateSums gamma_b_, gamma_rate_;  ///< of the last chunk
};

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

/// Grid `workers`, block kBlockThreads, 210 KiB of shared memory, so one block a multiprocessor.
/// Limited by instruction issue: about 18 instructions a state and step, of which 12 are the two
/// recurrences and their sums.
template <bool kDocuments, bool kPlain>
__global__ void __launch_bounds__(kBlockThreads, 1)
    scan_backward_tiles(const __grid_constant__ BackwardTiles pass) {
  BlockShared& shared = *reinterpret_cast<BlockShared*>(cuda::dynamic_shared());
  // A worker waits for a worker with a lower number only, and only for what that one does first of
  // all and waits for nobody. Numbers are given in the order in which blocks begin, so whoever is
  // waited for is at work already: however few blocks find a place at a time, all come to an end.
  if (threadIdx.x == 0) shared.worker = atomicAdd(pass.partials.counters, 1);
  for (auto& of_chunk : shared.sums) {  // of the tiles that a block at the last channels lacks
    for (auto& of_tile : of_chunk) of_tile[threadIdx.x % kChunkSums] = 0;
  }
  const Turns turns(shared.turns);
  const Schedule& schedule = pass.schedule;
  const std::int64_t worker = shared.worker;
  const std::int64_t first_row = schedule.begin(worker) / schedule.periods;
  const std::int64_t last_row = (schedule.begin(worker + 1) - 1) / schedule.periods;

  TileScan<kDocuments, kPlain> scan(pass, shared);
  TableLoader loader(pass, shared);
  unsigned count = 0;  // of chunks; a period is a turn
#pragma unroll 1
  for (std::int64_t row = last_row; row >= first_row; --row) {
    const Piece piece(schedule, worker, row);
    const int batch = static_cast<int>(row / schedule.blocks);
    const int block = static_cast<int>(row % schedule.blocks);
    const int first_channel =
        (block * kBlockTiles + static_cast<int>(threadIdx.x) / 32) * static_cast<int>(kChannels);
    // A warp for which the block has no channels left repeats the last ones, for nobody.
    const bool active = first_channel < pass.D;
    float* sums =
        pass.partials.b_c +
        ((std::int64_t{block} * pass.B + batch) * schedule.periods + piece.end) * kPeriodSums +
        threadIdx.x;
    const unsigned steps = static_cast<unsigned>(piece.end - piece.begin) * kPeriod;
    unsigned t = steps - kPeriod;  // the period's first step, from the piece's
    loader.begin(batch, piece);
    loader.load(t);
    loader.store(count);
    loader.load(t - kPeriod);
    loader.store(count + kPeriodChunks);
    loader.load(t - 2 * kPeriod);
    scan.begin(batch, min(first_channel, pass.D - static_cast<int>(kChannels)), piece, active);
    __syncwarp();
    scan.template load<false>(t, count);
    if (piece.index > 0 && active) {
      if (schedule.at_once()) {
        scan.gather(row, piece.index);
      } else {
        scan.take_over(row);
      }
    }
    cuda::async_copies_commit();
    cuda::async_copies_wait<0>();
    __syncthreads();
    scan.prepare(count, t + kChunk);
#pragma unroll 1
    for (;; t -= kPeriod) {
      if (t + 2 * kPeriod < steps) {
        turns.wait(count / kPeriodChunks - 1);
        sums -= kPeriodSums;
        *sums = sum_warps(shared, count - 2 * kPeriodChunks);
      }
      loader.store(count + 2 * kPeriodChunks);
      loader.load(t - 3 * kPeriod);
      if (t > 0) scan.template load<true>(t - kPeriod, count + kPeriodChunks);
      cuda::async_copies_commit();
#pragma unroll 1
      for (unsigned i = 0; i < kPeriodChunks; ++i) {
        if (i == 1) {
          turns.done(count / kPeriodChunks);
          cuda::async_copies_wait<0>();
          __syncwarp();
        }
        scan.chunk(count, t + kChunk - i * kChunk);
        ++count;
      }
      if (t == 0) break;
    }
    scan.flush(count - 1, 0);
    __syncthreads();
    if (steps > kPeriod) {
      sums -= kPeriodSums;
      *sums = sum_warps(shared, count - 2 * kPeriodChunks);
    }
    sums -= kPeriodSums;
    *sums = sum_warps(shared, count - kPeriodChunks);
    if (active) {
      scan.store_sums(batch, piece.index, piece.begin == 0);
      if (piece.begin > 0 && !schedule.at_once()) scan.hand_over(row);
    }
    __syncthreads();
  }
}

/// 32-bit counters hold every index of a step.
int counter(const char* what, std::int64_t value) {
  constexpr std::int64_t kLargest = INT_MAX - 4 * kPeriod;
  require(value <= kLargest, ErrorKind::kUnsupported,
          "{}: {} is {}, the CUDA backend takes at most {}", SelectiveScan::kName, what, value,
          kLargest);
  return static_cast<int>(value);
}

/// Errors: Unsupported unless every vector of kCount elements is one access.
template <int kCount>
TileRows<bf16> tile_rows(const char* what, const Tensor& tensor) {
  require(
      cuda::takes_vectors<kCount>(tensor), ErrorKind::kUnsupported,
      "{}: rows of {} begin at {} and are {} elements apart, expected multiples of {} bytes: keep "
      "slices of columns aligned",
      SelectiveScan::kName, what, tensor.data, tensor.row_stride, kCount * 2);
  counter("the distance between rows", 2 * tensor.row_stride);
  return TileRows<bf16>(tensor);
}

}  // namespace

std::int64_t backward_tiles_scratch_bytes(const SelectiveScan::In<Spec>& in) {
  const std::int64_t B = in.u.shape[0], L = in.u.shape[1], D = in.u.shape[2];
  return Partials::bytes(B, D, Schedule(B, L, D));
}

void backward_tiles(CudaExec& gpu, const BackwardArgs<SelectiveScan>& args) {
  const auto& in = args.in;
  const std::int64_t B = in.u.shape[0], L = in.u.shape[1], D = in.u.shape[2];
  counter("B * L", B * L);
  const Schedule schedule(B, L, D);
  const auto& to = args.grad_in;
  const auto overwrites = [](const Grad& grad) {
    return grad && grad.mode == GradMode::kOverwrite;
  };
  const BackwardTiles pass{
      .u = tile_rows<8>("u", in.u),
      .dt = tile_rows<8>("dt", in.dt),
      .b = TileRows<bf16>(in.b),
      .c = TileRows<bf16>(in.c),
      .z = tile_rows<8>("z", in.z),
      .y = tile_rows<8>("y", args.out.y),
      .grad_y = tile_rows<8>("the gradient of y", args.grad_out.y),
      .grad_u = tile_rows<4>("the gradient of u", to.u),
      .grad_dt = tile_rows<4>("the gradient of dt", to.dt),
      .grad_z = tile_rows<4>("the gradient of z", to.z),
      .u_mode = to.u.mode,
      .dt_mode = to.dt.mode,
      .z_mode = to.z.mode,
      .writes_all = overwrites(to.u) && overwrites(to.dt) && overwrites(to.z),
      .a_log = in.a_log.as<float>(),
      .d_skip = in.d_skip.as<float>(),
      .dt_bias = in.dt_bias.as<float>(),
      .document_start = in.document_start ? in.document_start.as<std::int32_t>() : nullptr,
      .states = reinterpret_cast<const Line*>(args.out.states.as<bf16>()),
      .B = static_cast<int>(B),
      .L = static_cast<int>(L),
      .D = static_cast<int>(D),
      .chunks = static_cast<int>(ceil_div(L, kChunk)),
      .schedule = schedule,
      .partials = Partials(ScratchReader(args.scratch), B, D, schedule)};
  cuda::check(
      cudaMemsetAsync(pass.partials.counters, 0,
                      static_cast<std::size_t>(Partials::counter_count(schedule)) * sizeof(int),
                      gpu.stream()),
      SelectiveScan::kName);
  if (schedule.at_once()) scan_ahead(gpu, pass);
  const auto kernel = !pass.writes_all      ? scan_backward_tiles<true, false>
                      : pass.document_start ? scan_backward_tiles<true, true>
                                            : scan_backward_tiles<false, true>;
  cuda::launch(gpu, SelectiveScan::kName, kernel,
               {.grid = dim3(static_cast<unsigned>(schedule.workers)),
                .block = dim3(kBlockThreads),
                .shared_bytes = sizeof(BlockShared)},
               pass);
  sum_tiles(gpu, pass, to);
}

}  // namespace jiboia::scan_tiles
