#include "core/cuda/blas_table.h"

#include <algorithm>
#include <vector>

namespace jiboia::cuda {
namespace {

std::string matrix_name(const DeviceMatrix& m) {
  const std::int64_t rows = m.transposed ? m.columns : m.rows;
  const std::int64_t columns = m.transposed ? m.rows : m.columns;
  const std::string stride =
      rows > 1 && m.row_stride != columns ? fmt::format("/{}", m.row_stride) : "";
  return fmt::format("{}x{}{}{}", rows, columns, stride, m.transposed ? "'" : "");
}

}  // namespace

std::string product_name(const MatrixProduct& product) {
  return fmt::format("{} {} * {} -> {} {}", to_string(product.left.dtype),
                     matrix_name(product.left), matrix_name(product.right),
                     to_string(product.to.dtype), matrix_name(product.to));
}

std::span<const TunedProduct> tuned_products() {
  // A generated file, an entry a line.
  static const std::vector<TunedProduct> table{
#include "core/cuda/blas_table.inc"
  };
  return table;
}

const TunedProduct* find_tuned(std::span<const TunedProduct> table, std::string_view gpu,
                               std::uint64_t library, std::string_view product) {
  const auto found = std::ranges::find_if(table, [&](const TunedProduct& entry) {
    return entry.gpu == gpu && entry.library == library && entry.product == product;
  });
  return found == table.end() ? nullptr : &*found;
}

}  // namespace jiboia::cuda
