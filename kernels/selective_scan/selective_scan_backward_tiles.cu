#include "kernels/selective_scan/selective_scan_backward_lanes.cuh"
#include "kernels/selective_scan/selective_scan_backward_tiles.cuh"

namespace jiboia::scan_tiles {
namespace {

/// What comes from memory for each step and channel.
enum Array { kU, kDt, kGradY, kZ, kY, kArrays };

/// What all warps of a block read of a period: b and c in fp32, and where documents begin.
struct Table {
  float b[kPeriod][kStates], c[kPeriod][kStates];
  float begins[kPeriod];  ///< not 0 at a document's first step
};

/// The vectors of 4 floats that 8 channel lanes read at a time lie side by side; distances between
/// such rows are odd multiples of 2 vectors, so that what 4 state lanes write lies in other banks.
struct WarpShared {
  uint4 rows[2][kArrays][32];                  ///< of a period: a step is 4 vectors
  Line states[2][kPeriodChunks][2][32];        ///< of a period's chunks
  float4 step[kChunk][2 * kChannelLanes + 2];  ///< delta where it makes the decay, delta * u
  float4 grad_y[kChunk][kChannelLanes + 2];    ///< of y before the gate
  float4 slope[32];                            ///< the lane's own, of softplus
  float4 exchange[kChunk][2][32 + 4];          ///< parts of grad_b and grad_c
  float4 dt_bias[kChannelLanes], d_skip[kChannelLanes];
};

constexpr int kPeriodSums = kPeriod * kRowStates;
struct BlockShared {
  Table tables[4];                          ///< period by period, in turn
  float sums[4][kBlockTiles][kPeriodSums];  ///< over a tile's channels, for grad_b and grad_c
  WarpShared warps[kBlockTiles];
  std::uint64_t turns[2];
  int worker;
};
static_assert(kPeriodSums == kBlockThreads, "a thread adds up one sum of a period");

/// Keeps the warps of a block at most one turn apart: cheaper than a barrier each turn.
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
  /// Says that this warp's part of turn `turn` is done.
  __device__ void done([[maybe_unused]] int turn) const {
    __syncwarp();
#ifdef __CUDA_ARCH__
    if (threadIdx.x % 32 == 0) {
      asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(address(turn % 2)) : "memory");
    }
#endif
  }
  /// Waits until all warps have done turn `turn`, the last but one.
  __device__ void wait([[maybe_unused]] int turn) const {
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
  __device__ unsigned address(int i) const {
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
  /// `is_lane[i]`: 1 in channel lane i, 0 in others.
  __device__ void add(const float (&values)[4], int step, const float (&is_lane)[kChannelLanes]) {
#ifdef __CUDA_ARCH__
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(__float_as_uint(values[0])), "r"(__float_as_uint(values[2])),
          "r"(__float_as_uint(values[1])), "r"(__float_as_uint(values[3])),
          "r"(__float_as_uint(is_lane[2 * step])), "r"(__float_as_uint(is_lane[2 * step + 1])));
#else
    (void)is_lane;
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

/// A warp with its tile.
class TileScan {
 public:
  __device__ TileScan(const BackwardTiles& pass, BlockShared& block)
      : pass_(pass),
        block_(block),
        warp_(static_cast<int>(threadIdx.x) / 32),
        lane_(static_cast<int>(threadIdx.x) % 32),
        shared_(block.warps[warp_]) {
#pragma unroll
    for (int i = 0; i < kChannelLanes; ++i) is_lane_[i] = lane_ / kStateLanes == i ? 1.f : 0.f;
  }

  /// Begins a piece of the tile's channels from `first_channel` on.
  __device__ void begin(int batch, int first_channel) {
    first_row_ = static_cast<unsigned>(batch) * static_cast<unsigned>(pass_.L);
    first_channel_ = first_channel;
    const int d = first_channel + g() * kLaneChannels;
#pragma unroll
    for (int i = 0; i < kLaneChannels; ++i) {
      unpack(*reinterpret_cast<const float4*>(pass_.a_log + (d + i) * kStates + q() * kLaneStates),
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
      shared_.dt_bias[g()] = *reinterpret_cast<const float4*>(pass_.dt_bias + d);
      shared_.d_skip[g()] = *reinterpret_cast<const float4*>(pass_.d_skip + d);
    }
  }

  /// Starts to bring period `period` to the place `slot`. What lies behind the row's end gets no
  /// weight: delta and the gradient of y are 0 there.
  template <bool kWhole>
  __device__ void load(int period, int slot, std::int64_t batch) {
    const int t = period * kPeriod + lane_ / 4;
    const bool present = kWhole || t < pass_.L;
    const unsigned row = first_row_ + static_cast<unsigned>(t);
    const auto column = static_cast<unsigned>(first_channel_ + lane_ % 4 * 8);
    const TileRows<bf16>* arrays[kArrays] = {&pass_.u, &pass_.dt, &pass_.grad_y, &pass_.z,
                                             &pass_.y};
#pragma unroll
    for (int i = 0; i < kArrays; ++i) {
      uint4* to = &shared_.rows[slot][i][lane_];
      if (i == kDt && !present) {
        constexpr unsigned kMinusInfinities = 0xFF80FF80;  // softplus makes 0 of it
        *to = make_uint4(kMinusInfinities, kMinusInfinities, kMinusInfinities, kMinusInfinities);
      } else {
        cuda::async_copy<16>(to, present ? arrays[i]->at(row, column) : nullptr, present);
      }
    }
    const Line* from =
        pass_.states +
        first_line(batch, pass_.chunks, period * kPeriodChunks, pass_.D, first_channel_) + lane_;
    const std::int64_t chunk_lines = std::int64_t{pass_.D} * kStates / kLineSize;
#pragma unroll
    for (int i = 0; i < kPeriodChunks; ++i) {
      const bool there = kWhole || period * kPeriodChunks + i < pass_.chunks;
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        cuda::async_copy<16>(&shared_.states[slot][i][k][lane_],
                             there ? from + i * chunk_lines + k * 32 : nullptr, there);
      }
    }
  }

  /// Takes gamma through the chunk `half` of period `period` at the place `slot`.
  __device__ void chunk(int period, int half, int slot, const Table& table, float* sums) {
    const int t = period * kPeriod + half * kChunk + q();
    const unsigned row = first_row_ + static_cast<unsigned>(t);
    const bool present = t < pass_.L;
    stage(half, slot, table, row, present);
    __syncwarp();
    LaneTile decay[kChunk], state[kChunk];
    walk_forward(half, slot, table, decay, state);
    StateSums gamma_b, gamma_rate;
    walk_backward(half, slot, table, decay, state, gamma_b, gamma_rate);
    __syncwarp();
    sum_channels(sums + half * kChunk * kRowStates);
    finish(half, slot, table, row, present, gamma_b.sums, gamma_rate.sums);
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
      const std::int64_t d =
          (std::int64_t{piece} * pass_.B + batch) * pass_.D + first_channel_ + g() * kLaneChannels;
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
    const std::int64_t tile = row * kBlockTiles + warp_;
    float4* to = pass_.partials.gamma + tile * Partials::kTileVectors + lane_;
#pragma unroll
    for (int i = 0; i < kLaneChannels; ++i) to[i * 32] = pack(gamma_[i]);
    __threadfence();
    __syncwarp();
    if (lane_ == 0) cuda::store_release(pass_.partials.counters + 1 + tile, 1);
  }
  /// Waits for what hand_over() gives.
  __device__ void take_over(std::int64_t row) {
    const std::int64_t tile = row * kBlockTiles + warp_;
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
      const std::int64_t tile = (first + part) * kBlockTiles + warp_;
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
  __device__ int g() const { return lane_ / kStateLanes; }
  __device__ int q() const { return lane_ % kStateLanes; }

  /// The lane's values of an array, at step q of the chunk.
  __device__ void get(Array array, int half, int slot, PerChannel& to) const {
    const auto* steps = reinterpret_cast<const uint2*>(shared_.rows[slot][array]);
    unpack(steps[(half * kChunk + q()) * kChannelLanes + g()], to);
  }
  /// The lane's part of the state before the chunk.
  __device__ void get_state(int half, int slot, LaneTile& to) const {
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const Line line = shared_.states[slot][half][k][lane_];
      float values[kLineSize];
      cuda::unpack<bf16>(line, values);
#pragma unroll
      for (int i = 0; i < static_cast<int>(kLineSize); ++i) to[2 * k + i / 4][i % 4] = values[i];
    }
  }

  /// Whatever is the same for all states, at step q of the chunk: leaves it in shared memory, and
  /// writes grad_z. With silu(z) = z * s it is g * y / silu(z) * silu'(z) = g * y * (1 / z + 1 -
  /// s).
  __device__ void stage(int half, int slot, const Table& table, unsigned row, bool present) {
    PerChannel u, dt, grad_y, z, y, bias, delta, delta_u, slope, grad_z;
    get(kU, half, slot, u);
    get(kDt, half, slot, dt);
    get(kGradY, half, slot, grad_y);
    get(kZ, half, slot, z);
    get(kY, half, slot, y);
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
      d_skip_sum_[i] = fmaf(grad_y[i], u[i], d_skip_sum_[i]);
    }
    if (pass_.document_start && table.begins[half * kChunk + q()] != 0) {
#pragma unroll
      for (float& value : delta) value = scan_cuda::kResetDelta;
    }
    shared_.step[q()][g()] = pack(delta);
    shared_.step[q()][kChannelLanes + g()] = pack(delta_u);
    shared_.grad_y[q()][g()] = pack(grad_y);
    shared_.slope[lane_] = pack(slope);
    if (present) write(pass_.grad_z, pass_.z_mode, row, grad_z);
  }

  /// Takes the state through the chunk; keeps decays and states.
  __device__ void walk_forward(int half, int slot, const Table& table, LaneTile (&decay)[kChunk],
                               LaneTile (&state)[kChunk]) const {
    LaneTile before;
    get_state(half, slot, before);
#pragma unroll
    for (int t = 0; t < kChunk; ++t) {
      PerChannel delta, delta_u;
      PerState b;
      unpack(shared_.step[t][g()], delta);
      unpack(shared_.step[t][kChannelLanes + g()], delta_u);
      get_row(table.b, half, t, b);
#pragma unroll
      for (int i = 0; i < kLaneChannels; ++i) {
#pragma unroll
        for (int j = 0; j < kLaneStates; ++j) {
          const float last = t == 0 ? before[i][j] : state[t - 1][i][j];
          decay[t][i][j] = cuda::exp2_approx(delta[i] * rate_[i][j]);
          state[t][i][j] = fmaf(decay[t][i][j], last, delta_u[i] * b[j]);
        }
      }
    }
  }

  /// Takes gamma back through the chunk, and leaves parts of grad_b and grad_c for sum_channels().
  __device__ void walk_backward(int half, int slot, const Table& table,
                                const LaneTile (&decay)[kChunk], const LaneTile (&state)[kChunk],
                                StateSums& gamma_b, StateSums& gamma_rate) {
#pragma unroll
    for (int t = kChunk - 1; t >= 0; --t) {
      LaneTile before;
      if (t == 0) get_state(half, slot, before);
      PerChannel delta, delta_u, grad_y, with_b, with_rate;
      PerState b, c, grad_b, grad_c;
      unpack(shared_.step[t][g()], delta);
      unpack(shared_.step[t][kChannelLanes + g()], delta_u);
      unpack(shared_.grad_y[t][g()], grad_y);
      get_row(table.b, half, t, b);
      get_row(table.c, half, t, c);
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
      shared_.exchange[t][0][lane_] = pack(grad_b);
      shared_.exchange[t][1][lane_] = pack(grad_c);
      gamma_b.add(with_b, t, is_lane_);
      gamma_rate.add(with_rate, t, is_lane_);
    }
  }

  /// Adds up what the channel lanes left, in order, and gives it to `sums`, (kChunk, kRowStates).
  __device__ void sum_channels(float* sums) const {
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
    reinterpret_cast<float4*>(sums)[lane_] = sum;
  }

  /// Writes grad_u and grad_dt at step q of the chunk, from the sums over states.
  __device__ void finish(int half, int slot, const Table& table, unsigned row, bool present,
                         const PerChannel& gamma_b, const PerChannel& gamma_rate) {
    PerChannel u, delta, grad_y, slope, d_skip, grad_u, grad_dt;
    get(kU, half, slot, u);
    unpack(shared_.step[q()][g()], delta);
    unpack(shared_.grad_y[q()][g()], grad_y);
    unpack(shared_.slope[lane_], slope);
    unpack(shared_.d_skip[g()], d_skip);
    if (pass_.document_start && table.begins[half * kChunk + q()] != 0) {
      PerChannel dt, bias;
      get(kDt, half, slot, dt);
      unpack(shared_.dt_bias[g()], bias);
#pragma unroll
      for (int i = 0; i < kLaneChannels; ++i) delta[i] = Softplus(dt[i] + bias[i]).value;
    }
#pragma unroll
    for (int i = 0; i < kLaneChannels; ++i) {
      grad_u[i] = fmaf(d_skip[i], grad_y[i], delta[i] * gamma_b[i]);
      grad_dt[i] = slope[i] * fmaf(u[i], gamma_b[i], kLn2 * gamma_rate[i]);
      dt_bias_sum_[i] += grad_dt[i];
    }
    if (!present) return;
    write(pass_.grad_u, pass_.u_mode, row, grad_u);
    write(pass_.grad_dt, pass_.dt_mode, row, grad_dt);
  }

  __device__ void write(const TileRows<bf16>& rows, GradMode mode, unsigned row,
                        const PerChannel& values) const {
    const auto column = static_cast<unsigned>(first_channel_ + g() * kLaneChannels);
    if (pass_.writes_all) {
      cuda::store(values, rows.at(row, column));
    } else if (rows) {
      cuda::put(mode, rows.at(row, column), values);
    }
  }

  __device__ void get_row(const float (&table)[kPeriod][kStates], int half, int t,
                          PerState& to) const {
    unpack(*reinterpret_cast<const float4*>(&table[half * kChunk + t][q() * kLaneStates]), to);
  }
  /// sum = a * b for the first of the terms, sum + a * b for the others.
  __device__ static void add(int term, float a, float b, float& sum) {
    sum = term == 0 ? a * b : fmaf(a, b, sum);
  }

  const BackwardTiles& pass_;
  BlockShared& block_;
  const int warp_, lane_;
  WarpShared& shared_;
  unsigned first_row_ = 0;
  int first_channel_ = 0;
  LaneTile rate_, gamma_, rate_sum_;
  PerChannel d_skip_sum_, dt_bias_sum_;
  float is_lane_[kChannelLanes];
};

/// Brings b and c of a period, a thread one of the values, in two acts: the second waits for the
/// first one's loads.
class TableLoader {
 public:
  __device__ TableLoader(const BackwardTiles& pass)
      : pass_(pass),
        step_(static_cast<int>(threadIdx.x) / kRowStates),
        column_(static_cast<int>(threadIdx.x) % kRowStates) {}

  __device__ void load(int batch, int period) {
    const int t = period * kPeriod + step_;
    const bool present = period >= 0 && t < pass_.L;
    const unsigned row =
        static_cast<unsigned>(batch) * static_cast<unsigned>(pass_.L) + static_cast<unsigned>(t);
    const bool is_b = column_ < static_cast<int>(kStates);
    const auto column = static_cast<unsigned>(column_) % static_cast<unsigned>(kStates);
    const bf16* from = is_b ? pass_.b.at(row, column) : pass_.c.at(row, column);
    value_ = present ? *from : cuda::from_float<bf16>(0);
    begins_ = present && pass_.document_start && column_ == 0 && pass_.document_start[row] == t;
  }
  __device__ void store(Table& table) const {
    const bool is_b = column_ < static_cast<int>(kStates);
    (is_b ? table.b : table.c)[step_][column_ % kStates] = cuda::to_float(value_);
    if (column_ == 0) table.begins[step_] = begins_ ? 1.f : 0.f;
  }

 private:
  const BackwardTiles& pass_;
  const int step_, column_;
  bf16 value_;
  bool begins_ = false;
};

/// Adds up the warps' sums of a period, in order. `to`: (kPeriod, kRowStates).
__device__ inline void sum_warps(const float (&sums)[kBlockTiles][kPeriodSums], float* to) {
  float sum = sums[0][threadIdx.x];
#pragma unroll
  for (int warp = 1; warp < kBlockTiles; ++warp) sum += sums[warp][threadIdx.x];
  to[threadIdx.x] = sum;
}

/// Grid `workers`, block kBlockThreads, 173 KiB of shared memory, so one block a multiprocessor.
/// Limited by instruction issue: about 18 instructions a state and step, of which 12 are the two
/// recurrences and their sums.
__global__ void __launch_bounds__(kBlockThreads, 1)
    scan_backward_tiles(const __grid_constant__ BackwardTiles pass) {
  BlockShared& shared = *reinterpret_cast<BlockShared*>(cuda::dynamic_shared());
  const int warp = static_cast<int>(threadIdx.x) / 32;
  // A worker waits for a worker with a lower number only, and only for what that one does first of
  // all and waits for nobody. Numbers are given in the order in which blocks begin, so whoever is
  // waited for is at work already: however few blocks find a place at a time, all come to an end.
  if (threadIdx.x == 0) shared.worker = atomicAdd(pass.partials.counters, 1);
  for (auto& sums : shared.sums) {  // of the tiles that a block at the last channels lacks
    for (auto& of_tile : sums) of_tile[threadIdx.x] = 0;
  }
  const Turns turns(shared.turns);
  const Schedule& schedule = pass.schedule;
  const std::int64_t worker = shared.worker;
  const std::int64_t first_row = schedule.begin(worker) / schedule.periods;
  const std::int64_t last_row = (schedule.begin(worker + 1) - 1) / schedule.periods;

  TileScan scan(pass, shared);
  TableLoader loader(pass);
  int turn = 0;
#pragma unroll 1
  for (std::int64_t row = last_row; row >= first_row; --row) {
    const Piece piece(schedule, worker, row);
    const int batch = static_cast<int>(row / schedule.blocks);
    const int block = static_cast<int>(row % schedule.blocks);
    const int first_channel = (block * kBlockTiles + warp) * static_cast<int>(kChannels);
    const bool active = first_channel < pass.D;
    float* sums =
        pass.partials.b_c +
        ((std::int64_t{block} * pass.B + batch) * schedule.periods + piece.end) * kPeriodSums;
    loader.load(batch, piece.end - 1);
    loader.store(shared.tables[turn % 4]);
    loader.load(batch, piece.end - 2);
    loader.store(shared.tables[(turn + 1) % 4]);
    loader.load(batch, piece.end - 3);
    if (active) {
      scan.begin(batch, first_channel);
      scan.load<false>(piece.end - 1, turn % 2, batch);
      if (piece.index > 0) {
        if (schedule.at_once()) {
          scan.gather(row, piece.index);
        } else {
          scan.take_over(row);
        }
      }
    }
    cuda::async_copies_commit();
    __syncthreads();
#pragma unroll 1
    for (int period = piece.end - 1; period >= piece.begin; --period, ++turn) {
      if (period < piece.end - 2) {
        turns.wait(turn - 2);
        sums -= kPeriodSums;
        sum_warps(shared.sums[(turn - 2) % 4], sums);
      }
      cuda::async_copies_wait<0>();
      __syncwarp();
      loader.store(shared.tables[(turn + 2) % 4]);
      loader.load(batch, period - 3);
      if (active) {
        if (period > piece.begin) scan.load<true>(period - 1, (turn + 1) % 2, batch);
        cuda::async_copies_commit();
#pragma unroll 1
        for (int half = kPeriodChunks - 1; half >= 0; --half) {
          scan.chunk(period, half, turn % 2, shared.tables[turn % 4], shared.sums[turn % 4][warp]);
        }
      }
      turns.done(turn);
    }
    __syncthreads();
    if (piece.end - piece.begin > 1) {
      sums -= kPeriodSums;
      sum_warps(shared.sums[(turn - 2) % 4], sums);
    }
    sums -= kPeriodSums;
    sum_warps(shared.sums[(turn - 1) % 4], sums);
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
  cuda::launch(gpu, SelectiveScan::kName, scan_backward_tiles,
               {.grid = dim3(static_cast<unsigned>(schedule.workers)),
                .block = dim3(kBlockThreads),
                .shared_bytes = sizeof(BlockShared)},
               pass);
  sum_tiles(gpu, pass, to);
}

}  // namespace jiboia::scan_tiles
