#include "kernels/column_sums.cuh"
#include "kernels/selective_scan/selective_scan_backward_tiles.cuh"
#include "kernels/selective_scan/selective_scan_cuda.cuh"

namespace jiboia {
namespace {

using namespace scan_cuda;

constexpr int kBlock = kWarps * kChannelLanes;  // channels
constexpr int kHalf = 2 * kQuad;                // steps whose states are in registers at a time
constexpr float kLn2 = 0.6931471805599453f;

std::int64_t block_count(std::int64_t D) { return ceil_div(D, kBlock); }

/// Working memory of the pass: what is added up in a fixed order at the end.
struct Partials {
  Partials(ScratchReader scratch, std::int64_t B, std::int64_t L, std::int64_t D, std::int64_t N)
      : b(scratch.take<float>(block_count(D) * B * L * N)),
        c(scratch.take<float>(block_count(D) * B * L * N)),
        a_log(scratch.take<float>(B * D * N)),
        d_skip(scratch.take<float>(B * D)),
        dt_bias(scratch.take<float>(B * D)),
        gamma(scratch.take<float>(N > kGroup ? B * D * N : 0)) {}

  static std::int64_t bytes(std::int64_t B, std::int64_t L, std::int64_t D, std::int64_t N) {
    const auto padded = ScratchReader::padded_bytes<float>;
    return static_cast<std::int64_t>(2 * padded(block_count(D) * B * L * N) +
                                     (N > kGroup ? 2 : 1) * padded(B * D * N) + 2 * padded(B * D));
  }

  float *b, *c;             ///< (blocks of channels, B * L, N)
  float* a_log;             ///< (B, D, N)
  float *d_skip, *dt_bias;  ///< (B, D)
  /// (B, D, N): the gradient of the state on its way from chunk to chunk, where there are more
  /// states than fit into registers.
  float* gamma;
};

template <class T>
struct Gradients {
  const float* states;
  Rows<const T> y;
  const float* final_state;
  GradRows<T> u, dt, z;
  Partials partials;
};

/// What owners leave for lanes and for themselves, of one chunk.
struct SharedChunk {
  /// delta where it makes the decay; delta * u; the gradient of y before the gate; delta.
  float4 step[kChunk][kBlock];
  float u[kChunk][kBlock], slope[kChunk][kBlock];  ///< slope: softplus' of dt + dt_bias
  float gate[kChunk][kBlock];  ///< the gradient of z but for the factor y before the gate
};

/// What lanes leave for owners.
struct SharedSums {
  using Sums = float[kChunk][kBlock + kPadding];
  Sums y, gamma_b, gamma_rate;  ///< over states: of c * h, gamma * b, gamma * rate * decayed h
};

/// Sums of one warp over its channels: of dy * h and of gamma * delta * u.
struct SharedRows {
  float c[kChunk][kGroup], b[kChunk][kGroup];
};

struct BackwardShared {
  SharedChunk chunks[2];
  GroupTile groups[2];
  SharedSums sums;
  SharedRows rows[kWarps];
};

/// A thread as lane: its states of one channel on their way.
class BackwardLane {
 public:
  using Quad = float[kQuad][kLaneStates];

  __device__ explicit BackwardLane(BackwardShared& shared)
      : shared_(shared), channel_(lane_.warp * kChannelLanes + lane_.channel) {}

  __device__ LanePlace place(int first_channel, int first_state, int D, int N) const {
    return LanePlace(first_channel + channel_, first_state + lane_.state * kLaneStates, D, N);
  }
  /// Begins a chunk and group of states.
  __device__ void begin(int chunk, int group, bool first_group) {
    chunk_ = &shared_.chunks[chunk];
    group_ = &shared_.groups[group];
    first_group_ = first_group;
  }

  /// Takes `state` through the kHalf first steps of the chunk.
  __device__ void skip_half(LaneStates& state) const {
#pragma unroll 4
    for (int t = 0; t < kHalf; ++t) {
      const float4 step = chunk_->step[t][channel_];
      const Four b(&group_->b[t][lane_.state * kLaneStates]);
#pragma unroll
      for (int j = 0; j < kLaneStates; ++j) {
        const float decayed = cuda::exp2_approx(step.x * rate[j]) * state[j];
        state[j] = fmaf(step.y, b[j], decayed);
      }
    }
  }

