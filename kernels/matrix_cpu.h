#pragma once
#include <Eigen/Core>
#include <algorithm>
#include <cstdint>

#include "core/exec.h"
#include "kernels/cpu_tiles.h"

/// Matrix products of the CPU backend: Eigen's, one tile of the result on one thread. Only for .cpp
/// files.
namespace jiboia::matrix {

template <class T>
using RowMajor = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
template <class T>
using Map = Eigen::Map<RowMajor<T>, 0, Eigen::OuterStride<>>;
template <class T>
using ConstMap = Eigen::Map<const RowMajor<T>, 0, Eigen::OuterStride<>>;

/// A tensor's rows as a matrix.
template <class T>
ConstMap<T> view(const Tensor& t) {
  return {t.as<T>(), t.rows(), t.columns(), Eigen::OuterStride<>(t.row_stride)};
}
template <class T>
Map<T> writable(const Tensor& t) {
  return {t.as<T>(), t.rows(), t.columns(), Eigen::OuterStride<>(t.row_stride)};
}

// Wide enough that packing the operands is a small part of a tile's time, small enough that the
// narrow products of a Mamba block still make several tiles.
constexpr std::int64_t kTile = 256;

/// to = left * right, or to += left * right. `left` and `right` are Eigen expressions, a row or a
/// column of `to` depends on the same row of `left` and the same column of `right`.
template <class T, class Left, class Right>
void multiply(CpuExec& cpu, GradMode mode, Map<T> to, const Left& left, const Right& right) {
  const std::int64_t tile_rows = ceil_div(to.rows(), kTile),
                     tile_columns = ceil_div(to.cols(), kTile);
  cpu.parallel_for(tile_rows * tile_columns, [&](std::int64_t tile) {
    const std::int64_t row = tile / tile_columns * kTile, column = tile % tile_columns * kTile;
    const std::int64_t rows = std::min(kTile, to.rows() - row);
    const std::int64_t columns = std::min(kTile, to.cols() - column);
    auto target = to.block(row, column, rows, columns);
    if (mode == GradMode::kAdd) {
      target.noalias() += left.middleRows(row, rows) * right.middleCols(column, columns);
    } else {
      target.noalias() = left.middleRows(row, rows) * right.middleCols(column, columns);
    }
  });
}

}  // namespace jiboia::matrix
