#include "kernels/selective_scan/selective_scan_cuda.cuh"

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
        const float decayed = exp2_nonpositive(step.x * rate[k][j]) * state[k][j];
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

/// Grid (B * blocks of 32 kChannels channels), block kThreads, 17 KiB of shared memory for
/// kChannels 1 and 34 KiB for 2. Limited by instruction issue: about 10 instructions a state and
/// step, of which one is an exponential, and about 80 a channel and step. Two channels a thread
/// read b and c half as often, and fill the GPU only when there are many sequences.
///
/// While lanes walk through a chunk, owners bring the next one and write the results of the one
/// before, a quad of steps at a time: one barrier a chunk and group of states, and memory is far
/// ahead. So there is a turn before the first chunk and one behind the last.
template <class T, int kChannels>
__global__ void __launch_bounds__(kThreads, kChannels == 1 ? 8 : 6)
    scan_forward(Operands<T> in, Results<T> out) {
  constexpr int kBlock = kWarps * kChannelLanes * kChannels;
  constexpr int kRows = kThreads / kBlock;  // from one owned step to the next
  static_assert(kRows * kChannels == kQuad);
  __shared__ SharedChunk<T, kBlock> chunks[2];
  __shared__ GroupTile groups[2];
  const int blocks = (in.D + kBlock - 1) / kBlock;
  const int batch = static_cast<int>(blockIdx.x) / blocks, first_row = batch * in.L;
  const int first_channel = static_cast<int>(blockIdx.x) % blocks * kBlock;
  const std::int64_t state_size = std::int64_t{in.N} * in.D;
  float* states = out.states + batch * in.chunks * state_size;
  float* final_state = out.final_state ? out.final_state + batch * state_size : nullptr;

  // As owner. Columns of inputs are a chunk ahead, that of y is a chunk behind.
  const int owned = static_cast<int>(threadIdx.x) % kBlock, d = first_channel + owned;
  const int owned_step = static_cast<int>(threadIdx.x) / kBlock;
  const float d_skip = d < in.D ? in.d_skip[d] : 0, dt_bias = d < in.D ? in.dt_bias[d] : 0;
  Column<const T, kRows> u_column(in.u, first_row + owned_step, d);
  Column<const T, kRows> dt_column(in.dt, first_row + owned_step, d);
  Column<const T, kRows> z_column(in.z, first_row + owned_step, d);
  Column<T, kRows> y_column(out.y, first_row + owned_step, d);

  // As lane.
  const Lane lane;
  const int channel = lane.warp * kChannels * kChannelLanes + lane.channel;
  LaneStates rate[kChannels], state[kChannels];
  GroupLoader<T> loader;
  int group = 0;

  for (int chunk = -1; chunk <= in.chunks; ++chunk) {
    const auto steps_of = [&](int which) {
      return which < 0 ? 0 : min(in.L - which * kChunk, kChunk);
    };
    const int steps = steps_of(chunk), next_steps = steps_of(chunk + 1);
    const int next_end = d < in.D ? next_steps : 0, last_end = d < in.D ? steps_of(chunk - 1) : 0;
    const int next_row = first_row + (chunk + 1) * kChunk;
    auto &here = chunks[chunk & 1], &there = chunks[(chunk + 1) & 1];
    const int N = steps > 0 ? in.N : 1;
    for (int first_state = 0; first_state < N; first_state += kGroup) {
      if (first_state + kGroup < N) {
        loader.load(in, next_row - kChunk, steps, first_state + kGroup);
      } else {
        loader.load(in, next_row, next_steps, 0);
      }
      if (steps > 0) {
#pragma unroll
        for (int k = 0; k < kChannels; ++k) {
          const LanePlace place(first_channel + channel + k * kChannelLanes,
                                first_state + lane.state * kLaneStates, in.D, in.N);
          if (chunk == 0 || in.N > kGroup) place.load_rates(in.a_log, rate[k]);
          if (chunk == 0) {
            place.load_states(out.initial_state ? out.initial_state + batch * state_size : nullptr,
                              state[k]);
            place.store_states(state[k], states);
          } else if (in.N > kGroup) {
            place.load_states(states + chunk * state_size, state[k]);
          }
        }
      }
      __syncthreads();
#pragma unroll 1
      for (int begin = 0; begin < kChunk; begin += kQuad) {
        const int first = begin + owned_step;
        T u[kChannels], dt[kChannels], z[kChannels];
        int start[kChannels];
        if (first_state == 0) {
#pragma unroll
          for (int i = 0; i < kChannels; ++i) {
            const int t = first + i * kRows;
            u[i] = u_column.get(t < next_end);
            dt[i] = dt_column.get(t < next_end);
            z[i] = z_column.get(t < next_end);
            start[i] = in.document_start && t < next_steps ? in.document_start[next_row + t] : -1;
            u_column.next();
            dt_column.next();
            z_column.next();
          }
        }
        if (begin < steps) walk<kChannels>(here, groups[group], lane, channel, begin, rate, state);
        if (first_state == 0) {
#pragma unroll
          for (int i = 0; i < kChannels; ++i) {
            const int t = first + i * kRows;
            if (t < last_end) {
              const float gate = to_float(there.z[t][owned]);
              *y_column = cuda::from_float<T>(there.sum[t][owned] * gate * Sigmoid(gate).sigmoid());
            }
            if (chunk > 0) y_column.next();
            const float delta = t < next_end ? Sigmoid(to_float(dt[i]) + dt_bias).softplus() : 0;
            const bool reset = start[i] == (chunk + 1) * kChunk + t;
            there.step[t][owned] = {reset ? kResetDelta : delta, delta * to_float(u[i])};
            there.sum[t][owned] = d_skip * to_float(u[i]);
            there.z[t][owned] = z[i];
          }
        }
      }
      group ^= 1;
      loader.store(groups[group]);
      float* behind = chunk + 1 < in.chunks ? states + (chunk + 1) * state_size : final_state;
#pragma unroll
      for (int k = 0; k < kChannels && steps > 0 && behind; ++k) {
        const LanePlace place(first_channel + channel + k * kChannelLanes,
                              first_state + lane.state * kLaneStates, in.D, in.N);
        place.store_states(state[k], behind);
      }
    }
  }
}