  /// Takes `state` through the kQuad steps from `begin` on, and keeps decays and decayed states.
  __device__ void forward(int begin, LaneStates& state, Quad& decay, Quad& decayed) const {
    float y[kQuad];
#pragma unroll
    for (int pair = 0; pair < kQuad; pair += 2) {
      float grad_c[2 * kLaneStates];
#pragma unroll
      for (int s = pair; s < pair + 2; ++s) {
        const int t = begin + s;
        const float4 step = chunk_->step[t][channel_];
        const Four b(&group_->b[t][lane_.state * kLaneStates]);
        const Four c(&group_->c[t][lane_.state * kLaneStates]);
        y[s] = 0;
#pragma unroll
        for (int j = 0; j < kLaneStates; ++j) {
          decay[s][j] = cuda::exp2_approx(step.x * rate[j]);
          decayed[s][j] = decay[s][j] * state[j];
          state[j] = fmaf(step.y, b[j], decayed[s][j]);
          y[s] = fmaf(state[j], c[j], y[s]);
          grad_c[(s - pair) * kLaneStates + j] = step.z * state[j];
        }
      }
      add_channels(grad_c, shared_.rows[lane_.warp].c, begin + pair);
    }
    add_states(y, shared_.sums.y, begin);
  }

  /// Takes the gradient of the states back through these steps.
  __device__ void backward(int begin, const Quad& decay, const Quad& decayed) {
    float gamma_b[kQuad], gamma_rate[kQuad];
#pragma unroll
    for (int pair = kQuad - 2; pair >= 0; pair -= 2) {
      float grad_b[2 * kLaneStates];
#pragma unroll
      for (int s = pair + 1; s >= pair; --s) {
        const int t = begin + s;
        const float4 step = chunk_->step[t][channel_];
        const Four b(&group_->b[t][lane_.state * kLaneStates]);
        const Four c(&group_->c[t][lane_.state * kLaneStates]);
        gamma_b[s] = 0;
        gamma_rate[s] = 0;
#pragma unroll
        for (int j = 0; j < kLaneStates; ++j) {
          const float g = fmaf(step.z, c[j], gamma[j]), g_decayed = g * decayed[s][j];
          gamma_b[s] = fmaf(g, b[j], gamma_b[s]);
          gamma_rate[s] = fmaf(g_decayed, rate[j], gamma_rate[s]);
          rate_sum[j] = fmaf(g_decayed, step.x, rate_sum[j]);
          gamma[j] = g * decay[s][j];
          grad_b[(s - pair) * kLaneStates + j] = g * step.y;
        }
      }
      add_channels(grad_b, shared_.rows[lane_.warp].b, begin + pair);
    }
    add_states(gamma_b, shared_.sums.gamma_b, begin);
    add_states(gamma_rate, shared_.sums.gamma_rate, begin);
  }

  LaneStates rate;      ///< decay rates
  LaneStates gamma;     ///< gradient of the states, behind the last step that was done
  LaneStates rate_sum;  ///< sum over steps of gamma * decayed * delta

 private:
  /// `values`: of two steps from `begin` on, kLaneStates each.
  __device__ void add_channels(const float (&values)[2 * kLaneStates],
                               float (&rows)[kChunk][kGroup], int begin) const {
    const float sum = sum_over_channels(values, lane_);
    const int step = lane_.channel / kLaneStates, j = lane_.channel % kLaneStates;
    rows[begin + step][lane_.state * kLaneStates + j] = sum;
  }
  __device__ void add_states(const float (&values)[kQuad], SharedSums::Sums& sums,
                             int begin) const {
    const float sum = sum_over_states(values, lane_);
    float& to = sums[begin + lane_.state][channel_];
    to = first_group_ ? sum : to + sum;
  }

  BackwardShared& shared_;
  const Lane lane_;
  const int channel_;  // of the block's
  const SharedChunk* chunk_ = nullptr;
  const GroupTile* group_ = nullptr;
  bool first_group_ = true;
};

/// A thread as owner of a channel and of every kWarps-th step: whatever is the same for all states.
template <class T>
class BackwardOwner {
 public:
  __device__ BackwardOwner(const Operands<T>& in, const Gradients<T>& out, int first_row,
                           int first_channel)
      : in_(in),
        out_(out),
        first_row_(first_row),
        channel_(static_cast<int>(threadIdx.x) % kBlock),
        first_step_(static_cast<int>(threadIdx.x) / kBlock),
        d_(first_channel + channel_),
        d_skip_(d_ < in.D ? in.d_skip[d_] : 0),
        dt_bias_(d_ < in.D ? in.dt_bias[d_] : 0) {}

