#include "kernels/causal_conv1d/causal_conv1d.h"

#include <fmt/ranges.h>

#include "tests/support/op_run.h"

namespace jiboia::test {
namespace {

using Conv = CausalConv1d;

/// The formula, tap by tap.
void plain_conv(const Conv::In<>& in, const Conv::Attrs&, const Conv::Out<>& out) {
  const std::int64_t B = in.x.shape[0], L = in.x.shape[1], D = in.x.shape[2];
  const std::int64_t W = in.weight.shape[1];
  for (std::int64_t row = 0; row < B * L; ++row) {
    const std::int64_t batch = row / L, t = row % L;
    const std::int64_t start = in.document_start ? in.document_start.as<std::int32_t>()[row] : 0;
    for (std::int64_t d = 0; d < D; ++d) {
      double s = in.bias ? in.bias.as<double>()[d] : 0;
      for (std::int64_t k = 0; k < W; ++k) {
        const std::int64_t step = t - W + 1 + k;
        double x = 0;
        if (step >= start) {
          x = in.x.as<double>()[(batch * L + step) * in.x.row_stride + d];
        } else if (step < 0 && start == 0 && in.history) {
          x = in.history.as<double>()[(batch * (W - 1) + step + W - 1) * D + d];
        }
        s += in.weight.as<double>()[d * W + k] * x;
      }
      out.u.as<double>()[row * D + d] = s / (1 + std::exp(-s));
    }
  }
}

OpCheck<Conv> check_of(std::int64_t B, std::int64_t L, std::int64_t D, std::int64_t W) {
  return {.inputs = {.x = {.shape = {B, L, D}, .low = -2, .high = 2, .free_dimensions = {0, 1}},
                     .weight = {.shape = {D, W}, .low = -1, .high = 1, .free_dimensions = {1}},
                     .bias = {.shape = {D}, .low = -1, .high = 1}},
          .reference = plain_conv};
}

void add_history(OpCheck<Conv>& check) {
  const Shape x = check.inputs.x.shape;
  check.inputs.history = {.shape = {x[0], check.inputs.weight.shape[1] - 1, x[2]},
                          .low = -2,
                          .high = 2,
                          .constant = true};
  check.inputs.x.free_dimensions = {1};
  check.inputs.weight.free_dimensions = {};
}

/// Gives every row documents that begin at the given steps.
void pack_documents(OpCheck<Conv>& check, const std::vector<std::int32_t>& starts) {
  const Shape shape = check.inputs.x.shape;
  TestInput& input = check.inputs.document_start;
  input.shape = {shape[0], shape[1]};
  check.inputs.x.free_dimensions = {};
  for (std::int64_t row = 0; row < shape[0]; ++row) {
    std::int32_t start = 0;
    for (std::int32_t t = 0; t < shape[1]; ++t) {
      if (std::find(starts.begin(), starts.end(), t) != starts.end()) start = t;
      input.integers.push_back(start);
    }
  }
}

TEST(CausalConv1d, PassesOpCheckAtManyLengthsAndWidths) {
  for (std::int64_t L : {1, 2, 3, 7, 31, 32, 33, 70}) {
    for (std::int64_t W : {1, 2, 3, 4, 5}) {
      SCOPED_TRACE(fmt::format("L {}, W {}", L, W));
      check_op(check_of(2, L, 3, W));
    }
  }
  check_op(check_of(1, 40, 2, 35));
}

TEST(CausalConv1d, PassesOpCheckAtManySizes) {
  check_op(check_of(1, 5, 1, 4));
  check_op(check_of(3, 9, 16, 4));
  check_op(check_of(3, 5, 17, 3));
  check_op(check_of(2, 34, 33, 4));
  check_op(check_of(1, 6, 130, 2));
}

TEST(CausalConv1d, NeedsNoBias) {
  auto check = check_of(2, 5, 18, 4);
  check.inputs.bias = {};
  check_op(check);
}

TEST(CausalConv1d, TakesSlicesOfColumns) {
  auto check = check_of(2, 35, 17, 4);
  check.inputs.x.columns_before = 5;
  check.inputs.x.columns_after = 17;
  check_op(check);
}

TEST(CausalConv1d, PlantedErrorsAreCaught) { check_op(check_of(2, 6, 3, 4), PlantErrors::kYes); }

TEST(CausalConv1d, ReadsHistory) {
  for (std::int64_t L : {1, 2, 3, 5, 40}) {
    for (std::int64_t W : {1, 2, 4}) {
      SCOPED_TRACE(fmt::format("L {}, W {}", L, W));
      auto check = check_of(2, L, 5, W);
      add_history(check);
      check_op(check);
    }
  }
}

TEST(CausalConv1d, StopsAtDocumentStarts) {
  for (const auto& starts : std::vector<std::vector<std::int32_t>>{
           {}, {1}, {2}, {5, 6, 7, 20}, {31}, {32, 33}, {30, 34, 36}}) {
    auto check = check_of(2, 40, 5, 4);
    pack_documents(check, starts);
    check_op(check);
    add_history(check);
    check.inputs.x.free_dimensions = {};
    check_op(check);
  }
}

/// Steps [begin, end) of a run's input, to be run by themselves.
OpRun<Conv> part_of(const OpRun<Conv>& whole, std::int64_t begin, std::int64_t end) {
  OpRun<Conv> part = whole;
  part.in.x = steps_of(whole.in.x, begin, end);
  part.in.document_start = {};
  return part;
}

TEST(CausalConv1d, PackedDocumentsEqualSeparateOnes) {
  const std::vector<std::int32_t> starts = {0, 2, 3, 33, 64, 70};
  auto check = check_of(2, 70, 19, 4);
  pack_documents(check, {starts.begin(), starts.end() - 1});
  OpRun<Conv> packed(check);
  packed.forward();
  packed.grad_out.u = random_like(packed.out.u, 1);
  packed.backward();

  TestTensor weight(packed.in.weight.spec()), bias(packed.in.bias.spec());
  for (std::size_t i = 0; i + 1 < starts.size(); ++i) {
    OpRun<Conv> separate = part_of(packed, starts[i], starts[i + 1]);
    separate.forward();
    separate.grad_out.u = steps_of(packed.grad_out.u, starts[i], starts[i + 1]);
    separate.backward();
    EXPECT_TRUE(steps_of(packed.out.u, starts[i], starts[i + 1]).same_bits(separate.out.u)) << i;
    EXPECT_TRUE(steps_of(packed.grad_in.x, starts[i], starts[i + 1]).same_bits(separate.grad_in.x))
        << i;
    for (std::int64_t k = 0; k < weight.size(); ++k) {
      weight.set(k, weight.get(k) + separate.grad_in.weight.get(k));
    }
    for (std::int64_t k = 0; k < bias.size(); ++k) {
      bias.set(k, bias.get(k) + separate.grad_in.bias.get(k));
    }
  }
  EXPECT_EQ(difference("weight", packed.grad_in.weight, weight, 1e-6, 1e-6), "");
  EXPECT_EQ(difference("bias", packed.grad_in.bias, bias, 1e-6, 1e-6), "");
}

TEST(CausalConv1d, SplitSequenceEqualsTheWhole) {
  OpRun<Conv> whole(check_of(2, 40, 21, 4));
  whole.forward();
  for (std::int64_t split : {3, 17, 39}) {
    OpRun<Conv> second = part_of(whole, split, 40);
    second.in.history = steps_of(whole.in.x, split - 3, split);
    second.forward();
    EXPECT_TRUE(steps_of(whole.out.u, split, 40).same_bits(second.out.u)) << split;
  }
}

TEST(CausalConv1d, NewestTapIsTheLastWeight) {
  OpRun<Conv> run(check_of(1, 6, 1, 3), Dtype::kF64);
  const std::vector<double> weights = {0.5, -2, 3};
  for (std::int64_t k = 0; k < 3; ++k) run.in.weight.set(k, weights[static_cast<std::size_t>(k)]);
  run.in.bias.fill(0);
  run.in.x.fill(0);
  run.in.x.set(1, 1);
  run.forward();
  const auto silu = [](double s) { return s / (1 + std::exp(-s)); };
  const std::vector<double> want = {0, silu(3), silu(-2), silu(0.5), 0, 0};
  for (std::int64_t t = 0; t < 6; ++t) {
    EXPECT_DOUBLE_EQ(run.out.u.get(t), want[static_cast<std::size_t>(t)]) << t;
  }
}

TEST(CausalConv1d, NaNStaysInItsChannelAndWindow) {
  OpRun<Conv> run(check_of(2, 20, 20, 4));
  constexpr std::int64_t kChannel = 5, kStep = 4;
  run.in.x.set(kStep * 20 + kChannel, std::numeric_limits<double>::quiet_NaN());
  run.forward();
  run.grad_out.u = random_like(run.out.u, 5);
  run.backward();
  for (std::int64_t i = 0; i < run.out.u.size(); ++i) {
    const std::int64_t batch = i / 400, step = i / 20 % 20, channel = i % 20;
    const bool touched = batch == 0 && channel == kChannel;
    EXPECT_EQ(std::isnan(run.out.u.get(i)), touched && step >= kStep && step < kStep + 4) << i;
    EXPECT_FALSE(!touched && std::isnan(run.grad_in.x.get(i))) << i;
  }
  for (std::int64_t d = 0; d < 20; ++d) {
    EXPECT_EQ(std::isnan(run.grad_in.bias.get(d)), d == kChannel) << d;
  }
}

// Shapes and tolerances of causal-conv1d's tests/test_causal_conv1d.py in fp32 (x a slice of a
// wider tensor, batch 2), and this project's own tolerance on top. PyTorch's allclose holds when
// the error is within absolute + relative * |wanted|, element by element.
TEST(CausalConv1d, MeetsTheTolerancesOfCausalConv1d) {
  const auto expect_all_close = [](const TestTensor& got, const TestTensor& want, double relative,
                                   double absolute) {
    double worst = 0;
    for (std::int64_t i = 0; i < want.size(); ++i) {
      const double limit = absolute + relative * std::abs(want.get(i));
      worst = std::max(worst, std::abs(got.get(i) - want.get(i)) / limit);
    }
    EXPECT_LE(worst, 1);
    EXPECT_EQ(difference("", got, want, 1e-5, 1e-6), "");
  };
  for (std::int64_t L :
       {1, 2, 8, 16, 32, 64, 128, 129, 130, 151, 256, 372, 512, 784, 1024, 1134, 2048, 4096}) {
    for (std::int64_t W : {2, 3, 4}) {
      SCOPED_TRACE(fmt::format("L {}, W {}", L, W));
      auto check = check_of(2, L, L < 1000 ? 64 : 8, W);
      check.inputs.x.columns_before = 16;
      OpRun<Conv> single(check), exact(check, Dtype::kF64);
      for (OpRun<Conv>* run : {&single, &exact}) {
        run->forward(2);
        run->grad_out.u = random_like(run->out.u, 5);
        run->backward(2);
      }
      expect_all_close(single.out.u, exact.out.u, 3e-4, 1e-3);
      expect_all_close(single.grad_in.x, exact.grad_in.x, 3e-4, 1e-3);
      expect_all_close(single.grad_in.weight, exact.grad_in.weight, 1e-3, 1e-3);
      expect_all_close(single.grad_in.bias, exact.grad_in.bias, 1e-3, 1e-3);
    }
  }
}

TEST(CausalConv1dCuda, PassesOpCheckAtManyLengthsAndWidths) {
  // D = 8 has 8 steps a thread, four threads in a column of a block; the backward pass walks them
  // in chunks of 3 or 4. Other D than multiples of 4, and other W, go element by element.
  for (std::int64_t L : {1, 2, 3, 4, 7, 8, 9, 13, 15, 16, 17, 18, 19, 26, 33, 63, 64, 65, 66, 67}) {
    for (std::int64_t W : {1, 2, 3, 4, 5}) {
      SCOPED_TRACE(fmt::format("L {}, W {}", L, W));
      check_op_cuda(check_of(2, L, 8, W));
      if (L < 9) check_op_cuda(check_of(2, L, 3, W));
    }
  }
  check_op_cuda(check_of(1, 40, 8, 35));
  check_op_cuda(check_of(2, 2049, 8, 4));
}

TEST(CausalConv1dCuda, PassesOpCheckAtManySizes) {
  for (std::int64_t D : {1, 2, 4, 8, 33, 36, 40, 124, 128, 132, 248, 256, 264}) {
    SCOPED_TRACE(fmt::format("D {}", D));
    check_op_cuda(check_of(1, 1, D, 4));
    check_op_cuda(check_of(3, 19, D, 4));
  }
}

TEST(CausalConv1dCuda, TakesMoreRowsThanAGridHas) {
  constexpr std::int64_t kMostBlocks = 65535;  // of a grid's third dimension
  check_op_cuda(check_of(kMostBlocks + 1, 1, 4, 2));
}

TEST(CausalConv1dCuda, PassesOpCheckWithLongRuns) {
  JIBOIA_SKIP_WITHOUT_GPU();
  if (gpu_is_emulated()) GTEST_SKIP() << "takes minutes on the emulated GPU";
  check_op_cuda(check_of(128, 64, 1024, 4));
}

TEST(CausalConv1dCuda, NeedsNoBias) {
  for (std::int64_t D : {17, 20, 24}) {
    auto check = check_of(2, 5, D, 4);
    check.inputs.bias = {};
    check_op_cuda(check);
  }
}

TEST(CausalConv1dCuda, TakesSlicesOfColumns) {
  // Where slices or their rows do not begin at multiples of 4 or 8 elements, there are no vectors.
  for (std::int64_t before : {0, 1, 4, 8}) {
    for (std::int64_t after : {0, 1, 4, 8}) {
      for (std::int64_t D : {17, 20, 24}) {
        SCOPED_TRACE(fmt::format("D {}, {} before, {} after", D, before, after));
        auto check = check_of(2, 20, D, 4);
        check.inputs.x.columns_before = before;
        check.inputs.x.columns_after = after;
        check_op_cuda(check);
      }
    }
  }
}

TEST(CausalConv1dCuda, PlantedErrorsAreCaught) {
  check_op_cuda(check_of(2, 6, 3, 4), PlantErrors::kYes);
  check_op_cuda(check_of(2, 18, 8, 4), PlantErrors::kYes);
}

TEST(CausalConv1dCuda, ReadsHistory) {
  for (std::int64_t D : {5, 8}) {
    for (std::int64_t L : {1, 2, 3, 5, 40}) {
      for (std::int64_t W : {1, 2, 4}) {
        SCOPED_TRACE(fmt::format("D {}, L {}, W {}", D, L, W));
        auto check = check_of(2, L, D, W);
        add_history(check);
        check_op_cuda(check);
      }
    }
  }
}

TEST(CausalConv1dCuda, StopsAtDocumentStarts) {
  for (const auto& starts : std::vector<std::vector<std::int32_t>>{
           {}, {1}, {2}, {5, 6, 7, 20}, {8, 16, 24}, {13, 26}, {11, 29}, {31}, {30, 34, 36}}) {
    for (std::int64_t D : {5, 8}) {
      SCOPED_TRACE(fmt::format("D {}, starts {}", D, fmt::join(starts, ", ")));
      auto check = check_of(2, 60, D, 4);
      pack_documents(check, starts);
      check_op_cuda(check);
      add_history(check);
      check.inputs.x.free_dimensions = {};
      check_op_cuda(check);
    }
  }
}

TEST(CausalConv1dCuda, PackedDocumentsEqualSeparateOnes) {
  JIBOIA_SKIP_WITHOUT_GPU();
  for (Dtype dtype : {Dtype::kF32, Dtype::kBf16}) {
    const std::vector<std::int32_t> starts = {0, 2, 3, 33, 64, 70};
    auto check = check_of(2, 70, 24, 4);
    pack_documents(check, {starts.begin(), starts.end() - 1});
    OpRun<Conv> packed(check, dtype);
    packed.forward_cuda();
    packed.grad_out.u = random_like(packed.out.u, 1);
    packed.backward_cuda();
    for (std::size_t i = 0; i + 1 < starts.size(); ++i) {
      OpRun<Conv> separate = part_of(packed, starts[i], starts[i + 1]);
      separate.forward_cuda();
      separate.grad_out.u = steps_of(packed.grad_out.u, starts[i], starts[i + 1]);
      separate.backward_cuda();
      EXPECT_TRUE(steps_of(packed.out.u, starts[i], starts[i + 1]).same_bits(separate.out.u)) << i;
      EXPECT_TRUE(
          steps_of(packed.grad_in.x, starts[i], starts[i + 1]).same_bits(separate.grad_in.x))
          << i;
    }
  }
}

TEST(CausalConv1dCuda, SplitSequenceEqualsTheWhole) {
  JIBOIA_SKIP_WITHOUT_GPU();
  for (Dtype dtype : {Dtype::kF32, Dtype::kBf16}) {
    OpRun<Conv> whole(check_of(2, 40, 24, 4), dtype);
    whole.forward_cuda();
    for (std::int64_t split : {3, 17, 39}) {
      OpRun<Conv> second = part_of(whole, split, 40);
      second.in.history = steps_of(whole.in.x, split - 3, split);
      second.forward_cuda();
      EXPECT_TRUE(steps_of(whole.out.u, split, 40).same_bits(second.out.u)) << split;
    }
  }
}

/// Sigmoids that overflow on the way have their limits.
TEST(CausalConv1dCuda, TakesLargeInputs) {
  JIBOIA_SKIP_WITHOUT_GPU();
  for (Dtype dtype : {Dtype::kF32, Dtype::kBf16}) {
    for (std::int64_t D : {5, 8}) {
      OpRun<Conv> run(check_of(1, 3, D, 2), dtype);
      run.in.bias.fill(0);
      for (std::int64_t d = 0; d < D; ++d) {
        run.in.weight.set(2 * d, 0);
        run.in.weight.set(2 * d + 1, 1);
        run.in.x.set(d, -1e4);
        run.in.x.set(D + d, 1e4);
        run.in.x.set(2 * D + d, -100);
      }
      run.forward_cuda();
      run.grad_out.u = run.in.x;
      run.grad_out.u.fill(1);
      run.backward_cuda();
      for (std::int64_t d = 0; d < D; ++d) {
        EXPECT_EQ(run.out.u.get(d), 0);
        EXPECT_EQ(run.out.u.get(D + d), run.in.x.get(D + d));
        EXPECT_NEAR(run.out.u.get(2 * D + d), 0, 1e-40);
        EXPECT_EQ(run.grad_in.x.get(D + d), 1);
        EXPECT_NEAR(run.grad_in.x.get(2 * D + d), 0, 1e-37);
        EXPECT_EQ(run.grad_in.bias.get(d), 1);
      }
    }
  }
}

TEST(CausalConv1dCuda, NaNStaysInItsChannelAndWindow) {
  JIBOIA_SKIP_WITHOUT_GPU();
  for (Dtype dtype : {Dtype::kF32, Dtype::kBf16}) {
    OpRun<Conv> run(check_of(2, 20, 24, 4), dtype);
    constexpr std::int64_t kChannel = 5, kStep = 4;
    run.in.x.set(kStep * 24 + kChannel, std::numeric_limits<double>::quiet_NaN());
    run.forward_cuda();
    run.grad_out.u = random_like(run.out.u, 5);
    run.backward_cuda();
    for (std::int64_t i = 0; i < run.out.u.size(); ++i) {
      const std::int64_t batch = i / 480, step = i / 24 % 20, channel = i % 24;
      const bool touched = batch == 0 && channel == kChannel;
      EXPECT_EQ(std::isnan(run.out.u.get(i)), touched && step >= kStep && step < kStep + 4) << i;
      EXPECT_FALSE(!touched && std::isnan(run.grad_in.x.get(i))) << i;
    }
    for (std::int64_t d = 0; d < 24; ++d) {
      EXPECT_EQ(std::isnan(run.grad_in.bias.get(d)), d == kChannel) << d;
    }
  }
}

TEST(CausalConv1dCuda, TakesNoBatchRows) {
  JIBOIA_SKIP_WITHOUT_GPU();
  OpRun<Conv> run(check_of(1, 3, 4, 4));
  run.in.x = TestTensor(Spec(Dtype::kF32, {0, 3, 4}));
  run.forward_cuda();
  run.backward_cuda();
  EXPECT_EQ(run.grad_in.weight.largest(), 0);
}

TEST(CausalConv1d, TakesNoBatchRows) {
  OpRun<Conv> run(check_of(1, 3, 4, 4));
  run.in.x = TestTensor(Spec(Dtype::kF32, {0, 3, 4}));
  run.forward();
  run.backward();
  EXPECT_EQ(run.grad_in.weight.largest(), 0);
}

}  // namespace
}  // namespace jiboia::test
