#include "kernels/selective_scan/selective_scan_backward_lanes.cuh"
#include "kernels/selective_scan/selective_scan_backward_tiles.cuh"

namespace jiboia::scan_tiles {
namespace {

/// What comes from memory for each step and channel.
enum Array { kDt, kGradY, kZ, kArrays };

/// See WarpShared of the pass itself.
struct WarpShared {
  uint4 rows[2][kArrays][32];
  float4 delta[2][kChunk][kChannelLanes + 2], grad_y[2][kChunk][kChannelLanes + 2];
  float4 dt_bias[kChannelLanes];
};
struct BlockShared {
  float c[2][kPeriod][kStates];
  float begins[2][kPeriod];
  WarpShared warps[kBlockTiles];
};
static_assert(sizeof(BlockShared) <= kSharedBytes);

/// A warp with its tile: takes the gradient of the state through a part of a piece.
class TileAhead {
 public:
  __device__ TileAhead(const BackwardTiles& pass, BlockShared& block, int batch, int first_channel)
      : pass_(pass),
        block_(block),
        lane_(static_cast<int>(threadIdx.x) % 32),
        g_(lane_ / kStateLanes),
        q_(lane_ % kStateLanes),
        shared_(block.warps[threadIdx.x / 32]),
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

  /// Starts to bring a period to the place `slot`.
  __device__ void load(int period, int slot) {
    const int t = period * kPeriod + lane_ / 4;
    const bool present = t < pass_.L;
    const unsigned row = first_row_ + static_cast<unsigned>(t);
    const auto column = static_cast<unsigned>(first_channel_ + lane_ % 4 * 8);
    const TileRows<bf16>* arrays[kArrays] = {&pass_.dt, &pass_.grad_y, &pass_.z};
#pragma unroll
    for (int i = 0; i < kArrays; ++i) {
      cuda::async_copy<16>(&shared_.rows[slot][i][lane_],
                           present ? arrays[i]->at(row, column) : nullptr, present);
    }
  }

  /// Takes the gradient through a period.
  __device__ void walk(int period, int slot) {
#pragma unroll
    for (int half = 0; half < kPeriodChunks; ++half) {
      stage(half, slot, period * kPeriod + half * kChunk + q_ < pass_.L);
    }
    __syncwarp();
#pragma unroll
    for (int t = kPeriod - 1; t >= 0; --t) {
      const int half = t / kChunk, step = t % kChunk;
      PerChannel delta, grad_y;
      PerState c;
      unpack(shared_.delta[half][step][g_], delta);
      unpack(shared_.grad_y[half][step][g_], grad_y);
      unpack(*reinterpret_cast<const float4*>(&block_.c[slot][t][q_ * kLaneStates]), c);
#pragma unroll
      for (int i = 0; i < kLaneChannels; ++i) {
#pragma unroll
        for (int j = 0; j < kLaneStates; ++j) {
          gamma_[i][j] =
              cuda::exp2_approx(delta[i] * rate_[i][j]) * fmaf(grad_y[i], c[j], gamma_[i][j]);
        }
      }
    }
    __syncwarp();
  }