  /// Asks for the values at one of the kQuad steps from `begin` on in a chunk of `steps` steps.
  __device__ void load(int chunk, int begin, int steps) {
    const int t = begin + first_step_, step = chunk * kChunk + t, row = first_row_ + step;
    const bool present = t < steps && d_ < in_.D;
    const T zero = cuda::from_float<T>(0);
    u_ = present ? element(in_.u, row, d_) : zero;
    dt_ = present ? element(in_.dt, row, d_) : zero;
    z_ = present ? element(in_.z, row, d_) : zero;
    grad_y_ = present && out_.y.data ? element(out_.y, row, d_) : zero;
    start_ = t < steps && in_.document_start ? in_.document_start[row] : -1;
  }
  /// Waits for them and leaves what the chunk needs.
  __device__ void stage(SharedChunk& shared, int chunk, int begin, int steps) const {
    const int t = begin + first_step_;
    const float u = to_float(u_), z = to_float(z_), g = to_float(grad_y_);
    const Sigmoid step(to_float(dt_) + dt_bias_);
    const float delta = t < steps ? step.softplus() : 0, gate = Sigmoid(z).sigmoid();
    const bool reset = start_ == chunk * kChunk + t;
    shared.step[t][channel_] = {reset ? kResetDelta : delta, delta * u, g * (z * gate), delta};
    shared.u[t][channel_] = u;
    shared.slope[t][channel_] = step.sigmoid();
    shared.gate[t][channel_] = g * (gate * fmaf(z, 1 - gate, 1.f));
  }

  /// Writes the gradients of a chunk, once all sums over states are there.
  __device__ void finish(const SharedChunk& shared, const SharedSums& sums, int chunk, int steps) {
    if (d_ >= in_.D) return;
#pragma unroll
    for (int t = first_step_; t < kChunk; t += kWarps) {
      if (t >= steps) break;
      const int row = first_row_ + chunk * kChunk + t;
      const float4 step = shared.step[t][channel_];
      const float u = shared.u[t][channel_], gamma_b = sums.gamma_b[t][channel_];
      const float grad_dt =
          shared.slope[t][channel_] * fmaf(u, gamma_b, kLn2 * sums.gamma_rate[t][channel_]);
      d_skip_sum_ = fmaf(step.z, u, d_skip_sum_);
      dt_bias_sum_ += grad_dt;
      if (out_.u.data) {
        cuda::put(out_.u.mode, element<T>(out_.u, row, d_),
                  fmaf(d_skip_, step.z, step.w * gamma_b));
      }
      if (out_.dt.data) cuda::put(out_.dt.mode, element<T>(out_.dt, row, d_), grad_dt);
      if (out_.z.data) {
        const float y = fmaf(d_skip_, u, sums.y[t][channel_]);
        cuda::put(out_.z.mode, element<T>(out_.z, row, d_), shared.gate[t][channel_] * y);
      }
    }
  }

  /// Adds up the owners of each channel, in order. `sums`: an array in shared memory that nobody
  /// uses any more.
  __device__ void finish_batch_row(SharedSums& sums, std::int64_t batch) const {
    sums.y[first_step_][channel_] = d_skip_sum_;
    sums.gamma_b[first_step_][channel_] = dt_bias_sum_;
    __syncthreads();
    if (first_step_ != 0 || d_ >= in_.D) return;
    float d_skip = 0, dt_bias = 0;
    for (int i = 0; i < kWarps; ++i) {
      d_skip += sums.y[i][channel_];
      dt_bias += sums.gamma_b[i][channel_];
    }
    out_.partials.d_skip[batch * in_.D + d_] = d_skip;
    out_.partials.dt_bias[batch * in_.D + d_] = dt_bias;
  }

