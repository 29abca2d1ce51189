#include "kernels/selective_scan/selective_scan_tiles.h"

#include "tests/kernels/selective_scan_cases.h"

/// The forward pass of the fast scan: y and the states that it saves, for every plan.
namespace jiboia::test {
namespace {

using scan_tiles::ForwardPlan;
using scan_tiles::Warps;

/// Warps alone, in segments of so many steps.
ForwardPlan in_segments(std::int64_t L, std::int64_t steps) {
  return {Warps::kAlone, {ceil_div(L, steps), steps}};
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
  scratch.fill_bytes(std::byte{0xFF});
  if (scratch.size() > 0) {
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

std::vector<ForwardPlan> all_plans(std::int64_t L) {
  std::vector<ForwardPlan> plans = {{Warps::kAlone, {1, L}}, {Warps::kRoles, {1, L}}};
  if (L > 16) plans.push_back(in_segments(L, 16));
  return plans;
}

/// The same with every plan.
void expect_right(OpRun<Scan>& run) {
  for (const ForwardPlan& plan : all_plans(run.in.u.spec().shape[1])) {
    SCOPED_TRACE(
        fmt::format("warps {}, {} segments", static_cast<int>(plan.warps), plan.segments.count));
    expect_right(run, plan);
  }
}

TEST(SelectiveScanForwardTilesCuda, ForwardIsRightAtManySizes) {
  JIBOIA_SKIP_WITHOUT_FAST_SCAN();
  const std::int64_t sizes[][3] = {{2, 1, 32},  {1, 2, 64},  {2, 3, 32},  {1, 4, 32},
                                   {3, 5, 96},  {2, 8, 32},  {1, 9, 160}, {2, 31, 64},
                                   {1, 32, 32}, {2, 33, 96}, {1, 65, 32}, {1, 300, 64}};
  for (const auto& [B, L, D] : sizes) {
    SCOPED_TRACE(fmt::format("{} {} {}", B, L, D));
    OpRun<Scan> run(scan_check(B, L, D, 16), Dtype::kBf16);
    expect_right(run);
  }
}

TEST(SelectiveScanForwardTilesCuda, ForwardTakesSlicesOfColumns) {
  JIBOIA_SKIP_WITHOUT_FAST_SCAN();
  // Of b and c, columns at multiples of 4 and at others.
  for (const std::int64_t before : {8, 3}) {
    auto check = scan_check(2, 19, 64, 16);
    for (TestInput* input : {&check.inputs.u, &check.inputs.dt, &check.inputs.z}) {
      input->columns_before = 4;
      input->columns_after = 12;
    }
    for (TestInput* input : {&check.inputs.b, &check.inputs.c}) {
      input->columns_before = before;
      input->columns_after = 16;
    }
    OpRun<Scan> run(check, Dtype::kBf16);
    expect_right(run);
  }
}

TEST(SelectiveScanForwardTilesCuda, ForwardRefusesColumnsThatBeginInBetween) {
  JIBOIA_SKIP_WITHOUT_FAST_SCAN();
  auto check = scan_check(1, 4, 32, 16);
  check.inputs.z.columns_before = 2;
  check.inputs.z.columns_after = 2;
  OpRun<Scan> run(check, Dtype::kBf16);
  try {
    tiles_forward(run, all_plans(4).front());
    FAIL() << "taken";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kUnsupported);
    EXPECT_THAT(error.what(), testing::HasSubstr("z begins at an address"));
  }
}

TEST(SelectiveScanForwardTilesCuda, ForwardForgetsAtDocumentStarts) {
  JIBOIA_SKIP_WITHOUT_FAST_SCAN();
  for (const auto& starts : std::vector<std::vector<std::int32_t>>{
           {}, {1}, {3, 4, 5, 6}, {7, 8, 9}, {15, 16, 17}, {16, 32}, {31, 32, 33, 40}, {42}}) {
    auto check = scan_check(2, 43, 32, 16);
    pack_documents(check, starts);
    OpRun<Scan> run(check, Dtype::kBf16);
    expect_right(run);
    run.in.a_log.fill(-200);  // nothing decays otherwise
    expect_right(run);
  }
}

TEST(SelectiveScanForwardTilesCuda, ForwardJoinsSegmentsOfAllLengths) {
  JIBOIA_SKIP_WITHOUT_FAST_SCAN();
  auto check = scan_check(2, 83, 64, 16);
  check.inputs.a_log.high = -1;  // far parts still matter
  pack_documents(check, {40, 57});
  OpRun<Scan> run(check, Dtype::kBf16);
  for (std::int64_t steps : {8, 24, 40, 80}) {
    SCOPED_TRACE(steps);
    expect_right(run, in_segments(83, steps));
  }
}

#if JIBOIA_WITH_CUDA
TEST(SelectiveScanForwardTilesCuda, PlansDependOnShapesAndCoverTheRow) {
  for (const std::int64_t B : {1, 2, 4, 8, 32}) {
    for (const std::int64_t L : {1, 64, 127, 128, 129, 2048, 2049, 65536, 1000000}) {
      for (const std::int64_t D : {32, 1536, 8192}) {
        const ForwardPlan plan = ForwardPlan::of(Spec(Dtype::kBf16, {B, L, D}));
        const auto& [count, steps] = plan.segments;
        SCOPED_TRACE(fmt::format("{} {} {}: {} of {}", B, L, D, count, steps));
        EXPECT_LT((count - 1) * steps, L);
        EXPECT_GE(count * steps, L);
        EXPECT_TRUE(count == 1 || steps % scan_tiles::kSegmentUnit == 0);
      }
    }
  }
}
#endif

TEST(SelectiveScanForwardTilesCuda, ForwardTakesLargeStatesAndGates) {
  JIBOIA_SKIP_WITHOUT_FAST_SCAN();
  OpRun<Scan> run(scan_check(2, 37, 32, 16), Dtype::kBf16);
  run.in.a_log.fill(-9);
  for (std::int64_t i = 0; i < run.in.b.size(); ++i) run.in.b.set(i, 40000);
  for (std::int64_t i = 0; i < run.in.z.size(); i += 5) run.in.z.set(i, i % 2 == 0 ? 300 : -300);
  for (std::int64_t i = 0; i < run.in.dt.size(); i += 7) run.in.dt.set(i, i % 2 == 0 ? 80 : -120);
  EXPECT_GT(plain_forward(run).states.largest(), 1e6);
  expect_right(run);
}

TEST(SelectiveScanForwardTilesCuda, ForwardKeepsYWhereTheGateIsZero) {
  JIBOIA_SKIP_WITHOUT_FAST_SCAN();
  OpRun<Scan> run(scan_check(1, 9, 32, 16), Dtype::kBf16);
  run.in.z.fill(1);
  const Result open = plain_forward(run);
  run.in.z.fill(0);
  for (std::int64_t i = 0; i < run.in.z.size(); i += 2) run.in.z.set(i, -0.0);
  for (const ForwardPlan& plan : all_plans(9)) {
    TestTensor y = tiles_forward(run, plan).y;
    TestTensor before_gate(Spec(Dtype::kF64, y.spec().shape));
    TestTensor want = before_gate;
    for (std::int64_t i = 0; i < y.size(); ++i) {
      before_gate.set(i, y.get(i) * 0x1p61);  // silu(2^-60) = 2^-61
      want.set(i, open.y.get(i) * (1 + std::exp(-1)));
    }
    EXPECT_EQ(difference("y", before_gate, want, 0x1p-8, 1e-4), "");
  }
}

TEST(SelectiveScanForwardTilesCuda, ForwardPassesNaNOnWithinItsChannel) {
  JIBOIA_SKIP_WITHOUT_FAST_SCAN();
  OpRun<Scan> run(scan_check(1, 21, 32, 16), Dtype::kBf16);
  constexpr std::int64_t kStep = 10, kChannel = 5;
  run.in.dt.set(kStep * 32 + kChannel, std::numeric_limits<double>::quiet_NaN());
  for (const ForwardPlan& plan : all_plans(21)) {
    const TestTensor y = tiles_forward(run, plan).y;
    for (std::int64_t i = 0; i < y.size(); ++i) {
      EXPECT_EQ(std::isnan(y.get(i)), i % 32 == kChannel && i / 32 >= kStep) << i;
    }
  }
}

}  // namespace
}  // namespace jiboia::test
