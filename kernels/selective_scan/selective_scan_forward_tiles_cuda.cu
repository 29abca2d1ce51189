#include "kernels/selective_scan/selective_scan_forward_tiles.cuh"

namespace jiboia::scan_tiles {
namespace {

constexpr int kWarps = 4;  // of a block

/// Four elements of a row at a time.
void require_alignment(const char* name, const Tensor& tensor) {
  require(cuda::aligned(tensor.data, 8), ErrorKind::kUnsupported,
          "{}: {} begins at an address that is no multiple of 8 bytes; begin its columns at a "
          "multiple of 4",
          SelectiveScan::kName, name);
}

template <int kC, int kS>
void launch(CudaExec& gpu, const ForwardArgs<SelectiveScan>& args) {
  using Of = Layout<kC, kS>;
  const scan_cuda::Operands<bf16> in(args.in);
  const auto step = [](const Tensor& rows) { return Of::kPeriod * rows.row_stride * 2; };
  const ForwardOut out{.y = cuda::Rows<bf16>(args.out.y),
                       .states = reinterpret_cast<Line*>(args.out.states.as<bf16>()),
                       .u_step = step(args.in.u),
                       .dt_step = step(args.in.dt),
                       .z_step = step(args.in.z),
                       .y_step = step(args.out.y),
                       .b_step = step(args.in.b),
                       .c_step = step(args.in.c)};
  const bool wide = cuda::takes_vectors<4>(args.in.b) && cuda::takes_vectors<4>(args.in.c);
  const std::int64_t warps = args.in.u.shape[0] * in.D / Of::kWidth;
  const auto run = [&]<bool kWide>() {
    using Shared = typename ForwardWarp<kC, kS, Sum::kShared, kWide>::Shared;
    cuda::launch(gpu, SelectiveScan::kName, scan_forward_tiles < kC, kS, Sum::kShared, kWide,
                 kWarps, kS == 2 ? 2 : 4 >,
                 {.grid = dim3(static_cast<unsigned>(ceil_div(warps, kWarps))),
                  .block = dim3(32 * kWarps),
                  .shared_bytes = kWarps * sizeof(Shared)},
                 in, out, static_cast<int>(warps));
  };
  if (wide) {
    run.template operator()<true>();
  } else {
    run.template operator()<false>();
  }
}

}  // namespace

Lanes lanes_for(std::int64_t B, std::int64_t D) {
  return B * D >= 32768 ? Lanes::kFourByFour : Lanes::kTwoByFour;
}

void forward(CudaExec& gpu, const ForwardArgs<SelectiveScan>& args, Lanes lanes) {
  require_alignment("u", args.in.u);
  require_alignment("dt", args.in.dt);
  require_alignment("z", args.in.z);
  switch (lanes) {
    case Lanes::kFourByFour: return launch<4, 4>(gpu, args);
    case Lanes::kTwoByEight: return launch<2, 8>(gpu, args);
    case Lanes::kTwoByFour: return launch<2, 4>(gpu, args);
    case Lanes::kOneByFour: return launch<1, 4>(gpu, args);
    case Lanes::kOneByTwo: return launch<1, 2>(gpu, args);
  }
}

}  // namespace jiboia::scan_tiles