 private:
  const Operands<T>& in_;
  const Gradients<T>& out_;
  const int first_row_, channel_, first_step_, d_;
  const float d_skip_, dt_bias_;
  float d_skip_sum_ = 0, dt_bias_sum_ = 0;
  T u_, dt_, z_, grad_y_;
  int start_;
};

/// Adds up the warps' sums over channels, in order, and writes those of `steps` steps and of up to
/// kGroup of the N states to `to_b` and `to_c` (steps, N).
__device__ void write_rows(const SharedRows (&from)[kWarps], float* to_b, float* to_c, int N,
                           int states, int steps) {
  constexpr int kRows = kThreads / kGroup;
  const int n = static_cast<int>(threadIdx.x) % kGroup;
  const int first = static_cast<int>(threadIdx.x) / kGroup;
#pragma unroll
  for (int t = first; t < first + kChunk; t += kRows) {
    if (n >= states || t >= steps) break;
    float b = 0, c = 0;
#pragma unroll
    for (int warp = 0; warp < kWarps; ++warp) {
      b += from[warp].b[t][n];
      c += from[warp].c[t][n];
    }
    to_b[std::int64_t{t} * N + n] = b;
    to_c[std::int64_t{t} * N + n] = c;
  }
}

/// Grid (B * blocks of kBlock channels), block kThreads, 48 KiB of shared memory. Limited by
/// instruction issue: about 32 instructions a state and step, of which 1.5 are exponentials, and
/// about 270 a channel and step.
///
/// Chunks are done from the last to the first, a chunk half by half: from the state saved before
/// it a lane goes forward to the half (a second time, for the latter), through the half, keeping
/// decays and decayed states in registers, and back. Meanwhile owners bring the next chunk, a quad
/// of steps at a time; so there is a turn in front of the last chunk.
template <class T>
__global__ void __launch_bounds__(kThreads, 4) scan_backward(Operands<T> in, Gradients<T> out) {
  __shared__ BackwardShared shared;
  const int blocks = (in.D + kBlock - 1) / kBlock, block = static_cast<int>(blockIdx.x) % blocks;
  const int batch = static_cast<int>(blockIdx.x) / blocks, first_row = batch * in.L;
  const std::int64_t state_size = std::int64_t{in.N} * in.D;
  const float* states = out.states + batch * in.chunks * state_size;
  float* const rate_sums = out.partials.a_log + batch * state_size;
  float* const gammas = out.partials.gamma + batch * state_size;

  BackwardOwner<T> owner(in, out, first_row, block * kBlock);
  BackwardLane lane(shared);
  GroupLoader<T> loader;
  int group = 0;
  for (int chunk = in.chunks; chunk >= 0; --chunk) {
    const bool walking = chunk < in.chunks, is_last = chunk == in.chunks - 1;
    const int steps = walking ? min(in.L - chunk * kChunk, kChunk) : 0;
    const int next_steps = chunk > 0 ? min(in.L - (chunk - 1) * kChunk, kChunk) : 0;
    const int row = first_row + chunk * kChunk;
    SharedChunk &here = shared.chunks[chunk & 1], &there = shared.chunks[(chunk + 1) & 1];
    const int N = walking ? in.N : 1;
    for (int first_state = 0; first_state < N; first_state += kGroup) {
      const LanePlace place = lane.place(block * kBlock, first_state, in.D, in.N);
      LaneStates before;
      if (walking) {
        place.load_states(states + chunk * state_size, before);
        if (is_last || in.N > kGroup) place.load_rates(in.a_log, lane.rate);
        if (is_last) {
          place.load_states(out.final_state ? out.final_state + batch * state_size : nullptr,
                            lane.gamma);
#pragma unroll
          for (float& sum : lane.rate_sum) sum = 0;
        } else if (in.N > kGroup) {
          place.load(gammas, lane.gamma);
          place.load(rate_sums, lane.rate_sum);
        }
      }
      if (first_state + kGroup < N) {
        loader.load(in, row, steps, first_state + kGroup);
      } else {
        loader.load(in, row - kChunk, next_steps, 0);
      }
      __syncthreads();
      lane.begin(chunk & 1, group, first_state == 0);
#pragma unroll 1
      for (int first = kHalf; first >= 0; first -= kHalf) {
        const bool walks = first < steps, brings = first_state == 0;
        BackwardLane::Quad decay[2], decayed[2];
        LaneStates state;
        if (brings) owner.load(chunk - 1, first, next_steps);
        if (walks) {
#pragma unroll
          for (int j = 0; j < kLaneStates; ++j) state[j] = before[j];
          if (first > 0) lane.skip_half(state);
          lane.forward(first, state, decay[0], decayed[0]);
        }
        if (brings) owner.stage(there, chunk - 1, first, next_steps);
        if (walks) {
          lane.forward(first + kQuad, state, decay[1], decayed[1]);
          lane.backward(first + kQuad, decay[1], decayed[1]);
        }
        if (brings) owner.load(chunk - 1, first + kQuad, next_steps);
        if (walks) lane.backward(first, decay[0], decayed[0]);
        if (brings) owner.stage(there, chunk - 1, first + kQuad, next_steps);
      }
      group ^= 1;
      loader.store(shared.groups[group]);
      if (!walking) continue;
      if (chunk == 0) {
#pragma unroll
        for (int j = 0; j < kLaneStates; ++j) lane.rate_sum[j] *= lane.rate[j] * kLn2;
        place.store(lane.rate_sum, rate_sums);
      } else if (in.N > kGroup) {
        place.store(lane.gamma, gammas);
        place.store(lane.rate_sum, rate_sums);
      }
      __syncthreads();
      const std::int64_t at = (std::int64_t{block} * in.rows + row) * in.N + first_state;
      write_rows(shared.rows, out.partials.b + at, out.partials.c + at, in.N, in.N - first_state,
                 steps);
    }
    if (walking) owner.finish(here, shared.sums, chunk, steps);
  }
  __syncthreads();
  owner.finish_batch_row(shared.sums, batch);
}

}  // namespace

std::int64_t SelectiveScan::scratch_bytes(const CudaExec&, Pass pass, const In<Spec>& in,
                                          const Attrs& attrs) {
  const bool tiles = scan_tiles::uses_tiles(in, attrs);
  if (pass == Pass::kForward) {
    return tiles ? scan_tiles::forward_scratch_bytes(in.u, scan_tiles::ForwardPlan::of(in.u)) : 0;
  }
  if (tiles) return scan_tiles::backward_tiles_scratch_bytes(in);
  return Partials::bytes(in.u.shape[0], in.u.shape[1], in.u.shape[2], in.a_log.shape[1]);
}

void SelectiveScan::backward(CudaExec& gpu, const BackwardArgs<SelectiveScan>& args) {
  const auto spec_of = [](const Tensor& tensor) -> Spec { return tensor; };
  if (scan_tiles::uses_tiles(map_fields<Spec, In<Spec>, Tensor>(args.in, spec_of), args.attrs)) {
    scan_tiles::backward_tiles(gpu, args);
    return;
  }
  const std::int64_t B = args.in.u.shape[0], L = args.in.u.shape[1], D = args.in.u.shape[2];
  const Partials partials(ScratchReader(args.scratch), B, L, D, args.in.a_log.shape[1]);
  cuda::visit_stored(args.in.u.dtype, [&]<class T>() {
    const auto& final_state = args.grad_out.final_state;
    const Gradients<T> out{.states = args.out.states.as<float>(),
                           .y = Rows<const T>(args.grad_out.y),
                           .final_state = final_state ? final_state.as<float>() : nullptr,
                           .u = GradRows<T>(args.grad_in.u),
                           .dt = GradRows<T>(args.grad_in.dt),
                           .z = GradRows<T>(args.grad_in.z),
                           .partials = partials};
    cuda::launch(gpu, kName, scan_backward<T>,
                 {.grid = dim3(static_cast<unsigned>(B * block_count(D))), .block = dim3(kThreads)},
                 Operands<T>(args.in), out);
  });
  const auto sum = [&](const float* from, std::int64_t tiles, const Grad& to) {
    if (to) cuda::sum_partials(gpu, kName, from, tiles, to);
  };
  sum(partials.b, block_count(D), args.grad_in.b);
  sum(partials.c, block_count(D), args.grad_in.c);
  sum(partials.a_log, B, args.grad_in.a_log);
  sum(partials.d_skip, B, args.grad_in.d_skip);
  sum(partials.dt_bias, B, args.grad_in.dt_bias);
}

}  // namespace jiboia