template <class T, int kChannels>
void launch_forward(CudaExec& gpu, const Operands<T>& in, const Results<T>& out) {
  constexpr int kBlock = kWarps * kChannelLanes * kChannels;
  cuda::launch(gpu, SelectiveScan::kName, scan_forward<T, kChannels>,
               {.grid = dim3(static_cast<unsigned>(in.rows / in.L * cuda::ceil_div(in.D, kBlock))),
                .block = dim3(kThreads)},
               in, out);
}

}  // namespace

void SelectiveScan::forward(CudaExec& gpu, const ForwardArgs<SelectiveScan>& args) {
  const auto optional = [](const Tensor& tensor) {
    return tensor ? tensor.as<float>() : static_cast<float*>(nullptr);
  };
  cuda::visit_stored(args.in.u.dtype, [&]<class T>() {
    const Operands<T> in(args.in);
    const Results<T> out{.y = Rows<T>(args.out.y),
                         .initial_state = optional(args.in.initial_state),
                         .states = args.out.states.as<float>(),
                         .final_state = optional(args.out.final_state)};
    // Enough blocks of two channels a thread to keep a large GPU busy; results are the same.
    constexpr std::int64_t kManyBlocks = 512;
    if (in.rows / in.L * cuda::ceil_div(in.D, 2 * kWarps * kChannelLanes) >= kManyBlocks) {
      launch_forward<T, 2>(gpu, in, out);
    } else {
      launch_forward<T, 1>(gpu, in, out);
    }
  });
}

}  // namespace jiboia
