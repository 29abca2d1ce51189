#include <set>

#include "kernels/add_rms_norm/add_rms_norm.h"
#include "kernels/causal_conv1d/causal_conv1d.h"
#include "kernels/linear/linear.h"
#include "kernels/selective_scan/selective_scan.h"
#include "tests/support/op_run.h"

// Values far from the usual ones, on the GPU: closed forms, overflow, underflow, NaN.
namespace jiboia::test {
namespace {

using Conv = CausalConv1d;
using Scan = SelectiveScan;
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr Dtype kDtypes[] = {Dtype::kF32, Dtype::kBf16};

/// Runs both passes on the GPU and, in f64, on the CPU: every output and gradient is finite and
/// close, `absolute` apart at most where all is small.
template <class Op>
void expect_close_to_f64(OpRun<Op>& run, double absolute = 1e-6) {
  run.forward_cuda();
  for (std::size_t i = 0; i < std::size(Op::kOutputs); ++i) {
    const TestTensor& out = fields<TestTensor>(run.out)[i];
    if (out.spec().shape == fields<TestTensor>(run.out)[0].spec().shape) {
      fields<TestTensor>(run.grad_out)[i] = random_like(out, 5);
    }
  }
  run.backward_cuda();
  OpRun<Op> exact = run.in_f64();
  exact.forward();
  exact.backward();
  const auto expect_close = [&](const char* name, const TestTensor& got, const TestTensor& want) {
    if (!want) return;
    const detail::Tolerance tolerance{.of_largest = 1e-4,
                                      .of_element = got.spec().dtype == Dtype::kBf16 ? 0x1p-8 : 0,
                                      .absolute = absolute};
    EXPECT_EQ(detail::device_difference(name, got, want, tolerance), "");
  };
  for (std::size_t i = 0; i < std::size(Op::kOutputs); ++i) {
    expect_close(Op::kOutputs[i], fields<TestTensor>(run.out)[i], fields<TestTensor>(exact.out)[i]);
  }
  for (std::size_t i = 0; i < std::size(Op::kInputs); ++i) {
    if (input_kind<Op>(i) == InputKind::kIndex) continue;
    expect_close(Op::kInputs[i], fields<TestTensor>(run.grad_in)[i],
                 fields<TestTensor>(exact.grad_in)[i]);
  }
}

OpCheck<Scan> scan_of(std::int64_t B, std::int64_t L, std::int64_t D, std::int64_t N) {
  return {.inputs = {.u = {.shape = {B, L, D}, .low = -1, .high = 1},
                     .dt = {.shape = {B, L, D}, .low = -3, .high = 2},
                     .a_log = {.shape = {D, N}, .low = -2, .high = 2},
                     .b = {.shape = {B, L, N}, .low = -1, .high = 1},
                     .c = {.shape = {B, L, N}, .low = -1, .high = 1},
                     .d_skip = {.shape = {D}, .low = -1, .high = 1},
                     .z = {.shape = {B, L, D}, .low = -3, .high = 3},
                     .dt_bias = {.shape = {D}, .low = -2, .high = 1}}};
}

/// A scan that multiplies the state of every channel by decay(d) in a step and adds 1.5 u to it; y
/// is the state times gate().
template <class Decay>
OpRun<Scan> simple_scan(Dtype dtype, std::int64_t L, std::int64_t D, const Decay& decay) {
  constexpr double kDelta = 0.5;
  constexpr std::int64_t N = 3;
  OpRun<Scan> run(scan_of(2, L, D, N), dtype);
  run.in.dt.fill(0);
  run.in.dt_bias.fill(std::log(std::expm1(kDelta)));
  for (std::int64_t i = 0; i < D * N; ++i) {
    run.in.a_log.set(i, std::log(-std::log(decay(i / N)) / kDelta));
  }
  run.in.b.fill(1);  // three states alike
  run.in.c.fill(1);
  run.in.d_skip.fill(0);
  run.in.z.fill(2);
  return run;
}
double gate() { return 2 / (1 + std::exp(-2.0)); }

/// What the dtype and f32 arithmetic over many steps leave of a number.
double precision(Dtype dtype, double exact) {
  return std::abs(exact) * (dtype == Dtype::kBf16 ? 0x1p-8 + 1e-4 : 1e-4) + 1e-30;
}

TEST(ExtremeValuesCuda, ScanOfConstantsSumsGeometricSeries) {
  JIBOIA_SKIP_WITHOUT_GPU();
  constexpr std::int64_t L = 500, D = 35;
  const auto decay = [](std::int64_t d) { return 1 - std::exp2(-1 - static_cast<double>(d % 10)); };
  for (Dtype dtype : kDtypes) {
    OpRun<Scan> run = simple_scan(dtype, L, D, decay);
    run.in.u.fill(1);
    run.forward_cuda();
    for (std::int64_t i = 0; i < run.out.y.size(); ++i) {
      const auto steps = static_cast<double>(i / D % L + 1);
      const double a = decay(i % D);
      const double want = 3 * 0.5 * (1 - std::pow(a, steps)) / (1 - a) * gate();
      ASSERT_NEAR(run.out.y.get(i), want, precision(dtype, want)) << to_string(dtype) << " " << i;
    }
  }
}

TEST(ExtremeValuesCuda, ScanOfAnImpulseDecaysGeometrically) {
  JIBOIA_SKIP_WITHOUT_GPU();
  constexpr std::int64_t L = 150, D = 33;
  for (Dtype dtype : kDtypes) {
    for (std::int64_t at : {0, 3, 16, 63, 64, 149}) {
      OpRun<Scan> run = simple_scan(dtype, L, D, [](std::int64_t) { return 0.9; });
      run.in.u.fill(0);
      for (std::int64_t d = 0; d < D; ++d) run.in.u.set(at * D + d, 7);  // in the first row alone
      run.forward_cuda();
      for (std::int64_t i = 0; i < run.out.y.size(); ++i) {
        const std::int64_t step = i / D % L - at;
        const bool silent = i >= L * D || step < 0;
        const double decayed = std::pow(0.9, static_cast<double>(step));
        const double want = silent ? 0 : 3 * 0.5 * 7 * decayed * gate();
        ASSERT_NEAR(run.out.y.get(i), want, silent ? 0 : precision(dtype, want))
            << to_string(dtype) << " " << at << " " << i;
      }
    }
  }
}

TEST(ExtremeValuesCuda, ScanIsLinearInItsInput) {
  JIBOIA_SKIP_WITHOUT_GPU();
  for (Dtype dtype : kDtypes) {
    OpRun<Scan> once(scan_of(2, 77, 35, 5), dtype);
    OpRun<Scan> twice = once;
    for (std::int64_t i = 0; i < once.in.u.size(); ++i) twice.in.u.set(i, 2 * once.in.u.get(i));
    once.forward_cuda();
    twice.forward_cuda();
    for (std::int64_t i = 0; i < once.out.y.size(); ++i) {
      ASSERT_EQ(twice.out.y.get(i), 2 * once.out.y.get(i)) << to_string(dtype) << " " << i;
    }
  }
}

TEST(ExtremeValuesCuda, ScanTakesStepSizesOfBothSoftplusBranches) {
  JIBOIA_SKIP_WITHOUT_GPU();
  for (Dtype dtype : kDtypes) {
    for (double dt :
         {-104.0, -88.0, -80.0, -20.0, -15.0, -9.21, -1.0, 0.0, 19.999, 20.0, 20.001, 89.0, 1e4}) {
      SCOPED_TRACE(fmt::format("{} {}", to_string(dtype), dt));
      OpRun<Scan> run(scan_of(1, 20, 3, 2), dtype);
      run.in.dt.fill(0);
      run.in.dt_bias.fill(dt);
      run.in.d_skip.fill(0);
      expect_close_to_f64(run, 1e-34);
    }
  }
}

TEST(ExtremeValuesCuda, ScanStandsStillWithoutASteps) {
  JIBOIA_SKIP_WITHOUT_GPU();
  for (Dtype dtype : kDtypes) {
    OpCheck<Scan> check = scan_of(2, 40, 5, 3);
    check.attrs.final_state = FinalState::kReturn;
    check.inputs.initial_state = {.shape = {2, 3, 5}, .low = -2, .high = 2};
    OpRun<Scan> run(check, dtype);
    run.in.dt.fill(0);
    run.in.dt_bias.fill(-1000);  // exp() is 0
    run.forward_cuda();
    EXPECT_EQ(run.out.final_state.values(), run.in.initial_state.values()) << to_string(dtype);
  }
}

TEST(ExtremeValuesCuda, ScanTakesGatesFarFromZero) {
  JIBOIA_SKIP_WITHOUT_GPU();
  for (Dtype dtype : kDtypes) {
    for (double z : {-1e4, -100.0, -88.0, 88.0, 100.0, 1e4}) {
      SCOPED_TRACE(fmt::format("{} {}", to_string(dtype), z));
      OpRun<Scan> run(scan_of(1, 3, 3, 2), dtype);
      run.in.z.fill(z);
      expect_close_to_f64(run, 1e-34);
    }
  }
}

TEST(ExtremeValuesCuda, ScanTakesRatesPastTheLargestFloat) {
  JIBOIA_SKIP_WITHOUT_GPU();
  for (Dtype dtype : kDtypes) {
    OpRun<Scan> run(scan_of(1, 20, 3, 2), dtype);
    run.in.a_log.fill(100);  // e^100 overflows
    run.in.dt_bias.fill(0);
    for (std::int64_t i = 0; i < run.in.dt.size(); ++i) {
      run.in.dt.set(i, i % 2 ? 1 : -200);  // a step of 0, in which nothing decays
    }
    expect_close_to_f64(run, 1e-34);
    run.in.a_log.set(2, kNaN);  // of channel 1
    run.forward_cuda();
    for (std::int64_t i = 0; i < run.out.y.size(); ++i) {
      EXPECT_EQ(std::isnan(run.out.y.get(i)), i % 3 == 1) << i;
    }
  }
}

TEST(ExtremeValuesCuda, ScanKeepsDecaysNextToOne) {
  JIBOIA_SKIP_WITHOUT_GPU();
  constexpr double kDecay = 1 - 0x1p-24;  // the float next to 1
  constexpr std::int64_t kSteps = 1000;
  OpRun<Scan> run = simple_scan(Dtype::kF32, kSteps, 1, [=](std::int64_t) { return kDecay; });
  run.in.u.fill(0);
  run.in.u.set(0, 1);
  run.forward_cuda();
  const double first = run.out.y.get(0), last = run.out.y.get(kSteps - 1);
  // Twice the distance between two floats for every step: what exp() may be off.
  EXPECT_NEAR(last / first, std::pow(kDecay, kSteps - 1), kSteps * 0x1p-23);
  EXPECT_GT(first, 0);
}

TEST(ExtremeValuesCuda, ScanForgetsAHugeInput) {
  JIBOIA_SKIP_WITHOUT_GPU();
  for (Dtype dtype : kDtypes) {
    OpRun<Scan> run(scan_of(1, 200, 3, 3), dtype);
    run.in.dt.fill(0);
    run.in.dt_bias.fill(1.3);
    run.in.a_log.fill(1);
    OpRun<Scan> calm = run;
    run.in.u.set(2 * 3 + 1, 1e30);
    run.forward_cuda();
    calm.forward_cuda();
    EXPECT_GT(std::abs(run.out.y.get(3 * 3 + 1)), 1e25);
    for (std::int64_t i = 0; i < run.out.y.size(); ++i) {
      if (i % 3 == 1 && i / 3 >= 2 && i / 3 < 40) continue;
      const double want = calm.out.y.get(i);
      ASSERT_NEAR(run.out.y.get(i), want, precision(dtype, want) + 1e-6) << i;
    }
  }
}

/// Which rows or channels of a tensor hold a NaN: index(i) over all its elements.
template <class Index>
std::set<std::int64_t> where_nan(const TestTensor& tensor, const Index& index) {
  std::set<std::int64_t> result;
  for (std::int64_t i = 0; i < tensor.size(); ++i) {
    if (std::isnan(tensor.get(i))) result.insert(index(i));
  }
  return result;
}

using testing::ElementsAre;
using testing::IsEmpty;

TEST(ExtremeValuesCuda, ScanKeepsNaNInItsChannelAndBatchRow) {
  JIBOIA_SKIP_WITHOUT_GPU();
  constexpr std::int64_t B = 2, L = 70, D = 40, N = 5, kChannel = 5, kStep = 4;
  const auto channel_of_row = [](std::int64_t i) { return i / (L * D) * 1000 + i % D; };
  for (Dtype dtype : kDtypes) {
    for (std::size_t which : {0, 1, 6}) {  // u, dt, z
      SCOPED_TRACE(fmt::format("{} {}", to_string(dtype), Scan::kInputs[which]));
      OpRun<Scan> run(scan_of(B, L, D, N), dtype);
      fields<TestTensor>(run.in)[which].set(kStep * D + kChannel, kNaN);
      run.forward_cuda();
      run.grad_out.y = random_like(run.out.y, 5);
      run.backward_cuda();
      for (std::int64_t i = 0; i < run.out.y.size(); ++i) {
        const std::int64_t step = i / D;  // in the first row
        const bool touched = i < L * D && i % D == kChannel && step >= kStep;
        const bool wanted = which == 6 ? touched && step == kStep : touched;
        ASSERT_EQ(std::isnan(run.out.y.get(i)), wanted) << i;
      }
      for (const TestTensor* grad : {&run.grad_in.u, &run.grad_in.dt, &run.grad_in.z}) {
        for (std::int64_t channel : where_nan(*grad, channel_of_row)) EXPECT_EQ(channel, kChannel);
      }
      EXPECT_THAT(where_nan(run.grad_in.a_log, [](auto i) { return i / N; }),
                  ElementsAre(kChannel));
      EXPECT_THAT(
          where_nan(run.grad_in.d_skip, [](auto i) { return i; }),
          which == 1 ? testing::Matcher<std::set<std::int64_t>>(IsEmpty()) : ElementsAre(kChannel));
      EXPECT_THAT(where_nan(run.grad_in.b, [](auto i) { return i / (L * N); }), ElementsAre(0));
      EXPECT_THAT(where_nan(run.grad_in.c, [](auto i) { return i / (L * N); }), ElementsAre(0));
    }
    OpRun<Scan> run(scan_of(B, L, D, N), dtype);
    run.in.b.set(kStep * N + 2, kNaN);
    run.forward_cuda();
    for (std::int64_t i = 0; i < run.out.y.size(); ++i) {
      ASSERT_EQ(std::isnan(run.out.y.get(i)), i < L * D && i / D >= kStep) << i;
    }
  }
}

OpCheck<Conv> conv_of(std::int64_t B, std::int64_t L, std::int64_t D, std::int64_t W) {
  return {.inputs = {.x = {.shape = {B, L, D}, .low = -2, .high = 2},
                     .weight = {.shape = {D, W}, .low = -1, .high = 1},
                     .bias = {.shape = {D}, .low = -1, .high = 1}}};
}

TEST(ExtremeValuesCuda, ConvKeepsNaNInItsChannelAndWindow) {
  JIBOIA_SKIP_WITHOUT_GPU();
  constexpr std::int64_t L = 70, D = 40, W = 4, kChannel = 5;
  for (Dtype dtype : kDtypes) {
    for (std::int64_t at : {0, 4, 31, 32, 64, 69}) {
      OpRun<Conv> run(conv_of(2, L, D, W), dtype);
      run.in.x.set(at * D + kChannel, kNaN);
      run.forward_cuda();
      run.grad_out.u = random_like(run.out.u, 5);
      run.backward_cuda();
      for (std::int64_t i = 0; i < run.out.u.size(); ++i) {
        const std::int64_t step = i / D;
        const bool channel = i < L * D && i % D == kChannel;
        ASSERT_EQ(std::isnan(run.out.u.get(i)), channel && step >= at && step < at + W) << i;
        ASSERT_FALSE(std::isnan(run.grad_in.x.get(i)) &&
                     !(channel && step > at - W && step < at + W))
            << i;
      }
      EXPECT_THAT(where_nan(run.grad_in.weight, [](auto i) { return i / W; }),
                  ElementsAre(kChannel));
      EXPECT_THAT(where_nan(run.grad_in.bias, [](auto i) { return i; }), ElementsAre(kChannel));
    }
  }
}

TEST(ExtremeValuesCuda, ConvTakesSumsFarFromZero) {
  JIBOIA_SKIP_WITHOUT_GPU();
  for (Dtype dtype : kDtypes) {
    for (double s : {-1e4, -100.0, -89.0, -88.0, 88.0, 89.0, 100.0, 1e4}) {
      SCOPED_TRACE(fmt::format("{} {}", to_string(dtype), s));
      OpRun<Conv> run(conv_of(1, 7, 5, 3), dtype);
      run.in.bias.fill(s);
      expect_close_to_f64(run, 1e-34);
    }
  }
}

OpCheck<AddRmsNorm> norm_of(std::int64_t rows, std::int64_t E) {
  return {.inputs = {.residual = {.shape = {1, rows, E}, .low = -1, .high = 1},
                     .update = {.shape = {1, rows, E}, .low = -1, .high = 1},
                     .weight = {.shape = {E}, .low = 0.5, .high = 1.5}},
          .saved_outputs = {"rstd"}};
}

TEST(ExtremeValuesCuda, NormTakesTinyAndHugeRows) {
  JIBOIA_SKIP_WITHOUT_GPU();
  for (Dtype dtype : kDtypes) {
    for (double scale : {0.0, 1e-30, 1e-20, 1e-6, 1e6, 1e17}) {
      SCOPED_TRACE(fmt::format("{} {}", to_string(dtype), scale));
      OpRun<AddRmsNorm> run(norm_of(3, 130), dtype);
      for (TestTensor* tensor : {&run.in.residual, &run.in.update}) {
        for (std::int64_t i = 0; i < tensor->size(); ++i) tensor->set(i, scale * tensor->get(i));
      }
      expect_close_to_f64(run, 1e-36);
    }
  }
}

TEST(ExtremeValuesCuda, NormAndLinearKeepNaNInItsRow) {
  JIBOIA_SKIP_WITHOUT_GPU();
  constexpr std::int64_t kRows = 70, kRow = 33, E = 40, M = 50;
  const auto row = [](std::int64_t columns) {
    return [columns](std::int64_t i) { return i / columns; };
  };
  for (Dtype dtype : kDtypes) {
    OpRun<AddRmsNorm> norm(norm_of(kRows, E), dtype);
    norm.in.update.set(kRow * E + 7, kNaN);
    norm.forward_cuda();
    norm.grad_out.sum = random_like(norm.out.sum, 5);
    norm.grad_out.normed = random_like(norm.out.normed, 6);
    norm.backward_cuda();
    EXPECT_THAT(where_nan(norm.out.sum, row(1)), ElementsAre(kRow * E + 7));
    EXPECT_THAT(where_nan(norm.out.rstd, row(1)), ElementsAre(kRow));
    for (const TestTensor* tensor :
         {&norm.out.normed, &norm.grad_in.residual, &norm.grad_in.update}) {
      EXPECT_THAT(where_nan(*tensor, row(E)), ElementsAre(kRow));
    }

    OpRun<Linear> linear(
        OpCheck<Linear>{.inputs = {.x = {.shape = {1, kRows, E}, .low = -1, .high = 1},
                                   .weight = {.shape = {M, E}, .low = -1, .high = 1}}},
        dtype);
    linear.in.x.set(kRow * E + 7, kNaN);
    linear.forward_cuda();
    linear.grad_out.y = random_like(linear.out.y, 5);
    linear.grad_out.y.set((kRow + 1) * M + 3, kNaN);
    linear.backward_cuda();
    EXPECT_THAT(where_nan(linear.out.y, row(M)), ElementsAre(kRow));
    EXPECT_THAT(where_nan(linear.grad_in.x, row(E)), ElementsAre(kRow + 1));
  }
}

}  // namespace
}  // namespace jiboia::test
