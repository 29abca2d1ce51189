#include <cmath>
#include <limits>

#include "kernels/selective_scan/selective_scan_tiles.h"
#include "tests/kernels/selective_scan_cases.h"

/// The fast scan, forward and backward, as scans in bf16 take it. (The same checks in f32 take the
/// general one.)
namespace jiboia::test {
namespace {

/// Steps that the backward pass goes through between two looks at the block's other warps.
constexpr std::int64_t kPeriod = 2 * scan_tiles::kSteps;
/// How much too small a term of a sum over states may be, of itself.
constexpr double kCut = 0x1p-10;

bool takes_tiles(const OpCheck<Scan>& check) {
  const OpRun<Scan> run(check, Dtype::kBf16);
  Scan::In<Spec> in = map_fields<Spec, Scan::In<Spec>, TestTensor>(
      run.in, [](const TestTensor& tensor) { return tensor.spec(); });
  return scan_tiles::uses_tiles(in, check.attrs);
}

/// Scans of 16 states. What is rounded to bf16 inside: the state before every 4th step, and y, from
/// which the gradient of z is found. A gradient is the sum of few terms here, of either sign, which
/// these are factors of, so it may be off by 2^-8 of the largest one. With the same roundings in
/// the formula, expect_gradients() is stricter.
OpCheck<Scan> tiles_check(std::int64_t B, std::int64_t L, std::int64_t D) {
  OpCheck<Scan> check = scan_check(B, L, D, scan_tiles::kStates);
  check.bf16_relative = 0x1p-8;
  return check;
}

void check_tiles(const OpCheck<Scan>& check, PlantErrors plant = PlantErrors::kNo) {
  ASSERT_TRUE(takes_tiles(check));
  check_op_cuda(check, plant);
}

/// The gradients of a run after forward, step by step in f64, from the states and the y that it
/// saved.
Scan::In<TestTensor> plain_backward(const OpRun<Scan>& run) {
  const Shape shape = run.in.u.spec().shape;
  const std::int64_t B = shape[0], L = shape[1], D = shape[2], N = scan_tiles::kStates;
  constexpr std::int64_t kSteps = scan_tiles::kSteps, kChannels = scan_tiles::kChannels;
  Scan::In<TestTensor> grad{};
  for (std::size_t i = 0; i < std::size(Scan::kInputs); ++i) {
    const Spec& spec = fields<const TestTensor>(run.in)[i].spec();
    if (!spec || spec.dtype == Dtype::kI32) continue;
    fields<TestTensor>(grad)[i] = TestTensor(Spec(Dtype::kF64, spec.shape));
    fields<TestTensor>(grad)[i].fill(0);
  }
  const auto add = [](TestTensor& to, std::int64_t i, double value) {
    to.set(i, to.get(i) + value);
  };
  for (std::int64_t batch = 0; batch < B; ++batch) {
    for (std::int64_t d = 0; d < D; ++d) {
      double gamma[scan_tiles::kStates] = {};
      for (std::int64_t t = L - 1; t >= 0; --t) {
        const auto decay_of = [&](std::int64_t step, std::int64_t n, double delta) {
          const bool resets =
              run.in.document_start &&
              run.in.document_start.get(batch * L + step) == static_cast<double>(step);
          return resets ? 0 : std::exp(-std::exp(run.in.a_log.get(d * N + n)) * delta);
        };
        const auto x_of = [&](std::int64_t step) {
          return run.in.dt.get((batch * L + step) * D + d) + run.in.dt_bias.get(d);
        };
        const auto delta_of = [&](std::int64_t step) {
          const double x = x_of(step);
          return x > 20 ? x : std::log1p(std::exp(x));
        };
        const std::int64_t row = batch * L + t, at = row * D + d;
        const double u = run.in.u.get(at), delta = delta_of(t), g = run.grad_out.y.get(at);
        const double z = std::abs(run.in.z.get(at)) < 0x1p-60 ? 0x1p-60 : run.in.z.get(at);
        const double sigmoid = 1 / (1 + std::exp(-z)), dy = g * z * sigmoid;
        double with_b = 0, with_rate = 0;
        for (std::int64_t n = 0; n < N; ++n) {
          // The state before step t, from the one saved last.
          const std::int64_t chunk = batch * ceil_div(L, kSteps) + t / kSteps;
          double h = run.out.states.get((chunk * D + d / kChannels * kChannels) * N +
                                        scan_tiles::place_in_tile(d % kChannels, n));
          const auto after = [&](std::int64_t step, double before) {
            const std::int64_t its_row = batch * L + step;
            const double its_delta = delta_of(step);
            return decay_of(step, n, its_delta) * before +
                   its_delta * run.in.u.get(its_row * D + d) * run.in.b.get(its_row * N + n);
          };
          for (std::int64_t step = t / kSteps * kSteps; step < t; ++step) h = after(step, h);
          const double b = run.in.b.get(row * N + n), c = run.in.c.get(row * N + n);
          const double decay = decay_of(t, n, delta), rate = -std::exp(run.in.a_log.get(d * N + n));
          gamma[n] += dy * c;
          add(grad.b, row * N + n, gamma[n] * delta * u);
          add(grad.c, row * N + n, dy * after(t, h));
          with_b += gamma[n] * b;
          gamma[n] *= decay;
          with_rate += rate * gamma[n] * h;
          add(grad.a_log, d * N + n, rate * delta * gamma[n] * h);
        }
        const double grad_dt = (u * with_b + with_rate) / (1 + std::exp(-x_of(t)));
        grad.u.set(at, run.in.d_skip.get(d) * dy + delta * with_b);
        grad.dt.set(at, grad_dt);
        grad.z.set(at, g * run.out.y.get(at) * (1 / z + 1 - sigmoid));
        add(grad.d_skip, d, dy * u);
        add(grad.dt_bias, d, grad_dt);
      }
    }
  }
  return grad;
}

/// That a run's gradients are right, up to the 11 bits that terms of sums over states are cut to.
void expect_gradients(OpRun<Scan>& run) {
  run.forward_cuda(2);
  run.grad_out.y = random_like(run.out.y, 1);
  run.backward_cuda(2);
  const Scan::In<TestTensor> want = plain_backward(run);
  for (std::size_t i = 0; i < std::size(Scan::kInputs); ++i) {
    const TestTensor& gradient = fields<const TestTensor>(want)[i];
    if (!gradient) continue;
    const TestTensor& got = fields<TestTensor>(run.grad_in)[i];
    const bool is_rounded = got.spec().dtype == Dtype::kBf16;
    EXPECT_EQ(
        detail::device_difference(Scan::kInputs[i], got, gradient, {kCut, is_rounded ? 0x1p-8 : 0}),
        "");
  }
}
void expect_gradients(const OpCheck<Scan>& check) {
  ASSERT_TRUE(takes_tiles(check));
  OpRun<Scan> run(check, Dtype::kBf16);
  expect_gradients(run);
}

TEST(SelectiveScanTilesCuda, AreTakenByTheScansThatTheySuit) {
  EXPECT_TRUE(takes_tiles(scan_check(2, 5, 96, 16)));
  EXPECT_FALSE(takes_tiles(scan_check(2, 5, 80, 16)));
  EXPECT_FALSE(takes_tiles(scan_check(2, 5, 96, 15)));
  auto check = scan_check(2, 5, 96, 16);
  check.attrs.final_state = FinalState::kReturn;
  EXPECT_FALSE(takes_tiles(check));
  check = scan_check(2, 5, 96, 16);
  check.attrs.kernels = ScanKernels::kGeneral;
  EXPECT_FALSE(takes_tiles(check));
  check = scan_check(2, 5, 96, 16);
  check.inputs.initial_state = {.shape = {2, 16, 96}, .low = -2, .high = 2, .constant = true};
  EXPECT_FALSE(takes_tiles(check));
  for (TestInput Scan::In<TestInput>::*member :
       {&Scan::In<TestInput>::u, &Scan::In<TestInput>::dt, &Scan::In<TestInput>::z}) {
    check = scan_check(2, 5, 96, 16);
    (check.inputs.*member).columns_after = 8;
    EXPECT_TRUE(takes_tiles(check));
    (check.inputs.*member).columns_after = 4;
    EXPECT_FALSE(takes_tiles(check));
  }
}

#if JIBOIA_WITH_CUDA
TEST(SelectiveScanTilesCuda, LeaveItToTheGeneralKernelsWhereTold) {
  JIBOIA_SKIP_WITHOUT_GPU();
  const Exec exec = CudaExec(0);
  const bool roomy =
      std::get<CudaExec>(exec).gpu().shared_bytes_per_block >= scan_tiles::kSharedBytes;
  EXPECT_EQ(Scan::kernels_for(exec), roomy ? ScanKernels::kAny : ScanKernels::kGeneral);
  EXPECT_EQ(Scan::kernels_for(CpuExec(1)), ScanKernels::kAny);
  auto check = scan_check(2, 33, 64, 16);
  check.attrs.kernels = ScanKernels::kGeneral;
  check_op_cuda(check);
}
#endif

TEST(SelectiveScanTilesCuda, PassOpCheckAtManyLengths) {
  JIBOIA_SKIP_WITHOUT_FAST_SCAN();
  for (std::int64_t L :
       cases<std::int64_t>({1, 4, 9, 31}, {2, 3, 5, 7, 8, 12, 13, 16, 17, 24, 65})) {
    SCOPED_TRACE(L);
    check_tiles(tiles_check(2, L, 32));
    expect_gradients(tiles_check(2, L, 32));
  }
}

TEST(SelectiveScanTilesCuda, PassOpCheckAtManyWidths) {
  JIBOIA_SKIP_WITHOUT_FAST_SCAN();
  for (std::int64_t D : cases<std::int64_t>({64, 288}, {96, 160, 256, 544})) {
    SCOPED_TRACE(D);
    check_tiles(tiles_check(2, 11, D));
    expect_gradients(tiles_check(2, 11, D));
  }
}

TEST(SelectiveScanTilesCuda, PlantedErrorsAreCaught) {
  JIBOIA_SKIP_WITHOUT_FAST_SCAN();
  check_tiles(tiles_check(2, 10, 32), PlantErrors::kYes);
}

TEST(SelectiveScanTilesCuda, TakeSlicesOfColumns) {
  JIBOIA_SKIP_WITHOUT_FAST_SCAN();
  // Of b and c, columns at multiples of 8 and at others.
  for (const std::int64_t before : {8, 3}) {
    auto check = tiles_check(2, 19, 64);
    for (TestInput* input : {&check.inputs.u, &check.inputs.dt, &check.inputs.z}) {
      input->columns_before = 8;
      input->columns_after = 24;
    }
    for (TestInput* input : {&check.inputs.b, &check.inputs.c}) {
      input->columns_before = before;
      input->columns_after = 16;
    }
    check_tiles(check);
    expect_gradients(check);
  }
}

TEST(SelectiveScanTilesCuda, RefuseColumnsThatBeginInBetween) {
  JIBOIA_SKIP_WITHOUT_FAST_SCAN();
  auto check = scan_check(1, 4, 32, 16);
  check.inputs.dt.columns_before = check.inputs.dt.columns_after = 4;
  OpRun<Scan> run(check, Dtype::kBf16);
  run.forward_cuda();
  run.grad_out.y = random_like(run.out.y, 1);
  try {
    run.backward_cuda();
    FAIL() << "taken";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kUnsupported);
    EXPECT_THAT(error.what(), testing::HasSubstr("rows of dt begin at"));
  }
}

TEST(SelectiveScanTilesCuda, ForgetAtDocumentStarts) {
  JIBOIA_SKIP_WITHOUT_FAST_SCAN();
  for (const Starts& starts : cases<Starts>(
           {{}, {3}, {7, 8, 9}}, {{1}, {4}, {5, 6, 7, 8}, {15, 16, 17}, {32, 40}, {42}})) {
    auto check = tiles_check(2, 43, 32);
    pack_documents(check, starts);
    check_tiles(check);
    check.inputs.a_log = {.shape = {32, 16}, .low = -9, .high = -4};  // far steps matter
    expect_gradients(check);
  }
}

// A row this long is cut into pieces that run at once, the last 8 periods and the 11 in front of
// them; the pass ahead goes through the former in two segments.
constexpr std::int64_t kTwoPieces = 18 * kPeriod + 6;

// The documents begin around all the places where something is cut.
TEST(SelectiveScanTilesCuda, JoinPiecesThatRunAtOnce) {
  JIBOIA_SKIP_WITHOUT_FAST_SCAN();
  for (const Starts& starts :
       cases<Starts>({{}, {87, 88, 119, 120}},
                     {{87}, {88}, {89}, {95, 96, 119, 120}, {23, 24, 25, 127, 128, 129}})) {
    auto check = tiles_check(1, kTwoPieces, 32);
    check.inputs.a_log = {.shape = {32, 16}, .low = -7, .high = -3};
    if (!starts.empty()) pack_documents(check, starts);
    check_tiles(check);
    expect_gradients(check);
  }
  // Channels of more than one block, and the last one is not full.
  expect_gradients(tiles_check(2, 130, 288));
  if (!only_small_shapes()) expect_gradients(tiles_check(1, 2049, 32));
}

TEST(SelectiveScanTilesCuda, CarryNanOfEachStateToEarlierPieces) {
  JIBOIA_SKIP_WITHOUT_FAST_SCAN();
  OpRun<Scan> run(scan_check(1, kTwoPieces, 32, 16), Dtype::kBf16);
  run.in.dt.set((kTwoPieces - 1) * 32, std::numeric_limits<double>::quiet_NaN());
  run.forward_cuda(2);
  run.grad_out.y = random_like(run.out.y, 1);
  run.backward_cuda(2);
  for (std::int64_t n = 0; n < scan_tiles::kStates; ++n) {
    EXPECT_TRUE(std::isnan(run.grad_in.b.get(n))) << n;
  }
}

// More rows of work than workers, and not a multiple: some rows go from one worker to the next.
TEST(SelectiveScanTilesCuda, HandRowsOverFromWorkerToWorker) {
  JIBOIA_SKIP_WITHOUT_FAST_SCAN();
  auto check = tiles_check(140, 2 * kPeriod, 32);
  check.inputs.a_log = {.shape = {32, 16}, .low = -7, .high = -3};
  expect_gradients(check);
  pack_documents(check, {7, 8, 9, 15});
  check_tiles(check);
  expect_gradients(check);
}

TEST(SelectiveScanTilesCuda, LeaveNoSumsBehindForBlocksWithFewerChannels) {
  JIBOIA_SKIP_WITHOUT_FAST_SCAN();
  // More rows than workers, by turns of 8 tiles and of 1: a worker has some of both, and they
  // are long enough to use every place for sums.
  expect_gradients(tiles_check(140, 4 * kPeriod, 288));
}

TEST(SelectiveScanTilesCuda, GradientOfZIsRightWhereTheGateIsZero) {
  JIBOIA_SKIP_WITHOUT_FAST_SCAN();
  OpRun<Scan> run(scan_check(2, 19, 32, 16), Dtype::kBf16);
  run.in.z.fill(0);
  for (std::int64_t i = 0; i < run.in.z.size(); i += 2) run.in.z.set(i, -0.0);
  expect_gradients(run);
  for (std::int64_t i = 0; i < run.in.z.size(); i += 3) run.in.z.set(i, i % 2 == 0 ? 1 : -2);
  expect_gradients(run);
}

TEST(SelectiveScanTilesCuda, TakeLargeStatesStepsAndGates) {
  JIBOIA_SKIP_WITHOUT_FAST_SCAN();
  OpRun<Scan> run(scan_check(2, 37, 32, 16), Dtype::kBf16);
  run.in.a_log.fill(-9);
  for (std::int64_t i = 0; i < run.in.b.size(); ++i) run.in.b.set(i, 40000);
  for (std::int64_t i = 0; i < run.in.z.size(); i += 5) run.in.z.set(i, i % 2 == 0 ? 300 : -300);
  for (std::int64_t i = 0; i < run.in.dt.size(); i += 7) run.in.dt.set(i, i % 2 == 0 ? 80 : -120);
  expect_gradients(run);
  EXPECT_GT(run.out.states.largest(), 1e5);
}

}  // namespace
}  // namespace jiboia::test
