#include <algorithm>

#include "kernels/selective_scan/selective_scan_forward_alone.cuh"
#include "kernels/selective_scan/selective_scan_forward_roles.cuh"

namespace jiboia::scan_tiles {
namespace {

/// Four elements of a row at a time.
void require_alignment(const char* name, const Tensor& tensor) {
  require(cuda::aligned(tensor.data, 8), ErrorKind::kUnsupported,
          "{}: {} begins at an address that is no multiple of 8 bytes; begin its columns at a "
          "multiple of 4",
          SelectiveScan::kName, name);
}

/// Vectors and floats that the pass ahead leaves for the main one.
std::int64_t end_vectors(const Spec& u, const Segments& segments) {
  return u.shape[0] * (segments.count - 1) * u.shape[2] * kStates / 4;
}
std::int64_t delta_sums(const Spec& u, const Segments& segments) {
  return u.shape[0] * (segments.count - 1) * u.shape[2];
}

template <bool kWide, bool kAhead>
void launch_alone(CudaExec& gpu, const scan_cuda::Operands<bf16>& in, const ForwardOut& out,
                  std::int64_t B) {
  using Warp = ForwardWarp<kWide, kAhead>;
  static_assert(kAloneWarps * sizeof(typename Warp::Shared) <= kSharedBytes);
  const std::int64_t warps = B * (kAhead ? out.segments - 1 : out.segments) * (in.D / Warp::kWidth);
  cuda::launch(gpu, SelectiveScan::kName, scan_forward_alone<kWide, kAhead>,
               {.grid = dim3(static_cast<unsigned>(ceil_div(warps, kAloneWarps))),
                .block = dim3(32 * kAloneWarps),
                .shared_bytes = kAloneWarps * sizeof(typename Warp::Shared)},
               in, out, static_cast<int>(warps));
}

template <bool kWide>
void launch_roles(CudaExec& gpu, const scan_cuda::Operands<bf16>& in, const ForwardOut& out,
                  std::int64_t B) {
  using Block = ForwardBlock<kWide>;
  static_assert(sizeof(typename Block::Shared) <= kSharedBytes);
  cuda::launch(gpu, SelectiveScan::kName, scan_forward_roles<kWide>,
               {.grid = dim3(static_cast<unsigned>(B * ceil_div(in.D, Block::kBlockWidth))),
                .block = dim3(Block::kThreads),
                .shared_bytes = sizeof(typename Block::Shared)},
               in, out);
}

}  // namespace

ForwardPlan ForwardPlan::of(const Spec& u) {
  // For an H100 or H200, of 132 multiprocessors. Other GPUs give the same bits.
  constexpr std::int64_t kMultiprocessors = 132;
  constexpr std::int64_t kWarps = kMultiprocessors * 12;  // alone, that run at once
  const std::int64_t L = u.shape[1], channels = u.shape[0] * u.shape[2];
  // The pass ahead costs 3/4 of the main one, and as much as so many steps of a channel besides:
  // worth it up to here.
  constexpr std::int64_t kSegmentedChannels = 5120, kBesides = 2'250'000, kFewestSteps = 64;
  if ((kSegmentedChannels - channels) * L >= kBesides) {
    const std::int64_t most =
        std::min(kWarps * kChannels / std::max(channels, kChannels), L / kFewestSteps);
    const std::int64_t steps = ceil_div(ceil_div(L, most), kSegmentUnit) * kSegmentUnit;
    return {Warps::kAlone, {ceil_div(L, steps), steps}};
  }
  // What a scan of 2048 steps takes, in 10 us, with 1, 2, ... blocks on a multiprocessor.
  const auto time = [](std::int64_t blocks, auto... of_blocks) {
    const std::int64_t times[] = {0, of_blocks...};
    constexpr std::int64_t kMost = sizeof...(of_blocks);
    const std::int64_t each = ceil_div(blocks, kMultiprocessors);
    return each / kMost * times[kMost] + times[each % kMost];
  };
  const std::int64_t roles =
      time(u.shape[0] * ceil_div(u.shape[2], ForwardBlock<true>::kBlockWidth), 11, 18);
  const std::int64_t alone = time(ceil_div(channels, kAloneWarps * kChannels), 26, 42, 63);
  return {roles <= alone ? Warps::kRoles : Warps::kAlone, {1, L}};
}

std::int64_t forward_scratch_bytes(const Spec& u, const ForwardPlan& plan) {
  return static_cast<std::int64_t>(
      ScratchReader::padded_bytes<float4>(end_vectors(u, plan.segments)) +
      ScratchReader::padded_bytes<float>(delta_sums(u, plan.segments)));
}

void forward(CudaExec& gpu, const ForwardArgs<SelectiveScan>& args, const ForwardPlan& plan) {
  require_alignment("u", args.in.u);
  require_alignment("dt", args.in.dt);
  require_alignment("z", args.in.z);
  const bool alone = plan.warps == Warps::kAlone;
  const auto step = [&](const Tensor& rows) {
    return (alone ? Layout<8>::kPeriod : Layout<4>::kPeriod) * rows.row_stride *
           size_of(rows.dtype);
  };
  ScratchReader scratch(args.scratch);
  const ForwardOut out{.y = cuda::Rows<bf16>(args.out.y),
                       .states = reinterpret_cast<Line*>(args.out.states.as<bf16>()),
                       .u_step = step(args.in.u),
                       .dt_step = step(args.in.dt),
                       .z_step = step(args.in.z),
                       .y_step = step(args.out.y),
                       .b_step = step(args.in.b),
                       .c_step = step(args.in.c),
                       .segments = static_cast<int>(plan.segments.count),
                       .segment_steps = static_cast<int>(plan.segments.steps),
                       .ends = scratch.take<float4>(end_vectors(args.in.u, plan.segments)),
                       .delta_sums = scratch.take<float>(delta_sums(args.in.u, plan.segments))};
  const scan_cuda::Operands<bf16> in(args.in);
  const std::int64_t B = args.in.u.shape[0];
  const auto launch = [&]<bool kWide>() {
    if (!alone) return launch_roles<kWide>(gpu, in, out, B);
    if (out.segments > 1) launch_alone<kWide, true>(gpu, in, out, B);
    launch_alone<kWide, false>(gpu, in, out, B);
  };
  if (cuda::takes_vectors<4>(args.in.b) && cuda::takes_vectors<4>(args.in.c)) {
    launch.template operator()<true>();
  } else {
    launch.template operator()<false>();
  }
}

}  // namespace jiboia::scan_tiles
