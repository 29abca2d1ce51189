#include <algorithm>
#include <array>
#include <cstdint>
#include <map>
#include <vector>

#include "core/cuda/blas.h"
#include "core/cuda/blas_table.h"
#include "core/half.h"
#include "tests/cuda_emulator/capture.h"
#include "tests/cuda_emulator/gpu_memory.h"
#include "tests/cuda_emulator/trace.h"

namespace jiboia::cuda {
namespace {

float element(const DeviceMatrix& matrix, std::int64_t row, std::int64_t column) {
  const std::int64_t at =
      matrix.transposed ? column * matrix.row_stride + row : row * matrix.row_stride + column;
  if (matrix.dtype == Dtype::kF32) return static_cast<const float*>(matrix.data)[at];
  return float_from_bf16(static_cast<const std::uint16_t*>(matrix.data)[at]);
}

/// The matrix as floats, rows one after another.
std::vector<float> packed(const DeviceMatrix& matrix) {
  std::vector<float> values(static_cast<std::size_t>(matrix.rows * matrix.columns));
  // Blocks of 16 by 16 read every line of memory once, transposed or not.
  constexpr std::int64_t kBlock = 16;
  for (std::int64_t r = 0; r < matrix.rows; r += kBlock) {
    for (std::int64_t c = 0; c < matrix.columns; c += kBlock) {
      for (std::int64_t i = r; i < std::min(r + kBlock, matrix.rows); ++i) {
        for (std::int64_t j = c; j < std::min(c + kBlock, matrix.columns); ++j) {
          values[static_cast<std::size_t>(i * matrix.columns + j)] = element(matrix, i, j);
        }
      }
    }
  }
  return values;
}

/// Sums of columns that are kept in registers or in the first cache while k goes by.
constexpr std::int64_t kColumns = 64;

void compute(const char* op, const MatrixProduct& product) {
  const DeviceMatrix& to = product.to;
  emulated::trace("launch {}", op);
  const emulated::GpuMemoryAccess access;
  const std::vector<float> left = packed(product.left), right = packed(product.right);
  const std::int64_t depth = product.left.columns;
  const bool add = product.mode == GradMode::kAdd;
  for (std::int64_t first = 0; first < to.columns; first += kColumns) {
    const std::int64_t columns = std::min(kColumns, to.columns - first);
    for (std::int64_t row = 0; row < to.rows; ++row) {
      std::array<float, kColumns> sums{};
      for (std::int64_t k = 0; k < depth; ++k) {
        const float factor = left[static_cast<std::size_t>(row * depth + k)];
        const float* terms = right.data() + k * to.columns + first;
        for (std::int64_t i = 0; i < columns; ++i) sums[i] += factor * terms[i];
      }
      const std::int64_t start = row * to.row_stride + first;
      for (std::int64_t i = 0; i < columns; ++i) {
        if (to.dtype == Dtype::kF32) {
          float& result = static_cast<float*>(to.data)[start + i];
          result = add ? result + sums[i] : sums[i];
        } else {
          std::uint16_t& result = static_cast<std::uint16_t*>(to.data)[start + i];
          result = bf16_from_float(add ? float_from_bf16(result) + sums[i] : sums[i]);
        }
      }
    }
  }
}

}  // namespace

struct Blas::State {
  CUstream_st* stream;
  std::map<std::string, MatrixProduct> products{};  // by name
};

Blas::Blas(CUstream_st* stream, std::byte*) : state_(new State{stream}) {}
Blas::~Blas() = default;

std::vector<MatrixProduct> Blas::products() const {
  std::vector<MatrixProduct> all;
  for (const auto& [name, product] : state_->products) all.push_back(product);
  return all;
}

void Blas::multiply(const char* op, const MatrixProduct& product) {
  require_product(op, product);
  if (product.left.columns > 0) state_->products.emplace(product_name(product), product);
  emulated::ask(state_->stream, [=] {
    compute(op, product);
    return cudaSuccess;
  });
}

}  // namespace jiboia::cuda
