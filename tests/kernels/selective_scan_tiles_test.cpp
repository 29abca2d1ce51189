#include "kernels/selective_scan/selective_scan_tiles.h"

#include "tests/kernels/selective_scan_cases.h"

/// The forward pass of the fast scan: y and the states that it saves, for every layout of lanes.
namespace jiboia::test {
namespace {

using scan_tiles::ForwardPlan;
using scan_tiles::Lanes;

constexpr Lanes kAllLanes[] = {Lanes::kTwoByEight, Lanes::kTwoByFour, Lanes::kRoles};

/// Without segments if `segment_steps` is 0.
ForwardPlan plan_of(Lanes lanes, std::int64_t L, std::int64_t segment_steps = 0) {
  if (segment_steps == 0) return {lanes, {1, L}};
  return {lanes, {ceil_div(L, segment_steps), segment_steps}};
}

struct Result {
  TestTensor y, states;
};

Result tiles_forward([[maybe_unused]] OpRun<Scan>& run, [[maybe_unused]] const ForwardPlan& plan) {
  Result result{TestTensor(run.in.u.spec().packed()),
                TestTensor(scan_tiles::states_spec(run.in.u.spec()))};
#if JIBOIA_WITH_CUDA
  CudaPlace place;
  ForwardArgs<Scan> args{};
  for (std::size_t i = 0; i < std::size(Scan::kInputs); ++i) {
    TestTensor& input = fields<TestTensor>(run.in)[i];
    if (input) fields<Tensor>(args.in)[i] = place.put(input);
  }
  args.out.y = place.put(result.y);
  args.out.states = place.put(result.states);
  TestTensor scratch(Spec(Dtype::kU8, {scan_tiles::forward_scratch_bytes(run.in.u.spec(), plan)}));
  if (scratch.spec().size() > 0) {
    const Tensor memory = place.put(scratch);
    args.scratch = {static_cast<std::byte*>(memory.data), static_cast<std::size_t>(memory.size())};
  }
  std::vector<std::string> failures;
  place.run([&] { scan_tiles::forward(place.exec(), args, plan); }, 2, failures);
  EXPECT_THAT(failures, testing::IsEmpty());
#endif
  EXPECT_TRUE(result.y.guards_intact());
  EXPECT_TRUE(result.states.guards_intact());
  return result;
}

/// y and the state before each chunk, step by step in f64.
Result plain_forward(const OpRun<Scan>& run) {
  const Shape shape = run.in.u.spec().shape;
  const std::int64_t B = shape[0], L = shape[1], D = shape[2], N = scan_tiles::kStates;
  Spec states = scan_tiles::states_spec(run.in.u.spec());
  states.dtype = Dtype::kF64;
  Result result{TestTensor(Spec(Dtype::kF64, shape)), TestTensor(states)};
  for (std::int64_t batch = 0; batch < B; ++batch) {
    for (std::int64_t d = 0; d < D; ++d) {
      double h[scan_tiles::kStates] = {};
      for (std::int64_t t = 0; t < L; ++t) {
        const std::int64_t row = batch * L + t;
        if (t % scan_tiles::kSteps == 0) {
          const std::int64_t chunk =
              batch * ceil_div(L, scan_tiles::kSteps) + t / scan_tiles::kSteps;
          const std::int64_t tile = d / scan_tiles::kChannels * scan_tiles::kChannels;
          for (std::int64_t n = 0; n < N; ++n) {
            result.states.set((chunk * D + tile) * N + scan_tiles::place_in_tile(d - tile, n),
                              h[n]);
          }
        }
        const double u = run.in.u.get(row * D + d), z = run.in.z.get(row * D + d);
        const double x = run.in.dt.get(row * D + d) + run.in.dt_bias.get(d);
        const double delta = x > 20 ? x : std::log1p(std::exp(x));
        const bool reset =
            run.in.document_start && run.in.document_start.get(row) == static_cast<double>(t);
        double y = run.in.d_skip.get(d) * u;
        for (std::int64_t n = 0; n < N; ++n) {
          const double decay = reset ? 0 : std::exp(-std::exp(run.in.a_log.get(d * N + n)) * delta);
          h[n] = decay * h[n] + delta * u * run.in.b.get(row * N + n);
          y += h[n] * run.in.c.get(row * N + n);
        }
        result.y.set(row * D + d, y * z / (1 + std::exp(-z)));
      }
    }
  }
  return result;
}

void expect_right(OpRun<Scan>& run, const ForwardPlan& plan) {
  const Result want = plain_forward(run), got = tiles_forward(run, plan);
  EXPECT_EQ(difference("y", got.y, want.y, 0x1p-8, 1e-4), "");
  EXPECT_EQ(difference("states", got.states, want.states, 0x1p-8, 1e-4), "");
}

TEST(SelectiveScanTiles, ForwardIsRightAtManyLengths) {
  JIBOIA_SKIP_WITHOUT_GPU();
  for (int L : {1, 2, 3, 4, 5, 8, 9, 31, 32, 33, 65}) {
    for (Lanes lanes : kAllLanes) {
      SCOPED_TRACE(fmt::format("{} {}", L, static_cast<int>(lanes)));
      OpRun<Scan> run(scan_check(2, L, 32, 16), Dtype::kBf16);
      expect_right(run, plan_of(lanes, L));
    }
  }
}

TEST(SelectiveScanTiles, ForwardJoinsSegments) {
  JIBOIA_SKIP_WITHOUT_GPU();
  for (int steps : {8, 16, 40}) {
    for (Lanes lanes : kAllLanes) {
      SCOPED_TRACE(fmt::format("{} {}", steps, static_cast<int>(lanes)));
      OpCheck<Scan> check = scan_check(2, 83, 64, 16);
      OpRun<Scan> run(check, Dtype::kBf16);
      expect_right(run, plan_of(lanes, 83, lanes == Lanes::kRoles ? 0 : steps));
      pack_documents(check, {1, 8, 15, 17, 40, 55, 80});
      OpRun<Scan> packed(check, Dtype::kBf16);
      expect_right(packed, plan_of(lanes, 83, lanes == Lanes::kRoles ? 0 : steps));
    }
  }
}

}  // namespace
}  // namespace jiboia::test
