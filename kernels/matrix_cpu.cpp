#include <Eigen/Core>
#include <algorithm>

#include "kernels/cpu_tiles.h"
#include "kernels/matrix.h"

namespace jiboia {
namespace {

// Wide enough that packing the operands is a small part of a tile's time, small enough that the
// narrow products of a Mamba block still make several tiles.
constexpr std::int64_t kTile = 256;

template <class T>
using RowMajor = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
template <class T>
using ColumnMajor = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::ColMajor>;
template <class Layout>
using View = Eigen::Map<Layout, 0, Eigen::OuterStride<>>;

/// Calls visitor with Eigen's view of the matrix: a transpose is a column-major matrix.
template <class T, class Visitor>
void visit_view(const Matrix<T>& m, Visitor visitor) {
  if (m.transposed) {
    visitor(
        View<const ColumnMajor<T>>(m.data, m.rows, m.columns, Eigen::OuterStride<>(m.row_stride)));
  } else {
    visitor(View<const RowMajor<T>>(m.data, m.rows, m.columns, Eigen::OuterStride<>(m.row_stride)));
  }
}

}  // namespace

template <class T>
void multiply(CpuExec& cpu, GradMode mode, const Matrix<T>& to, const Matrix<T>& left,
              const Matrix<T>& right) {
  require(to.rows == left.rows && to.columns == right.columns && left.columns == right.rows &&
              !to.transposed,
          ErrorKind::kInternal, "product of ({}, {}) and ({}, {}) into ({}, {})", left.rows,
          left.columns, right.rows, right.columns, to.rows, to.columns);
  View<RowMajor<T>> target(to.data, to.rows, to.columns, Eigen::OuterStride<>(to.row_stride));
  const std::int64_t tile_columns = ceil_div(to.columns, kTile);
  const std::int64_t tiles = ceil_div(to.rows, kTile) * tile_columns;
  visit_view(left, [&](const auto& a) {
    visit_view(right, [&](const auto& b) {
      cpu.parallel_for(tiles, [&](std::int64_t tile) {
        const std::int64_t row = tile / tile_columns * kTile;
        const std::int64_t column = tile % tile_columns * kTile;
        const std::int64_t rows = std::min(kTile, to.rows - row);
        const std::int64_t columns = std::min(kTile, to.columns - column);
        auto block = target.block(row, column, rows, columns);
        if (mode == GradMode::kAdd) {
          block.noalias() += a.middleRows(row, rows) * b.middleCols(column, columns);
        } else {
          block.noalias() = a.middleRows(row, rows) * b.middleCols(column, columns);
        }
      });
    });
  });
}

template void multiply(CpuExec&, GradMode, const Matrix<float>&, const Matrix<float>&,
                       const Matrix<float>&);
template void multiply(CpuExec&, GradMode, const Matrix<double>&, const Matrix<double>&,
                       const Matrix<double>&);

}  // namespace jiboia
