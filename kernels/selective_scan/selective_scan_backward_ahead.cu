#include "kernels/selective_scan/selective_scan_backward_lanes.cuh"
#include "kernels/selective_scan/selective_scan_backward_tiles.cuh"

namespace jiboia::scan_tiles {
namespace {

/// What comes from memory for each step and channel.
enum Array { kDt, kGradY, kZ, kArrays };

struct WarpShared {
  uint4 rows[2][kArrays][32];
  float4 c[2][kPeriod][kStateLanes];
  /// Of each step and channel, what a step takes.
  float4 delta[2][kPeriod][kChannelLanes + 2], grad_y[2][kPeriod][kChannelLanes + 2];
  float4 dt_bias[kChannelLanes];
  int document_start[2][kPeriod];
};
struct BlockShared {
  WarpShared warps[kBlockTiles];
  int worker;
};
static_assert(2 * sizeof(BlockShared) <= kSharedBytes);

/// Of a lane's states, so many are decayed by exp2_by_products().
constexpr int kByProducts = 2;

/// 2^x for x <= 0, within 2^-18 of itself, and for x near 0 within 2^-15 of what it lies below 1; 0
/// where that is denormal. It takes what the exponentials leave idle, products and sums: 2^x = 2^n
/// 2^r with an integer n and |r| <= 1/2, the latter by a minimax polynomial that is 1 at 0.
__device__ inline float exp2_by_products(float x) {
  // Adding it rounds to integers, and the sum's last bits are n + 127, a power of 2's exponent.
  constexpr float kShift = 0x1.8p23f + 127;
  const float above = cuda::max_or_nan(x, -127.f);
  const float shifted = above + kShift;
  const float r = above - (shifted - kShift);
  float p = 0x1.3a02d2p-7f;
  p = fmaf(p, r, 0x1.c9fc5cp-5f);
  p = fmaf(p, r, 0x1.ec0378p-3f);
  p = fmaf(p, r, 0x1.62e12cp-1f);
  p = fmaf(p, r, 1.f);
  return p * __int_as_float(__float_as_int(shifted) << 23);
}

/// A warp with its tile: takes the gradient of the state through a segment.
class TileAhead {
 public:
  __device__ TileAhead(const BackwardTiles& pass, WarpShared& shared, int batch, int first_channel)
      : pass_(pass),
        shared_(shared),
        lane_(static_cast<int>(threadIdx.x) % 32),
        g_(lane_ / kStateLanes),
        q_(lane_ % kStateLanes),
        first_row_(static_cast<unsigned>(batch) * static_cast<unsigned>(pass.L)),
        first_channel_(first_channel) {
    const int d = first_channel + g_ * kLaneChannels;
#pragma unroll
    for (int i = 0; i < kLaneChannels; ++i) {
      unpack(*reinterpret_cast<const float4*>(pass.a_log + (d + i) * kStates + q_ * kLaneStates),
             rate_[i]);
#pragma unroll
      for (float& rate : rate_[i]) rate = scan_cuda::decay_rate(rate);
    }
    if (q_ == 0) shared_.dt_bias[g_] = *reinterpret_cast<const float4*>(pass.dt_bias + d);
  }

  /// Takes the gradient through the periods [begin, end), the last one first. While it goes through
  /// one, the one in front is prepared, and the one in front of that is on its way.
  __device__ void walk(int begin, int end) {
    const int t = (end - 1) * kPeriod + lane_ / 4;
    const unsigned row = first_row_ + static_cast<unsigned>(t);
    const auto column = static_cast<unsigned>(first_channel_ + lane_ % 4 * 8);
    from_[kDt] = reinterpret_cast<const std::byte*>(pass_.dt.at(row, column));
    from_[kGradY] = reinterpret_cast<const std::byte*>(pass_.grad_y.at(row, column));
    from_[kZ] = reinterpret_cast<const std::byte*>(pass_.z.at(row, column));
    from_c_ = reinterpret_cast<const std::byte*>(
        pass_.c.at(row, static_cast<unsigned>(lane_ % 4 * kLaneStates)));
    from_document_ = pass_.document_start ? pass_.document_start + row : nullptr;
    load(0, t < pass_.L);
    cuda::async_copies_commit();
    store_c(0);
    if (end - 2 >= begin) load(1, true);
    cuda::async_copies_commit();
    cuda::async_copies_wait<1>();
    __syncwarp();
    stage(end - 1, 0);
    int slot = 0;
#pragma unroll 1
    for (int period = end - 1; period >= begin; --period) {
      cuda::async_copies_wait<0>();
      __syncwarp();
      store_c(1 - slot);
      if (period - 2 >= begin) load(slot, true);
      cuda::async_copies_commit();
#pragma unroll
      for (int i = 0; i < kLaneChannels; ++i) delta_sum_[i] += staged_delta_[i];
      stage(period - 1, 1 - slot);  // for nobody in front of the segment
      walk_period(slot);
      slot = 1 - slot;
    }
    __syncwarp();
  }

