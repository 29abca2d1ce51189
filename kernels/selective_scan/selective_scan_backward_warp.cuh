#pragma once
#include "kernels/selective_scan/selective_scan_backward_block.cuh"

/// One warp's part in the fast backward pass.
namespace jiboia::scan_tiles {

/// A warp with its tile. Work on two chunks overlaps, so that there is always something to do while
/// other things wait: while a chunk goes through its steps, what depends on no state is prepared
/// for the next one (stage(), most decays).
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
    __syncwarp();
#pragma unroll
    for (int step = kEarlySteps; step < kChunk; ++step) get_decays(count, step);
  }
  /// Takes gamma through the chunk `count`, with the piece's steps from t on, writes its results
  /// and prepares the next one.
  __device__ void chunk(unsigned count, unsigned t) {
    LaneTile state[kChunk];
    // In the order that was the fastest: ptxas moves little across the lines.
#pragma unroll
    for (int step = 0; step < kEarlySteps; ++step) get_decays(count, step);
    stage(count + 1, t - kChunk);
    walk_forward(count, state);
    __syncwarp();
    walk_backward(count, state);
    __syncwarp();
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
  /// Puts gamma together from what the pass ahead found in the segments [first, end).
  __device__ void gather(int first, int end) {
    constexpr int kAtOnce = 4;  // on their way
#pragma unroll 1
    for (int segment = first; segment < end; segment += kAtOnce) {
      float4 added[kAtOnce][kLaneChannels], delta[kAtOnce];
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
        const std::int64_t tile =
            std::int64_t{min(segment + k, end - 1)} * kBlockTiles + threadIdx.x / 32;
        const float4* from = pass_.partials.gamma + tile * Partials::kTileVectors + lane_;
        delta[k] = __ldcg(pass_.partials.delta + tile * Partials::kDeltaVectors + g());
#pragma unroll
        for (int i = 0; i < kLaneChannels; ++i) added[k][i] = __ldcg(from + i * 32);
      }
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
        PerChannel its_delta;
        unpack(delta[k], its_delta);
#pragma unroll
        for (int i = 0; i < kLaneChannels; ++i) {
          PerState its_added;
          unpack(added[k][i], its_added);
#pragma unroll
          for (int j = 0; j < kLaneStates; ++j) {
            const float gamma =
                fmaf(cuda::exp2_approx(its_delta[i] * rate_[i][j]), gamma_[i][j], its_added[j]);
            gamma_[i][j] = segment + k < end ? gamma : gamma_[i][j];
          }
        }
      }
    }
  }

 private:
  static constexpr unsigned kVector = sizeof(float4), kStagedBytes = kChunk * kColumns * kVector;
  /// The decays of the steps from this one on are found while gamma goes through the chunk before.
  /// Exponentials take longer to issue than others where they are many, so they are spread.
  static constexpr int kEarlySteps = 2;

  __device__ unsigned g() const { return lane_ / kStateLanes; }
  __device__ unsigned q() const { return lane_ % kStateLanes; }

  /// The value, not to be computed again wherever it is needed.
  __device__ static unsigned kept(unsigned value) {
    return __shfl_sync(kAllLanes, value, static_cast<int>(threadIdx.x) % 32);
  }
  /// The offset of a step of a staged chunk, for the lane's channels, and of step q.
  __device__ unsigned staged(unsigned count, int step) const {
    return at_g_ + count % 2 * kStagedBytes + static_cast<unsigned>(step) * (kColumns * kVector);
  }
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
  /// The offset of a step's values in a table of b or c.
  __device__ static unsigned row_of(unsigned count, int which, unsigned step) {
    constexpr unsigned kRowBytes = kStates * sizeof(float), kTableBytes = kChunk * kRowBytes;
    return offsetof(BlockShared, tables) + count % kWideRing * (2 * kTableBytes) +
           static_cast<unsigned>(which) * kTableBytes + step * kRowBytes;
  }
  /// The lane's states of a step.
  __device__ void get_row(unsigned count, int which, int t, PerState& to) const {
    unpack(shared_at<float4>(row_of(count, which, static_cast<unsigned>(t)) + q() * kVector), to);
  }

  /// Whatever is the same for all states, at step q of a chunk: leaves it in shared memory, and
  /// writes grad_z. With silu(z) = z * s it is g * y / silu(z) * silu'(z) = g * y * (1 / z + 1 -
  /// s).
  __device__ void stage(unsigned count, unsigned t) {
    const unsigned to = staged_own(count);
    const auto get = [&](Array array, PerChannel& values) {
      const auto* of_step = reinterpret_cast<const uint2*>(shared_.rows[array][count % kRing]);
      const uint2 packed = of_step[q() * kChannelLanes + g()];
      unpack(packed, values);
      return packed;
    };
    PerChannel u, dt, grad_y, z, y, bias, delta, delta_u, slope, grad_z;
    const uint2 packed_u = get(kU, u);
    get(kDt, dt);
    get(kGradY, grad_y);
    get(kZ, z);
    get(kY, y);
    unpack(shared_.dt_bias[g()], bias);
    // With & as && would be a branch, and read before anything is written, as it waits for that.
    const bool begins = kDocuments && (pass_.document_start != nullptr) &
                                          (shared_.document_start[count % kRing][q()] ==
                                           static_cast<int>(first_step_ + t + q()));
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
#pragma unroll
      for (float& value : delta) value = begins ? scan_cuda::kResetDelta : value;
    }
    reinterpret_cast<uint2&>(column(to, kStagedU)) = packed_u;
    column(to, kDelta) = pack(delta);
    column(to, kDeltaU) = pack(delta_u);
    column(to, kStagedGradY) = pack(grad_y);
    column(to, kSlope) = pack(slope);
    store(kGradZ, pass_.grad_z, pass_.z_mode, t, grad_z);
  }

  __device__ void get_decay(int step, int i, int j, const PerChannel& delta) {
    decay_[step][i][j] = cuda::exp2_approx(delta[i] * rate_[i][j]);
  }
  /// The decays of a chunk's step.
  __device__ void get_decays(unsigned count, int step) {
    PerChannel delta;
    unpack(column(staged(count, step), kDelta), delta);
#pragma unroll
    for (int i = 0; i < kLaneChannels; ++i) {
#pragma unroll
      for (int j = 0; j < kLaneStates; ++j) get_decay(step, i, j, delta);
    }
  }

  /// Takes the state through a chunk; keeps the states.
  __device__ void walk_forward(unsigned count, LaneTile (&state)[kChunk]) const {
    LaneTile before;
    get_state(count, before);
    const OuterProducts inputs(column(staged_own(count), kDeltaU),
                               shared_at<float2>(row_of(count, 0, q()) + g() * sizeof(float2)));
#pragma unroll
    for (int t = 0; t < kChunk; ++t) {
      inputs.get(t, state[t]);
#pragma unroll
      for (int i = 0; i < kLaneChannels; ++i) {
#pragma unroll
        for (int j = 0; j < kLaneStates; ++j) {
          const float last = t == 0 ? before[i][j] : state[t - 1][i][j];
          state[t][i][j] = fmaf(decay_[t][i][j], last, state[t][i][j]);
        }
      }
    }
  }

  /// Takes gamma back through the chunk, and leaves parts of grad_b and grad_c for sum_channels().
  /// Puts decays of the next chunk in the place of those it has done with.
  __device__ void walk_backward(unsigned count, const LaneTile (&state)[kChunk]) {
    gamma_b_ = StateSums();
    gamma_rate_ = StateSums();
#pragma unroll
    for (int t = kChunk - 1; t >= 0; --t) {
      LaneTile before;
      if (t == 0) get_state(count, before);
      const unsigned at = staged(count, t);
      PerChannel delta, delta_u, grad_y, with_b, with_rate, next_delta;
      PerState b, c, grad_b, grad_c;
      unpack(column(at, kDelta), delta);
      unpack(column(at, kDeltaU), delta_u);
      unpack(column(at, kStagedGradY), grad_y);
      if (t >= kEarlySteps) unpack(column(staged(count + 1, t), kDelta), next_delta);
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
          gamma_[i][j] = g * decay_[t][i][j];
          if (t >= kEarlySteps) get_decay(t, i, j, next_delta);
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
    store_shared(offsetof(BlockShared, sums) + count % kWideRing * (kBlockTiles * kTileBytes) +
                     threadIdx.x / 32 * kTileBytes + lane_ * kVector,
                 sum, written_steps_ != 0);
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
  LaneTile decay_[kChunk];  ///< of the chunk that is gone through, and the next one
  PerChannel d_skip_sum_, dt_bias_sum_;
  StateSums gamma_b_, gamma_rate_;  ///< of the last chunk
};
}  // namespace jiboia::scan_tiles
