#include "kernels/cross_entropy/cross_entropy.h"

#include "tests/support/op_check.h"
#include "tests/support/op_run.h"

namespace jiboia::test {
namespace {

void plain_cross_entropy(const CrossEntropy::In<>& in, const CrossEntropy::Attrs& attrs,
                         const CrossEntropy::Out<>& out) {
  const std::int64_t E = in.x.columns(), V = in.weight.shape[0], rows = in.x.rows();
  double cross_entropy = 0, lse_squared = 0, targets = 0;
  for (std::int64_t i = 0; i < rows; ++i) {
    std::vector<double> logits;
    double sum = 0;
    for (std::int64_t v = 0; v < V; ++v) {
      double logit = 0;
      for (std::int64_t e = 0; e < E; ++e) {
        logit += in.x.as<double>()[i * E + e] * in.weight.as<double>()[v * E + e];
      }
      logits.push_back(logit);
      sum += std::exp(logit);
    }
    const double lse = std::log(sum);
    lse_squared += lse * lse / static_cast<double>(rows);
    const std::int32_t target = in.targets.as<std::int32_t>()[i];
    if (target == kIgnoredTarget) continue;
    cross_entropy += lse - logits[static_cast<std::size_t>(target)];
    targets += 1;
  }
  if (targets > 0) cross_entropy /= targets;
  *out.cross_entropy.as<double>() = cross_entropy;
  *out.lse_squared.as<double>() = lse_squared;
  *out.loss.as<double>() = cross_entropy + attrs.z_loss * lse_squared;
}

OpCheck<CrossEntropy> check_of(const Shape& x, std::int64_t V, double z_loss) {
  std::vector<std::int32_t> targets;
  for (std::int64_t i = 0; i < x[0] * x[1]; ++i) {
    targets.push_back(i % 5 == 3 ? kIgnoredTarget : static_cast<std::int32_t>(i * 7 % V));
  }
  return {.inputs = {.x = {.shape = x, .low = -1, .high = 1},
                     .weight = {.shape = {V, x[-1]}, .low = -2, .high = 2, .free_dimensions = {0}},
                     .targets = {.shape = {x[0], x[1]}, .integers = targets}},
          .attrs = {.z_loss = z_loss},
          .reference = plain_cross_entropy};
}

TEST(CrossEntropy, PassesOpCheck) {
  check_op(check_of({1, 1, 1}, 1, 0.1));
  check_op(check_of({2, 3, 5}, 37, 0));
  check_op(check_of({3, 67, 9}, 50, 1e-2), PlantErrors::kYes);
}

TEST(CrossEntropy, PassesOpCheckOverSeveralChunksOfRows) {
  // 70,000 f64 columns leave room for the smallest chunk, 64 rows.
  auto check = check_of({1, 70, 2}, 70000, 1e-3);
  check.gradient_samples = 3;
  check_op(check);
}

struct Losses {
  double loss, cross_entropy, lse_squared;
  std::vector<double> grad_x, grad_weight;
};

/// Of rows x (1, rows, E) under the head `weight`.
template <class Place>
Losses losses_at(Place&& place, TestTensor& x, TestTensor& weight,
                 const std::vector<std::int32_t>& target_of_row, double z_loss) {
  const Dtype dtype = x.spec().dtype, wide = accumulator_of(dtype);
  TestTensor targets(Spec(Dtype::kI32, {1, x.spec().shape[1]}));
  for (std::int64_t i = 0; i < targets.size(); ++i) {
    targets.set(i, target_of_row[static_cast<std::size_t>(i)]);
  }
  TestTensor grad_x(Spec(dtype, x.spec().shape)), grad_weight(Spec(wide, weight.spec().shape));
  TestTensor out[3] = {TestTensor(Spec(wide, {1})), TestTensor(Spec(wide, {1})),
                       TestTensor(Spec(wide, {1}))};
  const CrossEntropy::Attrs attrs{.z_loss = z_loss};
  const CrossEntropy::In<Spec> specs{x.spec(), weight.spec(), targets.spec()};
  TestTensor memory(
      Spec(Dtype::kU8, {CrossEntropy::scratch_bytes(place.exec(), Pass::kBackward, specs, attrs)}));
  const Tensor scratch = place.put(memory);
  const LossArgs<CrossEntropy> args{
      .in = {place.put(x), place.put(weight), place.put(targets)},
      .out = {place.put(out[0]), place.put(out[1]), place.put(out[2])},
      .attrs = attrs,
      .grad_in = {.x = Grad(place.put(grad_x), GradMode::kOverwrite),
                  .weight = Grad(place.put(grad_weight), GradMode::kOverwrite)},
      .scratch = {static_cast<std::byte*>(scratch.data), static_cast<std::size_t>(scratch.size())}};
  std::vector<std::string> failures;
  place.run([&] { CrossEntropy::forward_backward(place.exec(), args); }, 1, failures);
  return {out[0].get(0), out[1].get(0), out[2].get(0), grad_x.values(), grad_weight.values()};
}

/// Of one row of logits: x = 1, so that the weight is the logits.
template <class Place>
Losses losses_at(Place&& place, Dtype dtype, const std::vector<float>& logits, std::int32_t target,
                 double z_loss) {
  const auto V = static_cast<std::int64_t>(logits.size());
  TestTensor x(Spec(dtype, {1, 1, 1})), weight(Spec(dtype, {V, 1}));
  x.set(0, 1);
  for (std::int64_t v = 0; v < V; ++v) weight.set(v, logits[static_cast<std::size_t>(v)]);
  return losses_at(place, x, weight, {target}, z_loss);
}

Losses losses_of(const std::vector<float>& logits, std::int32_t target, double z_loss) {
  return losses_at(detail::CpuPlace(1), Dtype::kF32, logits, target, z_loss);
}

TEST(CrossEntropy, StaysFiniteForExtremeLogits) {
  EXPECT_NEAR(losses_of({1e4f, -1e4f, 0}, 0, 0).loss, 0, 1e-6);
  EXPECT_NEAR(losses_of({1e4f, -1e4f, 0}, 1, 0).loss, 2e4, 1e-2);
  EXPECT_NEAR(losses_of(std::vector<float>(1000, 5.f), 3, 0).loss, std::log(1000.0), 1e-5);
  EXPECT_NEAR(losses_of({1e4f}, 0, 1e-4).loss, 1e4, 1e-1);
}

TEST(CrossEntropy, WithoutTargetsOnlyTheZTermIsLeft) {
  const Losses losses = losses_of({1, 2, 3}, kIgnoredTarget, 0);
  EXPECT_EQ(losses.loss, 0);
  EXPECT_THAT(losses.grad_x, testing::ElementsAre(0));
  EXPECT_GT(losses_of({1, 2, 3}, kIgnoredTarget, 0.5).loss, 1);
}

TEST(CrossEntropy, NotANumberStaysOne) {
  EXPECT_TRUE(std::isnan(losses_of({1, std::nanf(""), 2}, 0, 0).loss));
}

/// With bf16 activations the GPU rounds logits to bf16, which shifts exp(logit) by up to
/// |logit| / 512, and so logits are small ones here; and then their gradients, of which sums are
/// made. RoundsLogitsAndTheirGradientsOnly looks closer.
OpCheck<CrossEntropy> cuda_check_of(const Shape& x, std::int64_t V, double z_loss) {
  auto check = check_of(x, V, z_loss);
  check.inputs.weight.low = -0.25;
  check.inputs.weight.high = 0.25;
  check.bf16_relative = 6e-3;
  return check;
}

TEST(CrossEntropyCuda, PassesOpCheck) {
  check_op_cuda(cuda_check_of({1, 1, 1}, 1, 0.1));
  check_op_cuda(cuda_check_of({2, 3, 5}, 37, 0));
  check_op_cuda(cuda_check_of({3, 67, 9}, 50, 1e-2), PlantErrors::kYes);
  check_op_cuda(cuda_check_of({1, 33, 16}, 1000, 1e-2));
}

TEST(CrossEntropyCuda, PassesOpCheckForLongRows) {
  // In f32 and bf16 these rows fit into the shared memory that any kernel has, into what can be
  // asked for, and not at all.
  for (std::int64_t V : {8191, 16384, 32003, 90001}) {
    check_op_cuda(cuda_check_of({1, 5, 3}, V, 1e-3));
  }
}

TEST(CrossEntropyCuda, IsExactWhereLogitsAreExact) {
  // x = 1: logits are those of the weight, in bf16 too, and only their gradients are rounded,
  // which the loss does not show.
  for (std::int64_t V : {1, 2, 7, 8, 9, 257, 4099}) {
    auto check = check_of({1, 3, 1}, V, 1e-2);
    check.inputs.x.low = check.inputs.x.high = 1;
    check.inputs.x.constant = check.inputs.weight.constant = true;
    check_op_cuda(check);
  }
}

#if JIBOIA_WITH_CUDA
double rounded(double x) { return float_from_bf16(bf16_from_float(static_cast<float>(x))); }

/// The formula in f64, but with logits and their gradients stored in bf16.
Losses rounded_losses_of(const TestTensor& x, const TestTensor& weight,
                         const std::vector<std::int32_t>& targets, double z_loss) {
  const std::int64_t rows = x.spec().shape[1], E = x.spec().columns(), V = weight.spec().rows();
  const auto rows_with_target = static_cast<double>(
      std::ranges::count_if(targets, [](std::int32_t t) { return t != kIgnoredTarget; }));
  Losses losses{};
  losses.grad_x.resize(static_cast<std::size_t>(x.size()));
  losses.grad_weight.resize(static_cast<std::size_t>(weight.size()));
  for (std::int64_t i = 0; i < rows; ++i) {
    std::vector<double> logits;
    double sum = 0;
    for (std::int64_t v = 0; v < V; ++v) {
      double logit = 0;
      for (std::int64_t e = 0; e < E; ++e) logit += x.get(i * E + e) * weight.get(v * E + e);
      logits.push_back(rounded(logit));
      sum += std::exp(logits.back());
    }
    const double lse = std::log(sum), lse_scale = 2 * z_loss * lse / static_cast<double>(rows);
    const std::int32_t target = targets[static_cast<std::size_t>(i)];
    const double per_target = target == kIgnoredTarget ? 0 : 1 / rows_with_target;
    losses.lse_squared += lse * lse / static_cast<double>(rows);
    if (per_target > 0) {
      losses.cross_entropy += per_target * (lse - logits[static_cast<std::size_t>(target)]);
    }
    for (std::int64_t v = 0; v < V; ++v) {
      const double p = std::exp(logits[static_cast<std::size_t>(v)] - lse);
      const double grad = rounded(p * (per_target + lse_scale) - (v == target ? per_target : 0));
      for (std::int64_t e = 0; e < E; ++e) {
        losses.grad_x[static_cast<std::size_t>(i * E + e)] += grad * weight.get(v * E + e);
        losses.grad_weight[static_cast<std::size_t>(v * E + e)] += grad * x.get(i * E + e);
      }
    }
  }
  losses.loss = losses.cross_entropy + z_loss * losses.lse_squared;
  return losses;
}

TEST(CrossEntropyCuda, RoundsLogitsAndTheirGradientsOnly) {
  JIBOIA_SKIP_WITHOUT_GPU();
  const std::int64_t rows = 67, E = 9, V = 50;
  // Multiples of 1/16, so that every order of summation gives the same logits, before rounding.
  TestTensor x(Spec(Dtype::kBf16, {1, rows, E})), weight(Spec(Dtype::kBf16, {V, E}));
  for (std::int64_t i = 0; i < x.size(); ++i) {
    x.set(i, static_cast<double>(i * 37 % 33 - 16) / 16);
  }
  for (std::int64_t i = 0; i < weight.size(); ++i) {
    weight.set(i, static_cast<double>(i * 29 % 65 - 32) / 16);
  }
  std::vector<std::int32_t> targets;
  for (std::int64_t i = 0; i < rows; ++i) {
    targets.push_back(i % 5 == 3 ? kIgnoredTarget : static_cast<std::int32_t>(i * 7 % V));
  }
  const Losses want = rounded_losses_of(x, weight, targets, 1e-2);
  const Losses got = losses_at(CudaPlace(), x, weight, targets, 1e-2);
  EXPECT_NEAR(got.loss, want.loss, 1e-5);
  EXPECT_NEAR(got.cross_entropy, want.cross_entropy, 1e-5);
  EXPECT_NEAR(got.lse_squared, want.lse_squared, 1e-4);
  // A logit's gradient that lies between two bf16 numbers may go to the other one, which changes E
  // gradients of each kind a little. grad_x is stored in bf16.
  std::int64_t others = 0;
  const auto compare = [&](double value, double exact, double rounding) {
    const double error = std::abs(value - exact) - rounding * std::abs(exact);
    EXPECT_LT(error, 2e-4) << value << " is not " << exact;
    others += !(error <= 1e-6);
  };
  for (std::size_t i = 0; i < want.grad_x.size(); ++i) {
    compare(got.grad_x[i], want.grad_x[i], 0x1p-8);
  }
  for (std::size_t i = 0; i < want.grad_weight.size(); ++i) {
    compare(got.grad_weight[i], want.grad_weight[i], 0);
  }
  EXPECT_LE(others, 2 * 2 * E);
}

TEST(CrossEntropyCuda, AgreesWithTheCpuOverSeveralChunksOfRows) {
  JIBOIA_SKIP_WITHOUT_GPU();
  if (only_small_shapes()) GTEST_SKIP() << "too large for JIBOIA_SMALL_SHAPES";
  // 530,000 f32 columns leave room for the smallest chunk, 128 rows.
  const std::int64_t rows = 131, V = 530000;
  TestTensor x(Spec(Dtype::kF32, {1, rows, 2})), weight(Spec(Dtype::kF32, {V, 2}));
  x = random_like(x, 1);
  weight = random_like(weight, 2);
  std::vector<std::int32_t> targets;
  for (std::int64_t i = 0; i < rows; ++i) {
    targets.push_back(i % 7 == 3 ? kIgnoredTarget : static_cast<std::int32_t>(i * 104729 % V));
  }
  const Losses cpu = losses_at(detail::CpuPlace(2), x, weight, targets, 1e-3);
  const Losses got = losses_at(CudaPlace(), x, weight, targets, 1e-3);
  EXPECT_NEAR(got.loss, cpu.loss, 1e-4);
  EXPECT_NEAR(got.cross_entropy, cpu.cross_entropy, 1e-4);
  EXPECT_NEAR(got.lse_squared, cpu.lse_squared, 1e-3);
  EXPECT_THAT(got.grad_x, testing::Pointwise(testing::DoubleNear(1e-6), cpu.grad_x));
  EXPECT_THAT(got.grad_weight, testing::Pointwise(testing::DoubleNear(1e-6), cpu.grad_weight));
}

Losses cuda_losses_of(Dtype dtype, const std::vector<float>& logits, std::int32_t target,
                      double z_loss) {
  return losses_at(CudaPlace(), dtype, logits, target, z_loss);
}

TEST(CrossEntropyCuda, StaysFiniteForExtremeLogits) {
  JIBOIA_SKIP_WITHOUT_GPU();
  for (Dtype dtype : {Dtype::kF32, Dtype::kBf16}) {
    // 9984 and 10048 are numbers that bf16 holds.
    EXPECT_NEAR(cuda_losses_of(dtype, {9984, -9984, 0}, 0, 0).loss, 0, 1e-6);
    const Losses surprised = cuda_losses_of(dtype, {9984, -9984, 0}, 1, 0);
    EXPECT_NEAR(surprised.loss, 2 * 9984, 1e-2);
    EXPECT_THAT(surprised.grad_weight, testing::ElementsAre(1, -1, 0));
    EXPECT_THAT(surprised.grad_x, testing::ElementsAre(2 * 9984));
    EXPECT_NEAR(cuda_losses_of(dtype, std::vector<float>(1000, 5.f), 3, 0).loss, std::log(1000.0),
                1e-5);
    EXPECT_NEAR(cuda_losses_of(dtype, std::vector<float>(1000, -9984.f), 3, 0).loss,
                std::log(1000.0), 1e-5);
    EXPECT_NEAR(cuda_losses_of(dtype, {9984}, 0, 0x1p-13).loss, 9984.0 * 9984 * 0x1p-13, 1e-1);
  }
}

TEST(CrossEntropyCuda, WithoutTargetsOnlyTheZTermIsLeft) {
  JIBOIA_SKIP_WITHOUT_GPU();
  for (Dtype dtype : {Dtype::kF32, Dtype::kBf16}) {
    const Losses losses = cuda_losses_of(dtype, {1, 2, 3}, kIgnoredTarget, 0);
    EXPECT_EQ(losses.loss, 0);
    EXPECT_EQ(losses.cross_entropy, 0);
    EXPECT_THAT(losses.grad_x, testing::ElementsAre(0));
    EXPECT_THAT(losses.grad_weight, testing::ElementsAre(0, 0, 0));
    EXPECT_GT(cuda_losses_of(dtype, {1, 2, 3}, kIgnoredTarget, 0.5).loss, 1);
  }
}

TEST(CrossEntropyCuda, NotANumberStaysOneInItsRow) {
  JIBOIA_SKIP_WITHOUT_GPU();
  for (Dtype dtype : {Dtype::kF32, Dtype::kBf16}) {
    EXPECT_TRUE(std::isnan(cuda_losses_of(dtype, {1, std::nanf(""), 2}, 0, 0).loss));
    EXPECT_TRUE(std::isnan(cuda_losses_of(dtype, {std::nanf("")}, 0, 0).loss));
    TestTensor x(Spec(dtype, {1, 3, 1})), weight(Spec(dtype, {5, 1}));
    for (std::int64_t i = 0; i < 3; ++i) x.set(i, i == 1 ? std::nan("") : 1);
    for (std::int64_t v = 0; v < 5; ++v) weight.set(v, 0.5 * static_cast<double>(v));
    const Losses losses = losses_at(CudaPlace(), x, weight, {1, 2, 4}, 0);
    EXPECT_TRUE(std::isnan(losses.loss));
    EXPECT_FALSE(std::isnan(losses.grad_x[0]));
    EXPECT_TRUE(std::isnan(losses.grad_x[1]));
    EXPECT_FALSE(std::isnan(losses.grad_x[2]));
  }
}
#endif

}  // namespace
}  // namespace jiboia::test
