#include <gtest/gtest.h>

#include <regex>
#include <string>
#include <vector>

#include "core/cuda/blas_plan.cuh"
#include "core/cuda/blas_table.h"
#include "tests/support/device_tensor.h"

namespace jiboia::test {
namespace {

using cuda::Blas;
using cuda::DeviceMatrix;
using cuda::MatrixProduct;
using cuda::ProductPlan;
using cuda::TunedProduct;

/// The product that a name of the table tells of; its matrices are nowhere, which is aligned.
MatrixProduct product_named(std::string_view name) {
  static const std::string matrix = "(\\d+)x(\\d+)(?:/(\\d+))?(')?";
  static const std::regex whole("(bf16|f32) " + matrix + " \\* " + matrix + " -> (bf16|f32) " +
                                matrix);
  std::cmatch parts;
  if (!std::regex_match(name.data(), name.data() + name.size(), parts, whole)) {
    ADD_FAILURE() << "not the name of a product: " << name;
    return {};
  }
  const auto matrix_at = [&](std::size_t part, const std::string& dtype) {
    DeviceMatrix m{.dtype = dtype == "f32" ? Dtype::kF32 : Dtype::kBf16,
                   .rows = std::stoll(parts[part]),
                   .columns = std::stoll(parts[part + 1]),
                   .transposed = parts[part + 3].matched};
    m.row_stride = parts[part + 2].matched ? std::stoll(parts[part + 2]) : m.columns;
    if (m.transposed) std::swap(m.rows, m.columns);
    return m;
  };
  return {.to = matrix_at(11, parts[10]),
          .left = matrix_at(2, parts[1]),
          .right = matrix_at(6, parts[1])};
}

std::int64_t elements(const DeviceMatrix& m) { return m.rows * m.columns; }

/// What a matrix of a product is a view of.
TestTensor tensor_of(const DeviceMatrix& m) {
  const Shape stored = m.transposed ? Shape{m.columns, m.rows} : Shape{m.rows, m.columns};
  const Spec spec(m.dtype, stored);
  return TestTensor(spec, 0, m.row_stride - spec.columns());
}

void fill_random(TestTensor& tensor, std::uint32_t stream) {
  const Philox random(5, RandomPurpose::kTest, stream);
  for (std::int64_t i = 0; i < tensor.size(); ++i) {
    tensor.set(i, 2 * random.uniform(static_cast<std::uint64_t>(i)) - 1);
  }
}

class BlasTableCuda : public testing::Test {
 protected:
  void SetUp() override {
    JIBOIA_SKIP_WITHOUT_GPU();
    for (const TunedProduct& entry : cuda::tuned_products()) {
      if (entry.gpu == gpu().gpu().name && entry.library == cublasLtGetVersion()) {
        entries_.push_back(&entry);
      }
    }
    if (entries_.empty()) {
      GTEST_SKIP() << "the table has nothing for " << gpu().gpu().name << " and cuBLASLt "
                   << cublasLtGetVersion();
    }
    library_ = cuda::make_library();
  }

  std::vector<const TunedProduct*> entries_;  ///< of this GPU and library
  cuda::Library library_;
};

TEST_F(BlasTableCuda, NamesAlgorithmsThatTheLibraryAccepts) {
  for (const TunedProduct* entry : entries_) {
    SCOPED_TRACE(entry->product);
    const MatrixProduct product = product_named(entry->product);
    ASSERT_EQ(product_name(product), entry->product);
    const ProductPlan plan("test", product);
    const auto algorithm =
        plan.algorithm_of(library_.get(), Blas::kWorkspaceBytes, entry->algorithm);
    ASSERT_TRUE(algorithm);
    EXPECT_EQ(cuda::attributes_of(*algorithm), entry->algorithm);
  }
}

TEST_F(BlasTableCuda, IsWhatProductsAreComputedBy) {
  // Beyond these, filling the operands takes long.
  constexpr std::int64_t kMostElements = 16 << 20;
  const Buffer workspace = allocate(gpu(), Blas::kWorkspaceBytes, "a test");
  int compared = 0, telling = 0;
  for (const TunedProduct* entry : entries_) {
    SCOPED_TRACE(entry->product);
    MatrixProduct product = product_named(entry->product);
    if (elements(product.left) + elements(product.right) + elements(product.to) > kMostElements) {
      continue;
    }
    TestTensor left = tensor_of(product.left), right = tensor_of(product.right);
    fill_random(left, 1);
    fill_random(right, 2);
    const DeviceTensor on_left(left), on_right(right);
    product.left.data = on_left.tensor().data;
    product.right.data = on_right.tensor().data;
    const auto result_of = [&](const auto& multiply) {
      TestTensor result = tensor_of(product.to);
      DeviceTensor on_result(result);
      product.to.data = on_result.tensor().data;
      multiply();
      on_result.fetch();
      return result;
    };
    const auto result_by = [&](const auto& choose) {
      return result_of([&] {
        const ProductPlan plan("test", product);
        cuda::check_blas(plan.run(library_.get(), choose(plan), product, workspace.data(),
                                  Blas::kWorkspaceBytes, gpu().stream()),
                         "test", &product);
      });
    };
    const TestTensor got = result_of([&] { gpu().blas().multiply("test", product); });
    const TestTensor by_entry = result_by([&](const ProductPlan& plan) {
      return plan.algorithm_of(library_.get(), Blas::kWorkspaceBytes, entry->algorithm).value();
    });
    const TestTensor by_suggestion = result_by([&](const ProductPlan& plan) {
      return plan.suggestions("test", library_.get(), Blas::kWorkspaceBytes, 8).at(0);
    });
    EXPECT_TRUE(got.guards_intact());
    EXPECT_TRUE(got.same_bits(by_entry));
    // Two fp32 sums in other orders, and for bf16 what they are rounded to.
    const double relative = product.to.dtype == Dtype::kBf16 ? 0x1p-7 : 1e-4;
    EXPECT_EQ(difference("the result", got, by_suggestion, relative, 0), "");
    ++compared;
    telling += !by_entry.same_bits(by_suggestion);
  }
  if (compared == 0) GTEST_SKIP() << "the table has no small products for this GPU";
  EXPECT_GT(telling, 0) << "of " << compared
                        << " products, none shows by its bits which algorithm was taken";
}

}  // namespace
}  // namespace jiboia::test
