#include <gmock/gmock.h>

#include <algorithm>

#include "core/cuda/blas.h"
#include "core/cuda/blas_table.h"
#include "core/cuda/plain_product.h"
#include "tests/support/device_tensor.h"

namespace jiboia::test {
namespace {

/// A matrix of a test: its values lie in a TestTensor, transposed if asked for.
struct TestMatrix {
  std::int64_t rows, columns;
  bool transposed = false;
  std::int64_t columns_before = 0, columns_after = 0;  ///< of a wider matrix around the stored one

  TestTensor tensor(Dtype dtype) const {
    const Shape stored = transposed ? Shape{columns, rows} : Shape{rows, columns};
    return TestTensor(Spec(dtype, stored), columns_before, columns_after);
  }
  cuda::DeviceMatrix on_gpu(const Tensor& tensor) const {
    return {tensor.data, tensor.dtype, rows, columns, tensor.row_stride, transposed};
  }
  double get(const TestTensor& tensor, std::int64_t row, std::int64_t column) const {
    return tensor.get(transposed ? column * rows + row : row * columns + column);
  }
};

struct ProductCase {
  TestMatrix left, right, to;
  GradMode mode = GradMode::kOverwrite;
  bool adds() const { return mode == GradMode::kAdd; }
};

struct Dtypes {
  Dtype operands, result;
};
constexpr Dtypes kDtypes[] = {
    {Dtype::kF32, Dtype::kF32}, {Dtype::kBf16, Dtype::kBf16}, {Dtype::kBf16, Dtype::kF32}};

void fill_random(TestTensor& tensor, std::uint32_t stream) {
  const Philox random(5, RandomPurpose::kTest, stream);
  for (std::int64_t i = 0; i < tensor.size(); ++i) {
    tensor.set(i, 2 * random.uniform(static_cast<std::uint64_t>(i)) - 1);
  }
}

using Multiply = void (*)(const cuda::MatrixProduct&);

void by_library(const cuda::MatrixProduct& product) { gpu().blas().multiply("test", product); }
void plainly(const cuda::MatrixProduct& product) {
  cuda::multiply_plainly(gpu().stream(), "test", product);
}

/// The result on the GPU of one product, guards included.
TestTensor product_of(Multiply multiply, const ProductCase& product, TestTensor& left,
                      TestTensor& right, TestTensor to) {
  {
    DeviceTensor on_left(left), on_right(right), on_to(to);
    multiply({.to = product.to.on_gpu(on_to.tensor()),
              .left = product.left.on_gpu(on_left.tensor()),
              .right = product.right.on_gpu(on_right.tensor()),
              .mode = product.mode});
    on_to.fetch();
  }
  return to;
}

void check_product(Multiply multiply, const ProductCase& product) {
  const std::int64_t depth = product.left.columns;
  for (const auto& [operands, result] : kDtypes) {
    SCOPED_TRACE(fmt::format(
        "({}, {}) {} x ({}, {}) {} in {} and {}, row strides {}, {} -> {}{}", product.left.rows,
        depth, product.left.transposed ? "transposed" : "", depth, product.right.columns,
        product.right.transposed ? "transposed" : "", to_string(operands), to_string(result),
        product.left.tensor(operands).spec().row_stride,
        product.right.tensor(operands).spec().row_stride,
        product.to.tensor(result).spec().row_stride, product.adds() ? ", added" : ""));
    TestTensor left = product.left.tensor(operands), right = product.right.tensor(operands);
    TestTensor before = product.to.tensor(result);
    fill_random(left, 1);
    fill_random(right, 2);
    before.fill(std::numeric_limits<double>::quiet_NaN());
    if (product.adds()) fill_random(before, 3);

    const TestTensor got = product_of(multiply, product, left, right, before);
    EXPECT_TRUE(got.guards_intact());
    EXPECT_TRUE(got.same_bits(product_of(multiply, product, left, right, before)));
    for (std::int64_t i = 0; i < product.to.rows; ++i) {
      for (std::int64_t j = 0; j < product.to.columns; ++j) {
        const double added_to = product.adds() ? product.to.get(before, i, j) : 0;
        double exact = added_to, size = std::abs(exact);
        for (std::int64_t k = 0; k < depth; ++k) {
          const double term = product.left.get(left, i, k) * product.right.get(right, k, j);
          exact += term;
          size += std::abs(term);
        }
        // fp32 sums, here of at most 700 terms, and the rounding of the result; cuBLASLt also
        // rounds a bf16 product before it adds it.
        const double rounded = std::abs(exact) + (product.adds() ? std::abs(exact - added_to) : 0);
        const double limit = 1e-5 * size + (result == Dtype::kBf16 ? 0x1p-8 * rounded : 0) + 1e-7;
        ASSERT_NEAR(product.to.get(got, i, j), exact, limit) << "at row " << i << ", column " << j;
      }
    }
  }
}

struct Extents {
  std::int64_t rows, columns, depth;
};

/// Every way to transpose and to lie in wider matrices, for products of some shapes.
void check_products(Multiply multiply, std::initializer_list<Extents> all) {
  for (const auto& [rows, columns, depth] : all) {
    for (bool left : {false, true}) {
      for (bool right : {false, true}) {
        for (GradMode mode : {GradMode::kOverwrite, GradMode::kAdd}) {
          check_product(multiply, {.left = {rows, depth, left},
                                   .right = {depth, columns, right},
                                   .to = {rows, columns},
                                   .mode = mode});
          // Odd starts and strides: what bf16 has no wide loads for.
          check_product(multiply, {.left = {rows, depth, left, 3, 2},
                                   .right = {depth, columns, right, 1, 1},
                                   .to = {rows, columns, false, 5, 1},
                                   .mode = mode});
        }
      }
    }
  }
}

TEST(BlasCuda, MultipliesAnyShapeAndStride) {
  JIBOIA_SKIP_WITHOUT_GPU();
  check_products(by_library, {{1, 1, 1},
                              {1, 7, 3},
                              {7, 1, 3},
                              {3, 5, 1},
                              {16, 16, 16},
                              {64, 80, 48},
                              {65, 33, 130},
                              {2, 3, 700}});
}

TEST(BlasCuda, MultipliesSlicesThatStartAnywhere) {
  JIBOIA_SKIP_WITHOUT_GPU();
  for (std::int64_t before : {1, 2, 4, 8, 16}) {
    const std::int64_t after = 16 - before % 16;
    check_product(by_library, {.left = {40, 48, false, before, after},
                               .right = {48, 24, true, before, after},
                               .to = {40, 24, false, before, after}});
    check_product(by_library, {.left = {40, 48, true, before, after},
                               .right = {48, 24, false, before, after},
                               .to = {40, 24, false, before, after},
                               .mode = GradMode::kAdd});
  }
}

TEST(PlainProductCuda, MultipliesAnyShapeAndStride) {
  JIBOIA_SKIP_WITHOUT_GPU();
  check_products(plainly, {{1, 1, 1}, {1, 7, 3}, {64, 64, 16}, {65, 63, 17}, {2, 130, 33}});
}

TEST(BlasCuda, GivesTheSameBitsForDeepProducts) {
  JIBOIA_SKIP_WITHOUT_GPU();
  // Few results from long sums, as weight gradients of narrow matrices are: where a library splits
  // the sum among multiprocessors.
  const std::int64_t depth = gpu_is_emulated() || only_small_shapes() ? 5000 : 65536;
  for (const auto& [operands, result] : kDtypes) {
    const ProductCase product{
        .left = {80, depth, true}, .right = {depth, 48}, .to = {80, 48}, .mode = GradMode::kAdd};
    TestTensor left = product.left.tensor(operands), right = product.right.tensor(operands);
    TestTensor before = product.to.tensor(result);
    fill_random(left, 1);
    fill_random(right, 2);
    const TestTensor first = product_of(by_library, product, left, right, before);
    for (int i = 0; i < 5; ++i) {
      EXPECT_TRUE(first.same_bits(product_of(by_library, product, left, right, before)));
    }
    double exact = 0;
    for (std::int64_t k = 0; k < depth; ++k) {
      exact += product.left.get(left, 79, k) * product.right.get(right, k, 47);
    }
    EXPECT_NEAR(first.get(80 * 48 - 1), exact, 1e-2 + 0x1p-8 * std::abs(exact));
  }
}

TEST(BlasCuda, TakesEmptyMatrices) {
  JIBOIA_SKIP_WITHOUT_GPU();
  check_product(by_library, {.left = {3, 0}, .right = {0, 2}, .to = {3, 2}});
  check_product(by_library,
                {.left = {3, 0}, .right = {0, 2}, .to = {3, 2}, .mode = GradMode::kAdd});
  check_product(by_library, {.left = {0, 4}, .right = {4, 2}, .to = {0, 2}});
  check_product(by_library, {.left = {3, 4}, .right = {4, 0}, .to = {3, 0}});
}

TEST(BlasCuda, KeepsNotANumberToItsRowAndColumn) {
  JIBOIA_SKIP_WITHOUT_GPU();
  const ProductCase product{.left = {20, 30}, .right = {30, 10}, .to = {20, 10}};
  for (Multiply multiply : {by_library, plainly}) {
    for (const auto& [operands, result] : kDtypes) {
      TestTensor left = product.left.tensor(operands), right = product.right.tensor(operands);
      left.set(7 * 30 + 11, std::nan(""));
      right.set(12 * 10 + 3, std::nan(""));
      const TestTensor got = product_of(multiply, product, left, right, product.to.tensor(result));
      for (std::int64_t i = 0; i < got.size(); ++i) {
        EXPECT_EQ(std::isnan(got.get(i)), i / 10 == 7 || i % 10 == 3);
      }
    }
  }
}

TEST(BlasCuda, KnowsTheKindsOfProductsThatItWasAskedFor) {
  JIBOIA_SKIP_WITHOUT_GPU();
  const auto has = [](const cuda::MatrixProduct& wanted) {
    const auto products = gpu().blas().products();
    return std::ranges::count(products, product_name(wanted), cuda::product_name);
  };
  const ProductCase product{.left = {24, 56}, .right = {56, 88, true}, .to = {24, 88}};
  TestTensor left = product.left.tensor(Dtype::kBf16), right = product.right.tensor(Dtype::kBf16);
  TestTensor to = product.to.tensor(Dtype::kF32);
  const cuda::MatrixProduct wanted{.to = product.to.on_gpu(Tensor(to.spec(), nullptr)),
                                   .left = product.left.on_gpu(Tensor(left.spec(), nullptr)),
                                   .right = product.right.on_gpu(Tensor(right.spec(), nullptr))};
  for (int i = 0; i < 2; ++i) product_of(by_library, product, left, right, to);
  EXPECT_EQ(has(wanted), 1);
}

void expect_refused(const cuda::MatrixProduct& product, const std::string& words) {
  try {
    gpu().blas().multiply("some_op", product);
    ADD_FAILURE() << "accepted " << to_string(product);
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kInternal);
    EXPECT_THAT(error.what(),
                testing::AllOf(testing::HasSubstr("some_op"), testing::HasSubstr(words)));
  }
}

TEST(BlasCuda, RefusesWhatDoesNotFit) {
  JIBOIA_SKIP_WITHOUT_GPU();
  const auto matrix = [](std::int64_t rows, std::int64_t columns, Dtype dtype = Dtype::kF32) {
    return cuda::DeviceMatrix{nullptr, dtype, rows, columns, columns};
  };
  expect_refused({.to = matrix(3, 2), .left = matrix(3, 4), .right = matrix(5, 2)},
                 "(3, 4) f32 (5, 2) f32 -> (3, 2) f32");
  expect_refused({.to = matrix(3, 3), .left = matrix(3, 4), .right = matrix(4, 2)}, "shapes");
  expect_refused({.to = matrix(2, 2), .left = matrix(3, 4), .right = matrix(4, 2)}, "shapes");
  expect_refused({.to = matrix(3, 2), .left = matrix(3, 4), .right = matrix(4, 2, Dtype::kBf16)},
                 "dtypes");
  expect_refused({.to = matrix(3, 2, Dtype::kBf16), .left = matrix(3, 4), .right = matrix(4, 2)},
                 "dtypes");
  auto transposed = matrix(3, 2);
  transposed.transposed = true;
  expect_refused({.to = transposed, .left = matrix(3, 4), .right = matrix(4, 2)}, "transposed");
  auto overlapping = matrix(3, 4);
  overlapping.row_stride = 3;
  expect_refused({.to = matrix(3, 2), .left = overlapping, .right = matrix(4, 2)}, "row strides 3");
}

}  // namespace
}  // namespace jiboia::test
