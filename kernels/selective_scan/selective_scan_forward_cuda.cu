#include "kernels/selective_scan/selective_scan_cuda.cuh"
#include "kernels/selective_scan/selective_scan_tiles.h"

namespace jiboia {
namespace {

using namespace scan_cuda;

template <class T>
struct Results {
  Rows<T> y;
  const float* initial_state;
  float *states, *final_state;
};

/// What owners leave for lanes, and lanes for owners, of one chunk.
template <class T, int kBlock>
struct SharedChunk {
  float2 step[kChunk][kBlock];           ///< delta where it makes the decay; delta * u
  float sum[kChunk][kBlock + kPadding];  ///< y before the gate
  T z[kChunk][kBlock];
};

/// Takes the lane's states of kChannels channels, kChannelLanes apart from `channel` on, through
/// the kQuad steps from `begin` on, and adds their part to the sums.
template <int kChannels, class Chunk>
__device__ void walk(Chunk& chunk, const GroupTile& group, const Lane& lane, int channel, int begin,
                     const LaneStates (&rate)[kChannels], LaneStates (&state)[kChannels]) {
  float sums[kChannels][kQuad];
#pragma unroll
  for (int s = 0; s < kQuad; ++s) {
    const int t = begin + s;
    const Four b(&group.b[t][lane.state * kLaneStates]);
    const Four c(&group.c[t][lane.state * kLaneStates]);
#pragma unroll
    for (int k = 0; k < kChannels; ++k) {
      const float2 step = chunk.step[t][channel + k * kChannelLanes];
      float sum = 0;
#pragma unroll
      for (int j = 0; j < kLaneStates; ++j) {
        const float decayed = cuda::exp2_approx(step.x * rate[k][j]) * state[k][j];
        state[k][j] = fmaf(step.y, b[j], decayed);
        sum = fmaf(state[k][j], c[j], sum);
      }
      sums[k][s] = sum;
    }
  }
#pragma unroll
  for (int k = 0; k < kChannels; ++k) {
    const float sum = sum_over_states(sums[k], lane);
    chunk.sum[begin + lane.state][channel + k * kChannelLanes] += sum;
  }
}

/// A thread as owner of a channel and of kChannels steps of each quad: whatever is the same for all
/// states. It brings the chunk ahead of the lanes' and writes the results of the one behind.
template <class T, int kChannels>
class ForwardOwner {
 public:
  static constexpr int kBlock = kWarps * kChannelLanes * kChannels;
  using Chunk = SharedChunk<T, kBlock>;

  __device__ ForwardOwner(const Operands<T>& in, const Rows<T>& y, int first_row, int first_channel)
      : in_(in),
        first_row_(first_row),
        channel_(static_cast<int>(threadIdx.x) % kBlock),
        first_step_(static_cast<int>(threadIdx.x) / kBlock),
        d_(first_channel + channel_),
        d_skip_(d_ < in.D ? in.d_skip[d_] : 0),
        dt_bias_(d_ < in.D ? in.dt_bias[d_] : 0),
        u_column_(in.u, first_row + first_step_, d_),
        dt_column_(in.dt, first_row + first_step_, d_),
        z_column_(in.z, first_row + first_step_, d_),
        y_column_(y, first_row + first_step_, d_) {}

  /// Asks for the values at the quad of steps from `begin` on in `chunk`, which has `steps` steps.
  /// The columns expect one quad after the other.
  __device__ void load(int chunk, int begin, int steps) {
#pragma unroll
    for (int i = 0; i < kChannels; ++i) {
      const int t = begin + first_step_ + i * kRows, step = chunk * kChunk + t;
      const bool present = t < steps && d_ < in_.D;
      u_[i] = u_column_.get(present);
      dt_[i] = dt_column_.get(present);
      z_[i] = z_column_.get(present);
      start_[i] = in_.document_start && t < steps ? in_.document_start[first_row_ + step] : -1;
      u_column_.next();
      dt_column_.next();
      z_column_.next();
    }
  }
  /// Waits for them and leaves what the chunk needs.
  __device__ void stage(Chunk& shared, int chunk, int begin, int steps) const {
#pragma unroll
    for (int i = 0; i < kChannels; ++i) {
      const int t = begin + first_step_ + i * kRows;
      const float delta = t < steps ? Sigmoid(to_float(dt_[i]) + dt_bias_).softplus() : 0;
      const bool reset = start_[i] == chunk * kChunk + t;
      shared.step[t][channel_] = {reset ? kResetDelta : delta, delta * to_float(u_[i])};
      shared.sum[t][channel_] = d_skip_ * to_float(u_[i]);
      shared.z[t][channel_] = z_[i];
    }
  }
  /// Writes y at the quad of steps from `begin` on, once all sums are there. One quad after the
  /// other.
  __device__ void finish(const Chunk& shared, int begin, int steps) {
#pragma unroll
    for (int i = 0; i < kChannels; ++i) {
      const int t = begin + first_step_ + i * kRows;
      if (t < steps && d_ < in_.D) {
        const float z = to_float(shared.z[t][channel_]);
        const float gate = z * Sigmoid(z).sigmoid();
        *y_column_ = cuda::from_float<T>(shared.sum[t][channel_] * gate);
      }
      y_column_.next();
    }
  }

 private:
  static constexpr int kRows = kThreads / kBlock;  // from one step to the next
  static_assert(kRows * kChannels == kQuad);