  /// Writes the result of the part `part`, an index of (rows, pieces, kAheadParts).
  __device__ void store(std::int64_t part) {
    const std::int64_t tile = part * kBlockTiles + threadIdx.x / 32;
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
  __device__ void get(Array array, int half, int slot, PerChannel& to) const {
    const auto* steps = reinterpret_cast<const uint2*>(shared_.rows[slot][array]);
    unpack(steps[(half * kChunk + q_) * kChannelLanes + g_], to);
  }

  /// delta and the gradient of y before the gate, at step q of a chunk.
  __device__ void stage(int half, int slot, bool present) {
    PerChannel dt, grad_y, z, bias, delta;
    get(kDt, half, slot, dt);
    get(kGradY, half, slot, grad_y);
    get(kZ, half, slot, z);
    unpack(shared_.dt_bias[g_], bias);
    const bool resets = pass_.document_start && block_.begins[slot][half * kChunk + q_] != 0;
#pragma unroll
    for (int i = 0; i < kLaneChannels; ++i) {
      delta[i] = present ? Softplus(dt[i] + bias[i]).value : 0;
      if (resets) delta[i] = scan_cuda::kResetDelta;
      delta_sum_[i] += delta[i];
      const float at = gate_argument(z[i]);
      grad_y[i] *= at * cuda::reciprocal_approx(1 + cuda::exp2_approx(at * -kLog2E));
    }
    shared_.delta[half][q_][g_] = pack(delta);
    shared_.grad_y[half][q_][g_] = pack(grad_y);
  }

  const BackwardTiles& pass_;
  BlockShared& block_;
  const int lane_, g_, q_;
  WarpShared& shared_;
  const unsigned first_row_;
  const int first_channel_;
  LaneTile rate_, gamma_ = {};
  PerChannel delta_sum_ = {};
};

/// Brings a block's rows of c, one value a thread of the first ones: the second act waits for the
/// first one's load.
class RowLoader {
 public:
  __device__ RowLoader(const BackwardTiles& pass, int batch) : pass_(pass), batch_(batch) {}
  __device__ void load(int period) {
    if (!loads()) return;
    const int t = period * kPeriod + step();
    const bool present = t < pass_.L;
    const unsigned row =
        static_cast<unsigned>(batch_) * static_cast<unsigned>(pass_.L) + static_cast<unsigned>(t);
    value_ = present ? *pass_.c.at(row, state()) : cuda::from_float<bf16>(0);
    begins_ = present && pass_.document_start && state() == 0 && pass_.document_start[row] == t;
  }
  __device__ void store(BlockShared& shared, int slot) const {
    if (!loads()) return;
    shared.c[slot][step()][state()] = cuda::to_float(value_);
    if (state() == 0) shared.begins[slot][step()] = begins_ ? 1.f : 0.f;
  }

 private:
  __device__ static bool loads() { return threadIdx.x < kPeriod * kStates; }
  __device__ static int step() { return static_cast<int>(threadIdx.x / kStates); }
  __device__ static unsigned state() { return threadIdx.x % static_cast<unsigned>(kStates); }

  const BackwardTiles& pass_;
  const int batch_;
  bf16 value_;
  bool begins_ = false;
};

/// Grid (rows, pieces - 1, kAheadParts), block kBlockThreads, 46 KiB of shared memory. Limited by
/// exponentials: one a state and step, and 3 a channel and step.
__global__ void __launch_bounds__(kBlockThreads, 2)
    scan_ahead_kernel(const __grid_constant__ BackwardTiles pass) {
  BlockShared& shared = *reinterpret_cast<BlockShared*>(cuda::dynamic_shared());
  const Schedule& schedule = pass.schedule;
  const std::int64_t row = blockIdx.x;
  const int index = static_cast<int>(blockIdx.y), part = static_cast<int>(blockIdx.z);
  if (index + 1 >= schedule.piece_count(row)) return;  // no piece in front of this one
  const Piece piece(schedule, schedule.first_worker(row) + index, row);
  const int periods = piece.end - piece.begin;
  const int end = piece.end - periods * part / kAheadParts;
  const int begin = piece.end - periods * (part + 1) / kAheadParts;

  const int batch = static_cast<int>(row / schedule.blocks);
  const int first_channel =
      (static_cast<int>(row % schedule.blocks) * kBlockTiles + static_cast<int>(threadIdx.x) / 32) *
      static_cast<int>(kChannels);
  const bool active = first_channel < pass.D;
  RowLoader loader(pass, batch);
  TileAhead scan(pass, shared, batch, active ? first_channel : 0);
  if (end > begin) {
    loader.load(end - 1);
    if (active) scan.load(end - 1, (end - 1) % 2);
  }
#pragma unroll 1
  for (int period = end - 1; period >= begin; --period) {
    const int slot = period % 2;
    loader.store(shared, slot);
    cuda::async_copies_commit();
    cuda::async_copies_wait<0>();
    __syncthreads();
    if (period > begin) {
      loader.load(period - 1);
      if (active) scan.load(period - 1, 1 - slot);
    }
    if (active) scan.walk(period, slot);
  }
  if (active) {
    scan.store((row * pass.partials.pieces + index) * kAheadParts + part);
  }
}

}  // namespace

void scan_ahead(CudaExec& gpu, const BackwardTiles& pass) {
  const Schedule& schedule = pass.schedule;
  cuda::launch(gpu, SelectiveScan::kName, scan_ahead_kernel,
               {.grid = dim3(static_cast<unsigned>(schedule.rows),
                             static_cast<unsigned>(pass.partials.pieces - 1), kAheadParts),
                .block = dim3(kBlockThreads),
                .shared_bytes = sizeof(BlockShared)},
               pass);
}

}  // namespace jiboia::scan_tiles
