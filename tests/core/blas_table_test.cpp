#include "core/cuda/blas_table.h"

#include <gtest/gtest.h>

#include <set>
#include <tuple>

namespace jiboia::test {
namespace {

using cuda::DeviceMatrix;
using cuda::MatrixProduct;
using cuda::TunedProduct;

DeviceMatrix matrix(Dtype dtype, std::int64_t rows, std::int64_t columns,
                    std::int64_t row_stride = 0, bool transposed = false) {
  const std::int64_t stored_columns = transposed ? rows : columns;
  return {nullptr, dtype, rows, columns, row_stride ? row_stride : stored_columns, transposed};
}

TEST(BlasTable, NamesTellHowMatricesAreStored) {
  const DeviceMatrix x = matrix(Dtype::kBf16, 4096, 48, 80);
  EXPECT_EQ(cuda::product_name({.to = matrix(Dtype::kBf16, 4096, 1536),
                                .left = x,
                                .right = matrix(Dtype::kBf16, 48, 1536, 0, true)}),
            "bf16 4096x48/80 * 1536x48' -> bf16 4096x1536");
  EXPECT_EQ(cuda::product_name({.to = matrix(Dtype::kF32, 48, 1536, 1600),
                                .left = matrix(Dtype::kBf16, 48, 4096, 80, true),
                                .right = matrix(Dtype::kBf16, 4096, 1536)}),
            "bf16 4096x48/80' * 4096x1536 -> f32 48x1536/1600");
  // Nobody asks where a second row would begin.
  EXPECT_EQ(cuda::product_name({.to = matrix(Dtype::kF32, 1, 8),
                                .left = matrix(Dtype::kF32, 1, 4, 100),
                                .right = matrix(Dtype::kF32, 4, 8)}),
            "f32 1x4 * 4x8 -> f32 1x8");
}

TEST(BlasTable, NamesLeaveOutWhetherAProductIsAdded) {
  const MatrixProduct product{.to = matrix(Dtype::kF32, 3, 2),
                              .left = matrix(Dtype::kF32, 3, 4),
                              .right = matrix(Dtype::kF32, 4, 2)};
  MatrixProduct added = product;
  added.mode = GradMode::kAdd;
  EXPECT_EQ(product_name(product), product_name(added));
}

TEST(BlasTable, FindsEntriesOfOneGpuLibraryAndProduct) {
  const std::vector<TunedProduct> table{
      {"GPU A", 130100, "p", {.id = 1}, 1, 1},
      {"GPU A", 130200, "p", {.id = 2}, 1, 1},
      {"GPU A", 130100, "q", {.id = 3}, 1, 1},
      {"GPU B", 130100, "p", {.id = 4}, 1, 1},
  };
  EXPECT_EQ(cuda::find_tuned(table, "GPU A", 130200, "p"), &table[1]);
  EXPECT_EQ(cuda::find_tuned(table, "GPU B", 130100, "p"), &table[3]);
  EXPECT_EQ(cuda::find_tuned(table, "GPU B", 130100, "q"), nullptr);
  EXPECT_EQ(cuda::find_tuned(table, "GPU", 130100, "p"), nullptr);
  EXPECT_EQ(cuda::find_tuned({}, "GPU A", 130100, "p"), nullptr);
}

TEST(BlasTable, NamesEachProductOnceAndAlgorithmsOfAFixedOrder) {
  // CUBLASLT_REDUCTION_SCHEME_*
  constexpr std::uint32_t kNone = 0, kComputeType = 2, kOutputType = 4;
  std::set<std::tuple<std::string_view, std::uint64_t, std::string_view>> seen;
  for (const TunedProduct& entry : cuda::tuned_products()) {
    SCOPED_TRACE(entry.product);
    EXPECT_TRUE(seen.emplace(entry.gpu, entry.library, entry.product).second);
    const auto& [id, tile, split_k, reduction, swizzling, option, stages, inner, cluster] =
        entry.algorithm;
    const bool to_f32 = entry.product.find("-> f32 ") != std::string_view::npos;
    EXPECT_TRUE(reduction == kNone || reduction == kComputeType ||
                (reduction == kOutputType && to_f32))
        << reduction;
    EXPECT_GE(split_k, 1);
    EXPECT_GT(entry.microseconds, 0);
    EXPECT_LE(entry.microseconds, entry.first_microseconds);
  }
}

}  // namespace
}  // namespace jiboia::test
