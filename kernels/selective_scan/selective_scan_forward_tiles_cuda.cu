#include <algorithm>

#include "kernels/selective_scan/selective_scan_forward_roles.cuh"
#include "kernels/selective_scan/selective_scan_forward_tiles.cuh"

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

template <int kC, int kS, bool kWide, bool kAhead>
void launch(CudaExec& gpu, const scan_cuda::Operands<bf16>& in, const ForwardOut& out,
            std::int64_t B) {
  // Warps by themselves spread better over the multiprocessors, where there are few.
  constexpr int kWarps = kS == 4 ? 1 : 4, kBlocks = kS == 4 ? 8 : 4;
  const std::int64_t segments = kAhead ? out.segments - 1 : out.segments;
  const std::int64_t warps = B * segments * (in.D / Layout<kC, kS>::kWidth);
  cuda::launch(
      gpu, SelectiveScan::kName, scan_forward_tiles<kC, kS, kWide, kAhead, kWarps, kBlocks>,
      {.grid = dim3(static_cast<unsigned>(ceil_div(warps, kWarps))),
       .block = dim3(32 * kWarps),
       .shared_bytes = kWarps * sizeof(typename ForwardWarp<kC, kS, kWide, kAhead>::Shared)},
      in, out, static_cast<int>(warps));
}

template <int kC, int kS, bool kWide>
void launch_roles(CudaExec& gpu, const scan_cuda::Operands<bf16>& in, const ForwardOut& out,
                  std::int64_t B) {
  constexpr int kParts = 3, kFinisher = 7;
  using Block = ForwardBlock<kC, kS, kWide, kParts, kFinisher>;
  const std::int64_t blocks = B * ceil_div(in.D, kParts * Layout<kC, kS>::kWidth);
  cuda::launch(gpu, SelectiveScan::kName, scan_forward_roles<kC, kS, kWide, kParts, kFinisher>,
               {.grid = dim3(static_cast<unsigned>(blocks)),
                .block = dim3(Block::kThreads),
                .shared_bytes = sizeof(typename Block::Shared)},
               in, out);
}

template <int kC, int kS>
void launch(CudaExec& gpu, const ForwardArgs<SelectiveScan>& args, ForwardOut out, bool roles) {
  const auto step = [](const Tensor& rows) {
    return Layout<kC, kS>::kPeriod * rows.row_stride * static_cast<int>(sizeof(bf16));
  };
  out.u_step = step(args.in.u);
  out.dt_step = step(args.in.dt);
  out.z_step = step(args.in.z);
  out.y_step = step(args.out.y);
  out.b_step = step(args.in.b);
  out.c_step = step(args.in.c);
  const scan_cuda::Operands<bf16> in(args.in);
  const std::int64_t B = args.in.u.shape[0];
  const auto run = [&]<bool kWide>() {
    if (roles) return launch_roles<kC, kS, kWide>(gpu, in, out, B);
    if (out.segments > 1) launch<kC, kS, kWide, true>(gpu, in, out, B);
    launch<kC, kS, kWide, false>(gpu, in, out, B);
  };
  if (cuda::takes_vectors<4>(args.in.b) && cuda::takes_vectors<4>(args.in.c)) {
    run.template operator()<true>();
  } else {
    run.template operator()<false>();
  }
}

}  // namespace

ForwardPlan ForwardPlan::of(const Spec& u) {
  // What fills an H100 or H200. Other GPUs give the same bits.
  constexpr std::int64_t kWarps = 132 * 16;
  constexpr std::int64_t kFewChannels = 4096, kManyChannels = 32768, kFewestSteps = 64;
  const std::int64_t L = u.shape[1], channels = u.shape[0] * u.shape[2];
  if (channels > kFewChannels || L < 2 * kFewestSteps) {
    return {channels < kManyChannels ? Lanes::kTwoByFour : Lanes::kTwoByEight, {1, L}};
  }
  const std::int64_t most = std::min(kWarps * kChannels / channels, L / kFewestSteps);
  const std::int64_t steps = ceil_div(ceil_div(L, most), kSegmentUnit) * kSegmentUnit;
  return {Lanes::kTwoByEight, {ceil_div(L, steps), steps}};
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
  ScratchReader scratch(args.scratch);
  ForwardOut out{};
  out.y = cuda::Rows<bf16>(args.out.y);
  out.states = reinterpret_cast<Line*>(args.out.states.as<bf16>());
  out.segments = static_cast<int>(plan.segments.count);
  out.segment_steps = static_cast<int>(plan.segments.steps);
  out.ends = scratch.take<float4>(end_vectors(args.in.u, plan.segments));
  out.delta_sums = scratch.take<float>(delta_sums(args.in.u, plan.segments));
  switch (plan.lanes) {
    case Lanes::kTwoByEight: return launch<2, 8>(gpu, args, out, false);
    case Lanes::kTwoByFour: return launch<2, 4>(gpu, args, out, false);
    case Lanes::kRoles: return launch<2, 4>(gpu, args, out, true);
  }
}

}  // namespace jiboia::scan_tiles