  const Operands<T>& in_;
  const int first_row_, channel_, first_step_, d_;
  const float d_skip_, dt_bias_;
  Column<const T, kRows> u_column_, dt_column_, z_column_;
  Column<T, kRows> y_column_;
  T u_[kChannels], dt_[kChannels], z_[kChannels];
  int start_[kChannels];
};

/// Grid (B * blocks of 32 kChannels channels), block kThreads, 19 to 37 KiB of shared memory.
/// Limited by instruction issue: about 7 instructions a state and step, of which one is an
/// exponential, and about 130 a channel and step. Two channels a thread read b and c half as often,
/// and fill the GPU only when there are many sequences.
///
/// Owners work quad by quad beside the lanes: so there is one barrier a chunk and group of states,
/// memory has time to answer, and there is a turn in front of the first chunk and one behind the
/// last.
template <class T, int kChannels>
__global__ void __launch_bounds__(kThreads, kChannels == 1 ? 8 : 6)
    scan_forward(Operands<T> in, Results<T> out) {
  using Owner = ForwardOwner<T, kChannels>;
  __shared__ typename Owner::Chunk chunks[2];
  __shared__ GroupTile groups[2];
  const int blocks = (in.D + Owner::kBlock - 1) / Owner::kBlock;
  const int batch = static_cast<int>(blockIdx.x) / blocks, first_row = batch * in.L;
  const int first_channel = static_cast<int>(blockIdx.x) % blocks * Owner::kBlock;
  const std::int64_t state_size = std::int64_t{in.N} * in.D;
  const float* initial_state = out.initial_state ? out.initial_state + batch * state_size : nullptr;
  float* final_state = out.final_state ? out.final_state + batch * state_size : nullptr;
  float* states = out.states + batch * in.chunks * state_size;

  Owner owner(in, out.y, first_row, first_channel);
  GroupLoader<T> loader;
  const Lane lane;
  const int channel = lane.warp * kChannels * kChannelLanes + lane.channel;
  LaneStates rate[kChannels], state[kChannels];
  int group = 0;
  for (int chunk = -1; chunk <= in.chunks; ++chunk) {
    const auto steps_of = [&](int which) {
      return which < 0 ? 0 : min(in.L - which * kChunk, kChunk);
    };
    const int last_steps = steps_of(chunk - 1), steps = steps_of(chunk);
    const int next_steps = steps_of(chunk + 1), next_row = first_row + (chunk + 1) * kChunk;
    auto &here = chunks[chunk & 1], &there = chunks[(chunk + 1) & 1];
    const int N = steps > 0 ? in.N : 1;
    for (int first_state = 0; first_state < N; first_state += kGroup) {
      const auto place = [&](int k) {
        return LanePlace(first_channel + channel + k * kChannelLanes,
                         first_state + lane.state * kLaneStates, in.D, in.N);
      };
      if (first_state + kGroup < N) {
        loader.load(in, next_row - kChunk, steps, first_state + kGroup);
      } else {
        loader.load(in, next_row, next_steps, 0);
      }
#pragma unroll
      for (int k = 0; k < kChannels && steps > 0; ++k) {
        if (chunk == 0 || in.N > kGroup) place(k).load_rates(in.a_log, rate[k]);
        if (chunk == 0) {
          place(k).load_states(initial_state, state[k]);
          place(k).store_states(state[k], states);
        } else if (in.N > kGroup) {
          place(k).load_states(states + chunk * state_size, state[k]);
        }
      }
      __syncthreads();
#pragma unroll 1
      for (int begin = 0; begin < kChunk; begin += kQuad) {
        if (first_state == 0) owner.load(chunk + 1, begin, next_steps);
        if (begin < steps) walk<kChannels>(here, groups[group], lane, channel, begin, rate, state);
        if (first_state > 0) continue;
        if (chunk > 0) owner.finish(there, begin, last_steps);
        owner.stage(there, chunk + 1, begin, next_steps);
      }
      group ^= 1;
      loader.store(groups[group]);
      float* behind = chunk + 1 < in.chunks ? states + (chunk + 1) * state_size : final_state;
#pragma unroll
      for (int k = 0; k < kChannels && steps > 0 && behind; ++k) {
        place(k).store_states(state[k], behind);
      }
    }
  }
}

std::int64_t block_count(std::int64_t B, std::int64_t D, int channels) {
  return B * ceil_div(D, kWarps * kChannelLanes * channels);
}

}  // namespace

void SelectiveScan::forward(CudaExec& gpu, const ForwardArgs<SelectiveScan>& args) {
  const auto optional = [](const Tensor& tensor) {
    return tensor ? tensor.as<float>() : static_cast<float*>(nullptr);
  };
  const std::int64_t B = args.in.u.shape[0];
  if (args.out.states.dtype == Dtype::kBf16) {  // infer() has chosen the fast kernels
    return scan_tiles::forward(gpu, args, scan_tiles::ForwardPlan::of(args.in.u));
  }
  cuda::visit_stored(args.in.u.dtype, [&]<class T>() {
    const Operands<T> in(args.in);
    const Results<T> out{.y = Rows<T>(args.out.y),
                         .initial_state = optional(args.in.initial_state),
                         .states = args.out.states.as<float>(),
                         .final_state = optional(args.out.final_state)};
    const auto run = [&]<int kChannels>() {
      const std::int64_t blocks = block_count(B, in.D, kChannels);
      cuda::launch(gpu, kName, scan_forward<T, kChannels>,
                   {.grid = dim3(static_cast<unsigned>(blocks)), .block = dim3(kThreads)}, in, out);
    };
    // Enough blocks of two channels a thread to keep a large GPU busy; the results are the same.
    constexpr std::int64_t kManyBlocks = 512;
    if (block_count(B, in.D, 2) >= kManyBlocks) {
      run.template operator()<2>();
    } else {
      run.template operator()<1>();
    }
  });
}

}  // namespace jiboia