  /// Writes the result of the segment `number`.
  __device__ void store(std::int64_t number) {
    const std::int64_t tile = number * kBlockTiles + threadIdx.x / 32;
    float4* to = pass_.partials.gamma + tile * Partials::kTileVectors + lane_;
#pragma unroll
    for (int i = 0; i < kLaneChannels; ++i) {
      to[i * 32] = pack(gamma_[i]);
#pragma unroll
      for (int lanes = 1; lanes < kStateLanes; lanes *= 2) {
        delta_sum_[i] += __shfl_xor_sync(kAllLanes, delta_sum_[i], lanes);
      }
    }
    if (q_ == 0) {
      pass_.partials.delta[tile * Partials::kDeltaVectors + g_] = pack(delta_sum_);
    }
  }

 private:
  /// Starts to bring the next period to the place `slot`: c to registers, 4 values a lane, the rest
  /// to shared memory. What lies behind the row's end is not `present`, and gets no weight: delta
  /// and the gradient of y are 0 there.
  __device__ void load(int slot, bool present) {
    const unsigned strides[kArrays] = {pass_.dt.stride_bytes, pass_.grad_y.stride_bytes,
                                       pass_.z.stride_bytes};
#pragma unroll
    for (int i = 0; i < kArrays; ++i) {
      uint4* to = &shared_.rows[slot][i][lane_];
      if (i == kDt && !present) {
        constexpr unsigned kMinusInfinities = 0xFF80FF80;  // softplus makes 0 of it
        *to = make_uint4(kMinusInfinities, kMinusInfinities, kMinusInfinities, kMinusInfinities);
      } else {
        cuda::async_copy<16>(to, from_[i], present);
      }
      from_[i] -= std::uint64_t{strides[i]} * kPeriod;
    }
#pragma unroll
    for (int j = 0; j < kLaneStates; ++j) {
      c_[j] = present ? reinterpret_cast<const bf16*>(from_c_)[j]  // may begin anywhere
                      : cuda::from_float<bf16>(0);
    }
    from_c_ -= std::uint64_t{pass_.c.stride_bytes} * kPeriod;
    if (from_document_) {
      if (lane_ % 4 == 0) {
        cuda::async_copy<4>(&shared_.document_start[slot][lane_ / 4], from_document_, present);
      }
      from_document_ -= kPeriod;
    }
  }
  /// Moves the c that was loaded last to the place `slot`.
  __device__ void store_c(int slot) {
    shared_.c[slot][lane_ / kStateLanes][q_] = make_float4(
        cuda::to_float(c_[0]), cuda::to_float(c_[1]), cuda::to_float(c_[2]), cuda::to_float(c_[3]));
  }

  __device__ void get(Array array, int t, int slot, PerChannel& to) const {
    const auto* steps = reinterpret_cast<const uint2*>(shared_.rows[slot][array]);
    unpack(steps[t * kChannelLanes + g_], to);
  }

  /// Prepares a period: delta and the gradient of y before the gate, of step q of each chunk.
  __device__ void stage(int period, int slot) {
    PerChannel bias;
    unpack(shared_.dt_bias[g_], bias);
#pragma unroll
    for (int i = 0; i < kLaneChannels; ++i) staged_delta_[i] = 0;
#pragma unroll
    for (int chunk = 0; chunk < kPeriodChunks; ++chunk) {
      const int t = chunk * kChunk + q_;
      PerChannel dt, grad_y, z, delta;
      get(kDt, t, slot, dt);
      get(kGradY, t, slot, grad_y);
      get(kZ, t, slot, z);
      const bool begins =
          pass_.document_start && shared_.document_start[slot][t] == period * kPeriod + t;
#pragma unroll
      for (int i = 0; i < kLaneChannels; ++i) {
        delta[i] = Softplus(dt[i] + bias[i]).value;
        if (begins) delta[i] = scan_cuda::kResetDelta;
        staged_delta_[i] += delta[i];
        grad_y[i] *= z[i] * cuda::reciprocal_approx(1 + cuda::exp2_approx(z[i] * -kLog2E));
      }
      shared_.delta[slot][t][g_] = pack(delta);
      shared_.grad_y[slot][t][g_] = pack(grad_y);
    }
  }

