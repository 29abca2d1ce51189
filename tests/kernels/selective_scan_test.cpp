#include "kernels/selective_scan/selective_scan.h"

#include "tests/kernels/selective_scan_cases.h"

namespace jiboia::test {
namespace {

constexpr std::int64_t kChunk = Scan::kChunk;

/// The formula, step by step.
void plain_scan(const Scan::In<>& in, const Scan::Attrs&, const Scan::Out<>& out) {
  const std::int64_t B = in.u.shape[0], L = in.u.shape[1], D = in.u.shape[2];
  const std::int64_t N = in.a_log.shape[1];
  const auto at = [](const Tensor& tensor, std::int64_t row, std::int64_t column) {
    return tensor.as<double>()[row * tensor.row_stride + column];
  };
  const auto softplus = [](double x) { return x <= 20 ? std::log1p(std::exp(x)) : x; };
  for (std::int64_t batch = 0; batch < B; ++batch) {
    for (std::int64_t d = 0; d < D; ++d) {
      std::vector<double> h(static_cast<std::size_t>(N));
      for (std::int64_t n = 0; n < N && in.initial_state; ++n) {
        h[static_cast<std::size_t>(n)] = at(in.initial_state, batch * N + n, d);
      }
      for (std::int64_t t = 0; t < L; ++t) {
        const std::int64_t row = batch * L + t;
        const bool reset = in.document_start && in.document_start.as<std::int32_t>()[row] == t;
        const double delta = softplus(at(in.dt, row, d) + at(in.dt_bias, 0, d));
        double y = at(in.d_skip, 0, d) * at(in.u, row, d);
        for (std::int64_t n = 0; n < N; ++n) {
          double& state = h[static_cast<std::size_t>(n)];
          const double decay = reset ? 0 : std::exp(-std::exp(at(in.a_log, d, n)) * delta);
          state = decay * state + delta * at(in.b, row, n) * at(in.u, row, d);
          y += at(in.c, row, n) * state;
        }
        const double z = at(in.z, row, d);
        out.y.as<double>()[row * D + d] = y * z / (1 + std::exp(-z));
      }
      for (std::int64_t n = 0; n < N && out.final_state; ++n) {
        out.final_state.as<double>()[(batch * N + n) * D + d] = h[static_cast<std::size_t>(n)];
      }
    }
  }
}

OpCheck<Scan> check_of(std::int64_t B, std::int64_t L, std::int64_t D, std::int64_t N) {
  OpCheck<Scan> check = scan_check(B, L, D, N);
  check.reference = plain_scan;
  return check;
}

TEST(SelectiveScan, PassesOpCheckAtManyLengths) {
  for (std::int64_t L : {std::int64_t{1}, std::int64_t{2}, std::int64_t{3}, kChunk - 1, kChunk,
                         kChunk + 1, std::int64_t{40}}) {
    SCOPED_TRACE(L);
    check_op(check_of(2, L, 3, 5));
  }
}

TEST(SelectiveScan, PassesOpCheckAtManySizes) {
  check_op(check_of(1, 5, 1, 1));
  check_op(check_of(3, 18, 17, 16));
  check_op(check_of(2, 17, 33, 17));
  check_op(check_of(1, 20, 130, 4));
  check_op(check_of(2, 3, 16, 256));
}

TEST(SelectiveScan, TakesSlicesOfColumns) {
  auto check = check_of(2, 19, 17, 5);
  for (TestInput* input :
       {&check.inputs.u, &check.inputs.dt, &check.inputs.b, &check.inputs.c, &check.inputs.z}) {
    input->columns_before = 3;
    input->columns_after = 2;
  }
  check_op(check);
}

TEST(SelectiveScan, PlantedErrorsAreCaught) {
  auto check = check_of(2, kChunk + 2, 5, 3);
  check.attrs.final_state = FinalState::kReturn;
  check_op(check, PlantErrors::kYes);
}

TEST(SelectiveScan, CarriesStatesInAndOut) {
  auto check = check_of(2, kChunk + 5, 18, 5);
  check.attrs.final_state = FinalState::kReturn;
  check.inputs.initial_state = {.shape = {2, 5, 18}, .low = -2, .high = 2, .constant = true};
  check_op(check);
  check = check_of(1, 1, 18, 16);
  check.attrs.final_state = FinalState::kReturn;
  check.inputs.initial_state = {.shape = {1, 16, 18}, .low = -2, .high = 2, .constant = true};
  check_op(check);
}

TEST(SelectiveScan, ForgetsAtDocumentStarts) {
  for (const auto& starts : std::vector<std::vector<std::int32_t>>{
           {}, {1}, {5, 6, 7}, {kChunk - 1, kChunk}, {kChunk, kChunk + 1, 30}}) {
    auto check = check_of(2, 40, 5, 3);
    pack_documents(check, starts);
    check.inputs.initial_state = {.shape = {2, 3, 5}, .low = -2, .high = 2, .constant = true};
    check_op(check);
  }
}

TEST(SelectiveScan, PackedDocumentsEqualSeparateOnes) {
  const std::vector<std::int32_t> starts = {0, 7, kChunk, 33, 40};
  auto check = check_of(2, 40, 19, 6);
  pack_documents(check, {starts.begin(), starts.end() - 1});
  OpRun<Scan> packed(check);
  packed.forward();
  packed.grad_out.y = random_like(packed.out.y, 1);
  packed.backward();

  std::vector<TestTensor> sums(3);  // of the parameters' gradients
  for (std::size_t i = 0; i + 1 < starts.size(); ++i) {
    const std::int64_t begin = starts[i], end = starts[i + 1];
    OpRun<Scan> separate = part_of(packed, begin, end);
    separate.forward();
    separate.grad_out.y = steps_of(packed.grad_out.y, begin, end);
    separate.backward();
    EXPECT_TRUE(steps_of(packed.out.y, begin, end).same_bits(separate.out.y)) << begin;
    EXPECT_TRUE(steps_of(packed.grad_in.u, begin, end).same_bits(separate.grad_in.u)) << begin;
    EXPECT_TRUE(steps_of(packed.grad_in.dt, begin, end).same_bits(separate.grad_in.dt)) << begin;
    EXPECT_TRUE(steps_of(packed.grad_in.z, begin, end).same_bits(separate.grad_in.z)) << begin;
    EXPECT_TRUE(steps_of(packed.grad_in.b, begin, end).same_bits(separate.grad_in.b)) << begin;
    EXPECT_TRUE(steps_of(packed.grad_in.c, begin, end).same_bits(separate.grad_in.c)) << begin;
    const TestTensor* parts[] = {&separate.grad_in.a_log, &separate.grad_in.d_skip,
                                 &separate.grad_in.dt_bias};
    for (std::size_t k = 0; k < 3; ++k) {
      if (!sums[k]) sums[k] = TestTensor(parts[k]->spec());
      for (std::int64_t e = 0; e < sums[k].size(); ++e) {
        sums[k].set(e, sums[k].get(e) + parts[k]->get(e));
      }
    }
  }
  EXPECT_EQ(difference("a_log", packed.grad_in.a_log, sums[0], 1e-6, 1e-6), "");
  EXPECT_EQ(difference("d_skip", packed.grad_in.d_skip, sums[1], 1e-6, 1e-6), "");
  EXPECT_EQ(difference("dt_bias", packed.grad_in.dt_bias, sums[2], 1e-6, 1e-6), "");
}

TEST(SelectiveScan, DocumentsAreForgottenHoweverSlowlyTheirStateDecays) {
  auto check = check_of(1, 4, 3, 2);
  pack_documents(check, {2});
  OpRun<Scan> run(check);
  run.in.a_log.fill(-200);  // exp(a_log) is 0: without a document start nothing decays at all
  run.in.c.fill(1);
  run.in.d_skip.fill(0);
  run.forward();
  const OpRun<Scan> packed = run;
  OpRun<Scan> second = part_of(packed, 2, 4);
  second.forward();
  EXPECT_TRUE(steps_of(packed.out.y, 2, 4).same_bits(second.out.y));
}

TEST(SelectiveScan, SplitSequenceEqualsTheWhole) {
  auto check = check_of(2, 45, 21, 5);
  check.attrs.final_state = FinalState::kReturn;
  OpRun<Scan> whole(check);
  whole.forward();
  for (std::int64_t split : {std::int64_t{1}, kChunk, std::int64_t{30}}) {
    OpRun<Scan> first = part_of(whole, 0, split), second = part_of(whole, split, 45);
    first.forward();
    second.in.initial_state = first.out.final_state;
    second.forward();
    EXPECT_TRUE(steps_of(whole.out.y, 0, split).same_bits(first.out.y)) << split;
    EXPECT_TRUE(steps_of(whole.out.y, split, 45).same_bits(second.out.y)) << split;
    EXPECT_TRUE(whole.out.final_state.same_bits(second.out.final_state)) << split;
  }
}

TEST(SelectiveScan, TokenByTokenEqualsTheWhole) {
  auto check = check_of(1, 20, 17, 16);
  check.attrs.final_state = FinalState::kReturn;
  OpRun<Scan> whole(check);
  whole.forward();
  TestTensor state;
  for (std::int64_t t = 0; t < 20; ++t) {
    OpRun<Scan> token = part_of(whole, t, t + 1);
    token.in.initial_state = state;
    token.forward();
    EXPECT_TRUE(steps_of(whole.out.y, t, t + 1).same_bits(token.out.y)) << t;
    state = token.out.final_state;
  }
}

TEST(SelectiveScan, IsLinearInItsInput) {
  OpRun<Scan> once(check_of(2, 30, 9, 4));
  OpRun<Scan> twice = once;
  for (std::int64_t i = 0; i < once.in.u.size(); ++i) twice.in.u.set(i, 2 * once.in.u.get(i));
  once.forward();
  twice.forward();
  for (std::int64_t i = 0; i < once.out.y.size(); ++i) {
    EXPECT_EQ(twice.out.y.get(i), 2 * once.out.y.get(i));
  }
}

/// A run with one channel and one state whose constants make closed forms short: delta = 0.5,
/// c = 1, b = 3, no skip, and a gate of `gate()`.
OpRun<Scan> simple_run(std::int64_t L, double decay) {
  constexpr double kDelta = 0.5;
  auto check = check_of(1, L, 1, 1);
  check.attrs.final_state = FinalState::kReturn;
  OpRun<Scan> run(check, Dtype::kF64);
  run.in.dt.fill(std::log(std::expm1(kDelta)));
  run.in.dt_bias.fill(0);
  run.in.a_log.fill(std::log(-std::log(decay) / kDelta));
  run.in.b.fill(3);
  run.in.c.fill(1);
  run.in.d_skip.fill(0);
  run.in.z.fill(2);
  return run;
}
double gate() { return 2 / (1 + std::exp(-2.0)); }

TEST(SelectiveScan, ImpulseResponseIsGeometric) {
  OpRun<Scan> run = simple_run(50, 0.9);
  run.in.u.fill(0);
  run.in.u.set(3, 7);
  run.forward();
  for (std::int64_t t = 0; t < 50; ++t) {
    const double want = t < 3 ? 0 : 0.5 * 3 * 7 * std::pow(0.9, static_cast<double>(t - 3));
    EXPECT_NEAR(run.out.y.get(t), want * gate(), 1e-12) << t;
  }
}

TEST(SelectiveScan, ConstantInputSumsAGeometricSeries) {
  OpRun<Scan> run = simple_run(500, 0.99);
  run.in.u.fill(1);
  run.forward();
  for (std::int64_t t = 0; t < 500; ++t) {
    const double want = 1.5 * (1 - std::pow(0.99, static_cast<double>(t + 1))) / (1 - 0.99);
    EXPECT_NEAR(run.out.y.get(t), want * gate(), 1e-9) << t;
  }
}

/// The same values in f64.
OpRun<Scan> widened(OpRun<Scan> run) {
  for (TestTensor& tensor : fields<TestTensor>(run.in)) {
    if (!tensor || tensor.spec().dtype != Dtype::kF32) continue;
    TestTensor wide(Spec(Dtype::kF64, tensor.spec().shape));
    for (std::int64_t i = 0; i < wide.size(); ++i) wide.set(i, tensor.get(i));
    tensor = wide;
  }
  return run;
}

/// Runs both passes in f32 and in f64, the outputs of the latter by the plain formula.
void run_both(OpRun<Scan>& single, OpRun<Scan>& exact) {
  for (OpRun<Scan>* run : {&single, &exact}) {
    run->forward();
    run->grad_out.y = random_like(run->out.y, 5);
    run->backward();
  }
  const auto tensor_of = [](const TestTensor& tensor) { return tensor.tensor(); };
  plain_scan(map_fields<Tensor, Scan::In<>, TestTensor>(exact.in, tensor_of), exact.attrs,
             map_fields<Tensor, Scan::Out<>, TestTensor>(exact.out, tensor_of));
}

void expect_close(const OpRun<Scan>& single, const OpRun<Scan>& exact, double relative,
                  double absolute) {
  EXPECT_EQ(difference("y", single.out.y, exact.out.y, relative, absolute), "");
  for (std::size_t i = 0; i < std::size(Scan::kInputs); ++i) {
    EXPECT_EQ(difference(Scan::kInputs[i], fields<const TestTensor>(single.grad_in)[i],
                         fields<const TestTensor>(exact.grad_in)[i], relative, absolute),
              "");
  }
}

TEST(SelectiveScan, SoftplusIsAccurateOnBothBranches) {
  for (double dt : {-80.0, -20.0, -15.0, -9.21, -1.0, 0.0, 19.999, 20.0, 20.001, 89.0, 1e4}) {
    SCOPED_TRACE(dt);
    OpRun<Scan> single(check_of(1, 20, 1, 2));
    single.in.dt.fill(dt);
    single.in.dt_bias.fill(0);
    single.in.d_skip.fill(0);
    OpRun<Scan> exact = widened(single);
    run_both(single, exact);
    expect_close(single, exact, 1e-5, 1e-34);
  }
}

TEST(SelectiveScan, GatesFarFromZeroAreFinite) {
  for (double z : {-1e4, -100.0, -88.0, 88.0, 100.0, 1e4}) {
    SCOPED_TRACE(z);
    OpRun<Scan> single(check_of(1, 3, 1, 2));
    single.in.z.fill(z);
    OpRun<Scan> exact = widened(single);
    run_both(single, exact);
    expect_close(single, exact, 1e-5, 1e-34);
  }
}

TEST(SelectiveScan, RatesPastTheLargestFloatAreFinite) {
  OpRun<Scan> single(check_of(1, 20, 3, 2));
  single.in.a_log.fill(100);  // e^100 overflows
  single.in.dt_bias.fill(0);
  for (std::int64_t i = 0; i < single.in.dt.size(); ++i) {
    single.in.dt.set(i, i % 2 ? 1 : -200);  // a step of 0, in which nothing decays
  }
  OpRun<Scan> exact = widened(single);
  run_both(single, exact);
  expect_close(single, exact, 1e-5, 1e-34);

  single.in.a_log.set(2, std::numeric_limits<double>::quiet_NaN());  // of channel 1
  single.forward();
  EXPECT_FALSE(std::isnan(single.out.y.get(0)));
  EXPECT_TRUE(std::isnan(single.out.y.get(4)));
}

TEST(SelectiveScan, DecaysNextToOneAreKept) {
  const double decay = 1 - 0x1p-24;  // the float next to 1
  constexpr std::int64_t kSteps = 1000;
  OpRun<Scan> run = simple_run(kSteps, decay);
  OpRun<Scan> single(check_of(1, kSteps, 1, 1));
  for (std::size_t i = 0; i < std::size(Scan::kInputs); ++i) {
    const TestTensor& from = fields<TestTensor>(run.in)[i];
    TestTensor& to = fields<TestTensor>(single.in)[i];
    for (std::int64_t k = 0; k < from.size(); ++k) to.set(k, from.get(k));
  }
  single.in.u.fill(0);
  single.in.u.set(0, 1);
  single.forward();
  const double first = single.out.y.get(0), last = single.out.y.get(kSteps - 1);
  EXPECT_LT(last, first);
  EXPECT_NEAR(last / first, std::pow(decay, kSteps - 1), 5e-5);
}

TEST(SelectiveScan, HugeInputDecays) {
  OpRun<Scan> run(check_of(1, 60, 1, 3));
  run.in.dt.fill(1.3);
  run.in.dt_bias.fill(0);
  run.in.a_log.fill(1);
  OpRun<Scan> calm = run;
  run.in.u.set(2, 1e30);
  run.forward();
  calm.forward();
  EXPECT_GT(std::abs(run.out.y.get(3)), 1e25);
  for (std::int64_t t = 40; t < 60; ++t) {
    EXPECT_NEAR(run.out.y.get(t), calm.out.y.get(t), 1e-6) << t;
  }
}

TEST(SelectiveScan, NaNStaysInItsChannelAndBatchRow) {
  OpRun<Scan> run(check_of(2, 20, 20, 3));
  constexpr std::int64_t kChannel = 5, kStep = 4;
  run.in.u.set(kStep * 20 + kChannel, std::numeric_limits<double>::quiet_NaN());
  run.forward();
  run.grad_out.y = random_like(run.out.y, 5);
  run.backward();
  for (std::int64_t i = 0; i < run.out.y.size(); ++i) {
    const std::int64_t batch = i / 400, step = i / 20 % 20, channel = i % 20;
    const bool touched = batch == 0 && channel == kChannel;
    EXPECT_EQ(std::isnan(run.out.y.get(i)), touched && step >= kStep) << i;
    EXPECT_EQ(std::isnan(run.grad_in.z.get(i)), touched && step >= kStep) << i;
    EXPECT_FALSE(!touched && std::isnan(run.grad_in.u.get(i))) << i;
    EXPECT_FALSE(!touched && std::isnan(run.grad_in.dt.get(i))) << i;
  }
  for (std::int64_t i = 0; i < run.grad_in.a_log.size(); ++i) {
    EXPECT_EQ(std::isnan(run.grad_in.a_log.get(i)), i / 3 == kChannel) << i;
  }
}

/// |got - want| <= absolute + relative * |want|, element by element, as PyTorch's allclose.
void expect_all_close(const std::string& what, const TestTensor& got, const TestTensor& want,
                      double relative, double absolute) {
  double worst = 0;
  for (std::int64_t i = 0; i < want.size(); ++i) {
    const double limit = absolute + relative * std::abs(want.get(i));
    worst = std::max(worst, std::abs(got.get(i) - want.get(i)) / limit);
  }
  EXPECT_LE(worst, 1) << what;
}

// Shapes, distributions and tolerances of mamba_ssm's tests/ops/test_selective_scan.py, and this
// project's own tolerance on top.
TEST(SelectiveScan, MeetsTheTolerancesOfMambaSsm) {
  for (std::int64_t L : {128, 256, 512, 1024, 2048, 4096}) {
    SCOPED_TRACE(L);
    auto check = check_of(2, L, 4, 8);
    check.attrs.final_state = FinalState::kReturn;
    check.inputs.dt = {.shape = {2, L, 4}, .low = 0, .high = 0.5};
    check.inputs.dt_bias = {.shape = {4}, .low = 0, .high = 0.5};
    OpRun<Scan> single(check);
    const Philox random(0, RandomPurpose::kTest);
    std::uint64_t drawn = 0;
    for (TestTensor* normal :
         {&single.in.b, &single.in.c, &single.in.d_skip, &single.in.z, &single.in.u}) {
      for (std::int64_t i = 0; i < normal->size(); ++i) normal->set(i, random.normal(drawn++));
    }
    for (std::int64_t i = 0; i < single.in.a_log.size(); ++i) {
      single.in.a_log.set(i, std::log(0.5 * random.uniform(drawn++)));
    }
    OpRun<Scan> exact = widened(single);
    run_both(single, exact);
    expect_close(single, exact, 1e-5, 1e-6);

    const auto &got = single.grad_in, &want = exact.grad_in;
    expect_all_close("y", single.out.y, exact.out.y, 6e-4, 2e-3);
    expect_all_close("final state", single.out.final_state, exact.out.final_state, 6e-4, 2e-3);
    expect_all_close("u", got.u, want.u, 1.2e-3, 4e-3);
    expect_all_close("dt", got.dt, want.dt, 3e-3, 2e-2);
    expect_all_close("a_log", got.a_log, want.a_log, 1e-3, 1e-2);
    expect_all_close("b", got.b, want.b, 6e-4, 2e-3);
    expect_all_close("c", got.c, want.c, 6e-4, 2e-3);
    expect_all_close("d_skip", got.d_skip, want.d_skip, 1e-3, 2e-3);
    expect_all_close("z", got.z, want.z, 1e-3, 2e-3);
    expect_all_close("dt_bias", got.dt_bias, want.dt_bias, 1e-3, 2e-3);
  }
}

TEST(SelectiveScan, RefusesMissingInputsAndEmptySequences) {
  const auto infer = [](auto change) {
    Scan::In<Spec> in{};
    const OpCheck<Scan> check = check_of(2, 3, 4, 5);
    for (std::size_t i = 0; i < std::size(Scan::kInputs); ++i) {
      const TestInput& input = fields<const TestInput>(check.inputs)[i];
      if (input.present()) fields<Spec>(in)[i] = Spec(Dtype::kF32, input.shape);
    }
    change(in);
    try {
      (void)Scan::infer(in, {});
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return std::string("accepted");
  };
  EXPECT_EQ(infer([](auto&) {}), "accepted");
  EXPECT_THAT(infer([](auto& in) { in.z = Spec(); }), testing::HasSubstr("z is absent"));
  EXPECT_THAT(infer([](auto& in) { in.d_skip = Spec(); }), testing::HasSubstr("d_skip is absent"));
  EXPECT_THAT(infer([](auto& in) {
                in.u = Spec(Dtype::kF32, {2, 0, 4});
              }),
              testing::HasSubstr("L > 0"));
  EXPECT_THAT(infer([](auto& in) {
                in.b = Spec(Dtype::kF32, {2, 3, 8});
              }),
              testing::HasSubstr("b is f32 (2, 3, 8), expected (B, L, N), N from a_log"));
}

TEST(SelectiveScan, TakesNoBatchRows) {
  OpRun<Scan> run(check_of(1, 3, 4, 2));
  for (TestTensor* tensor : {&run.in.u, &run.in.dt, &run.in.b, &run.in.c, &run.in.z}) {
    *tensor = TestTensor(Spec(Dtype::kF32, tensor->spec().shape.with(0, 0)));
  }
  run.forward();
  run.backward();
  EXPECT_EQ(run.grad_in.a_log.largest(), 0);
  EXPECT_EQ(run.grad_in.d_skip.largest(), 0);
}

}  // namespace
}  // namespace jiboia::test
