#include "kernels/linear/linear.h"

#include "tests/support/op_check.h"
#include "tests/support/op_check_cuda.h"

namespace jiboia::test {
namespace {

void plain_linear(const Linear::In<>& in, const NoAttrs&, const Linear::Out<>& out) {
  const std::int64_t M = in.weight.shape[0], K = in.weight.shape[1];
  for (std::int64_t row = 0; row < in.x.rows(); ++row) {
    for (std::int64_t m = 0; m < M; ++m) {
      double sum = in.bias ? in.bias.as<double>()[m] : 0;
      for (std::int64_t k = 0; k < K; ++k) {
        sum += in.x.as<double>()[row * in.x.row_stride + k] * in.weight.as<double>()[m * K + k];
      }
      out.y.as<double>()[row * M + m] = sum;
    }
  }
}

OpCheck<Linear> check_of(const Shape& x, std::int64_t M, bool with_bias) {
  OpCheck<Linear> check{
      .inputs = {.x = {.shape = x, .low = -1, .high = 1, .free_dimensions = {0, 1}},
                 .weight = {.shape = {M, x[-1]}, .low = -1, .high = 1}},
      .reference = plain_linear};
  if (with_bias) {
    check.inputs.bias = {.shape = {M}, .low = -1, .high = 1};
  } else {
    check.inputs.weight.free_dimensions = {0};
  }
  return check;
}

TEST(Linear, PassesOpCheck) {
  for (const Shape& x : {Shape{1, 1, 1}, Shape{2, 3, 5}, Shape{1, 300, 7}, Shape{2, 5, 300}}) {
    for (std::int64_t M : {1, 3, 261}) {
      check_op(check_of(x, M, false));
      check_op(check_of(x, M, true));
    }
  }
}

TEST(Linear, TakesSlicesOfColumns) {
  auto check = check_of({2, 3, 5}, 4, true);
  check.inputs.x.columns_before = 3;
  check.inputs.x.columns_after = 2;
  check_op(check);
}

TEST(Linear, RefusesAScalar) {
  EXPECT_THROW(
      (void)Linear::infer({.x = Spec(Dtype::kF32, {}), .weight = Spec(Dtype::kF32, {4, 1})}, {}),
      Error);
}

TEST(Linear, PlantedErrorsAreCaught) { check_op(check_of({2, 3, 5}, 4, true), PlantErrors::kYes); }

/// On the GPU y holds the bias, rounded to its dtype, before the product is added.
OpCheck<Linear> cuda_check_of(const Shape& x, std::int64_t M, bool with_bias) {
  auto check = check_of(x, M, with_bias);
  if (with_bias) check.bf16_relative = 2e-3;
  return check;
}

TEST(LinearCuda, PassesOpCheck) {
  for (const Shape& x : {Shape{1, 1, 1}, Shape{2, 3, 5}, Shape{1, 300, 7}, Shape{2, 5, 300},
                         Shape{1, 64, 64}, Shape{1, 65, 16}}) {
    for (std::int64_t M : {1, 3, 64, 261}) {
      check_op_cuda(cuda_check_of(x, M, false));
      check_op_cuda(cuda_check_of(x, M, true));
    }
  }
}

TEST(LinearCuda, PassesOpCheckOverManyRows) {
  check_op_cuda(cuda_check_of({1, 2049, 33}, 17, true));
  // More rows than 256 tiles of 64, so that tiles of the bias gradient grow.
  check_op_cuda(cuda_check_of({3, 5501, 1}, 2, true));
}

TEST(LinearCuda, TakesSlicesOfColumns) {
  for (std::int64_t before : {0, 1, 3, 8}) {
    for (std::int64_t after : {0, 2, 5, 8}) {
      for (const Shape& x : {Shape{2, 3, 5}, Shape{1, 33, 8}}) {
        auto check = cuda_check_of(x, 4, true);
        check.inputs.x.columns_before = before;
        check.inputs.x.columns_after = after;
        check_op_cuda(check);
      }
    }
  }
}

TEST(LinearCuda, PlantedErrorsAreCaught) {
  check_op_cuda(cuda_check_of({2, 3, 5}, 4, true), PlantErrors::kYes);
}

}  // namespace
}  // namespace jiboia::test
