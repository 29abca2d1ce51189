#include "kernels/cross_entropy/cross_entropy.h"

#include "tests/support/op_check.h"

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
  std::vector<double> grad_x;
};

Losses losses_of(const std::vector<float>& logits, std::int32_t target, double z_loss) {
  // x = 1, so that the weight is the logits.
  const auto V = static_cast<std::int64_t>(logits.size());
  TestTensor x(Spec(Dtype::kF32, {1, 1, 1})), weight(Spec(Dtype::kF32, {V, 1}));
  TestTensor targets(Spec(Dtype::kI32, {1, 1})), grad_x(Spec(Dtype::kF32, {1, 1, 1}));
  x.set(0, 1);
  targets.set(0, target);
  for (std::int64_t v = 0; v < V; ++v) weight.set(v, logits[static_cast<std::size_t>(v)]);
  TestTensor out[3] = {TestTensor(Spec(Dtype::kF32, {1})), TestTensor(Spec(Dtype::kF32, {1})),
                       TestTensor(Spec(Dtype::kF32, {1}))};
  CpuExec cpu(1);
  const CrossEntropy::Attrs attrs{.z_loss = z_loss};
  const CrossEntropy::In<Tensor> in{x.tensor(), weight.tensor(), targets.tensor()};
  std::vector<std::byte> scratch(static_cast<std::size_t>(
      CrossEntropy::scratch_bytes(cpu, Pass::kBackward, {in.x, in.weight, in.targets}, attrs)));
  CrossEntropy::forward_backward(cpu,
                                 {.in = in,
                                  .out = {out[0].tensor(), out[1].tensor(), out[2].tensor()},
                                  .attrs = attrs,
                                  .grad_in = {.x = Grad(grad_x.tensor(), GradMode::kOverwrite)},
                                  .scratch = scratch});
  return {out[0].get(0), out[1].get(0), out[2].get(0), grad_x.values()};
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

}  // namespace
}  // namespace jiboia::test