  __device__ void walk_period(int slot) {
#pragma unroll
    for (int t = kPeriod - 1; t >= 0; --t) {
      PerChannel delta, grad_y;
      PerState c;
      unpack(shared_.delta[slot][t][g_], delta);
      unpack(shared_.grad_y[slot][t][g_], grad_y);
      unpack(shared_.c[slot][t][q_], c);
#pragma unroll
      for (int i = 0; i < kLaneChannels; ++i) {
#pragma unroll
        for (int j = 0; j < kLaneStates; ++j) {
          const float exponent = delta[i] * rate_[i][j];
          const float decay =
              j == 0 && i < kByProducts ? exp2_by_products(exponent) : cuda::exp2_approx(exponent);
          gamma_[i][j] = decay * fmaf(grad_y[i], c[j], gamma_[i][j]);
        }
      }
    }
  }

  const BackwardTiles& pass_;
  WarpShared& shared_;
  const int lane_, g_, q_;
  const unsigned first_row_;
  const int first_channel_;
  LaneTile rate_, gamma_ = {};
  /// Of the next period to bring, at step lane / 4: the lane's part.
  const std::byte *from_[kArrays], *from_c_;
  const std::int32_t* from_document_;
  bf16 c_[kLaneStates];
  PerChannel delta_sum_ = {}, staged_delta_;  ///< of what was walked through; of what is prepared
};

/// Grid AheadSchedule::blocks, block kBlockThreads, 74 KiB of shared memory; two blocks a
/// multiprocessor, as registers allow. Limited by exponentials: one a state and step, and 3 a
/// channel and step. Its warps have nothing in common but the stretch.
__global__ void __launch_bounds__(kBlockThreads, 2)
    scan_ahead_kernel(const __grid_constant__ BackwardTiles pass) {
  BlockShared& shared = *reinterpret_cast<BlockShared*>(cuda::dynamic_shared());
  const Schedule& schedule = pass.schedule;
  const AheadSchedule& ahead = pass.ahead;
  cuda::let_next_kernel_begin();
  std::int64_t place = ahead.begin(blockIdx.x);
  const std::int64_t last = ahead.begin(std::int64_t{blockIdx.x} + 1);
  static_assert(Schedule::kWorkers <= kBlockThreads);
  if (threadIdx.x < schedule.workers && ahead.pieces[threadIdx.x] <= place &&
      place < ahead.pieces[threadIdx.x + 1]) {
    shared.worker = static_cast<int>(threadIdx.x);
  }
  __syncthreads();
  std::int64_t worker = shared.worker;

#pragma unroll 1
  for (; place < last; ++worker) {
    const std::int64_t stop = min(last, ahead.pieces[worker + 1]);
    if (stop == place) continue;  // a worker whose piece is its row's last one
    const std::int64_t row = schedule.last_row(worker);
    // A piece lies behind its end in its row, counted from the row's last period.
    const std::int64_t from_end =
        (row + 1) * schedule.periods - schedule.begin(worker + 1) + ahead.pieces[worker + 1];
    const auto end = static_cast<int>(from_end - place), begin = static_cast<int>(from_end - stop);
    const int batch = static_cast<int>(row / schedule.blocks);
    const int first_channel = (static_cast<int>(row % schedule.blocks) * kBlockTiles +
                               static_cast<int>(threadIdx.x) / 32) *
                              static_cast<int>(kChannels);
    if (first_channel < pass.D) {
      TileAhead scan(pass, shared.warps[threadIdx.x / 32], batch, first_channel);
      scan.walk(begin, end);
      scan.store(ahead.segments[worker] +
                 static_cast<int>(blockIdx.x - ahead.block_of(ahead.pieces[worker])));
    }
    place = stop;
  }
}

}  // namespace

void scan_ahead(CudaExec& gpu, const BackwardTiles& pass) {
  cuda::launch(gpu, SelectiveScan::kName, scan_ahead_kernel,
               {.grid = dim3(static_cast<unsigned>(pass.ahead.blocks)),
                .block = dim3(kBlockThreads),
                .shared_bytes = sizeof(BlockShared)},
               pass);
}

}  // namespace jiboia::scan_tiles
