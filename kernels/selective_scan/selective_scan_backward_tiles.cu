#include "kernels/selective_scan/selective_scan_backward_warp.cuh"

namespace jiboia::scan_tiles {
namespace {

/// Grid `workers`, block kBlockThreads, 223 KiB of shared memory, so one block a multiprocessor.
/// Limited by instruction issue: about 18 instructions a state and step, of which 11 are the two
/// recurrences and their sums.
template <bool kDocuments, bool kPlain>
__global__ void __launch_bounds__(kBlockThreads, 1)
    scan_backward_tiles(const __grid_constant__ BackwardTiles pass) {
  BlockShared& shared = *reinterpret_cast<BlockShared*>(cuda::dynamic_shared());
  // A worker waits for a worker with a lower number only, and only for what that one does first of
  // all and waits for nobody. Numbers are given in the order in which blocks begin, so whoever is
  // waited for is at work already: however few blocks find a place at a time, all come to an end.
  // After the pass ahead nobody waits.
  if (threadIdx.x == 0) {
    shared.worker = pass.schedule.at_once() ? static_cast<int>(blockIdx.x)
                                            : atomicAdd(pass.partials.counters, 1);
  }
  cuda::let_next_kernel_begin();
  const cuda::Turns<kBlockTiles> turns(shared.turns);
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
    // Looked up here, where the warp's threads are known to be together: a branch would cost
    // instructions in the loop below.
    const int* segments = pass.ahead.segments;
    const int first_segment = segments[worker - piece.index], end_segment = segments[worker];
    const int batch = static_cast<int>(row / schedule.blocks);
    const int block = static_cast<int>(row % schedule.blocks);
    const int first_channel =
        (block * kBlockTiles + static_cast<int>(threadIdx.x) / 32) * static_cast<int>(kChannels);
    // A warp for which the block has no channels left repeats the last ones, for nobody: its sums
    // count as 0, whatever it left there in the row before.
    const bool active = first_channel < pass.D;
    if (!active) {
      for (auto& of_chunk : shared.sums) {
        for (unsigned i = threadIdx.x % 32; i < kChunkSums; i += 32) {
          of_chunk[threadIdx.x / 32][i] = 0;
        }
      }
    }
    float* sums =
        pass.partials.b_c +
        ((std::int64_t{block} * pass.B + batch) * schedule.periods + piece.end) * kPeriodSums +
        threadIdx.x;
    const unsigned steps = static_cast<unsigned>(piece.end - piece.begin) * kPeriod;
    unsigned t = steps - kPeriod;  // the period's first step, from the piece's
    loader.begin(batch, piece);
    loader.load(t);
    scan.begin(batch, min(first_channel, pass.D - static_cast<int>(kChannels)), piece, active);
    __syncwarp();
    scan.template load<false>(t, count);
    loader.store(count);
    loader.load(t - kPeriod);
    cuda::wait_for_last_kernel();
    if (piece.index > 0 && active) {
      if (schedule.at_once()) {
        scan.gather(first_segment, end_segment);
      } else {
        scan.take_over(row);
      }
    }
    loader.store(count + kPeriodChunks);
    loader.load(t - 2 * kPeriod);
    cuda::async_copies_commit();
    cuda::async_copies_wait<0>();
    __syncthreads();
    scan.prepare(count, t + kChunk);
#pragma unroll 1
    for (;; t -= kPeriod) {
      if (t + kPeriod < steps) turns.wait(count / kPeriodChunks - 1);
      if (t + 2 * kPeriod < steps) {
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
          // From here on nothing of the last turn is wanted, and its sums are there.
          turns.done(count / kPeriodChunks);
          cuda::async_copies_wait<0>();
          __syncwarp();
        }
        scan.chunk(count, t + kChunk - i * kChunk);
        ++count;
      }
      if (t == 0) break;
    }
    turns.wait(count / kPeriodChunks - 1);
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
      .ahead = AheadSchedule(schedule),
      .partials = Partials(ScratchReader(args.scratch), B, D, schedule)};
  if (schedule.at_once()) {
    scan_ahead(gpu, pass);
  } else {
    cuda::check(
        cudaMemsetAsync(pass.partials.counters, 0,
                        static_cast<std::size_t>(Partials::counter_count(schedule)) * sizeof(int),
                        gpu.stream()),
        SelectiveScan::kName);
  }
  const auto kernel = !pass.writes_all      ? scan_backward_tiles<true, false>
                      : pass.document_start ? scan_backward_tiles<true, true>
                                            : scan_backward_tiles<false, true>;
  // Early, it reads its inputs before it waits: scan_ahead(), right before it, is never early.
  cuda::launch(gpu, SelectiveScan::kName, kernel,
               {.grid = dim3(static_cast<unsigned>(schedule.workers)),
                .block = dim3(kBlockThreads),
                .shared_bytes = sizeof(BlockShared),
                .early = schedule.at_once()},
               pass);
  sum_tiles(gpu, pass, to);
}

}  // namespace jiboia::scan_tiles
