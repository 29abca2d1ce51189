#pragma once
#include <compare>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "core/cuda/blas.h"

/// Which of cuBLASLt's algorithms is fastest for a product, as scripts/tune_products measured it.
namespace jiboia::cuda {

/// A configured algorithm: the library's attributes CUBLASLT_ALGO_CONFIG_*, in their order.
struct ProductAlgorithm {
  std::int32_t id = 0;
  std::uint32_t tile = 0;
  std::int32_t split_k = 1;
  std::uint32_t reduction = 0, swizzling = 0, custom_option = 0, stages = 0;
  std::uint16_t inner_shape = 0, cluster_shape = 0;

  auto operator<=>(const ProductAlgorithm&) const = default;
};

/// An entry of the table. It holds for one GPU and one version of the library alone.
struct TunedProduct {
  std::string_view gpu;      ///< "NVIDIA H200"
  std::uint64_t library;     ///< cublasLtGetVersion()
  std::string_view product;  ///< product_name()
  ProductAlgorithm algorithm;
  double microseconds, first_microseconds;  ///< measured: of it, and of the library's suggestion
};

/// What decides how long a product takes, alignment apart: dtypes, shapes and row strides, of
/// matrices as they are stored. "bf16 4096x48/80 * 1536x48' -> bf16 4096x1536" multiplies 48 of a
/// matrix's 80 columns by the transpose of another.
std::string product_name(const MatrixProduct& product);

/// The table, core/cuda/blas_table.inc.
std::span<const TunedProduct> tuned_products();

/// The entry of a product; null when there is none.
const TunedProduct* find_tuned(std::span<const TunedProduct> table, std::string_view gpu,
                               std::uint64_t library, std::string_view product);

}  // namespace jiboia::cuda
