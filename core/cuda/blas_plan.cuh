#pragma once
#include <cublasLt.h>

#include <compare>
#include <memory>
#include <optional>
#include <source_location>
#include <type_traits>
#include <vector>

#include "core/cuda/blas.h"
#include "core/cuda/blas_table.h"

/// cuBLASLt as blas.cpp and scripts/tune_products use it.
namespace jiboia::cuda {

/// Errors: Cuda unless the call went well, with `op`, line and product.
void check_blas(cublasStatus_t status, const char* op, const MatrixProduct* product = nullptr,
                std::source_location line = std::source_location::current());

/// Owns a handle of the library.
template <auto kDestroy>
struct Destroyer {
  template <class T>
  void operator()(T* handle) const {
    kDestroy(handle);
  }
};
template <class Handle, auto kDestroy>
using Owned = std::unique_ptr<std::remove_pointer_t<Handle>, Destroyer<kDestroy>>;
using Library = Owned<cublasLtHandle_t, cublasLtDestroy>;
using Description = Owned<cublasLtMatmulDesc_t, cublasLtMatmulDescDestroy>;
using Layout = Owned<cublasLtMatrixLayout_t, cublasLtMatrixLayoutDestroy>;

Library make_library();

/// Everything that decides how a matrix is read; alignment in bytes, a power of two up to 256.
struct MatrixKey {
  explicit MatrixKey(const DeviceMatrix& m);
  bool operator==(const MatrixKey&) const = default;

  std::int64_t stored_rows, stored_columns, row_stride;
  std::uint32_t alignment;
  Dtype dtype;
  bool transposed;
};

/// Products of equal keys take the same algorithm; whether they add changes nothing.
struct ProductKey {
  explicit ProductKey(const MatrixProduct& product)
      : to(product.to), left(product.left), right(product.right) {}
  bool operator==(const ProductKey&) const = default;

  MatrixKey to, left, right;
};

/// A product as the library sees it: its matrices are column-major, which makes ours their
/// transposes, and so to^T = right^T left^T is computed.
class ProductPlan {
 public:
  /// Errors: Cuda.
  ProductPlan(const char* op, const MatrixProduct& product);

  using Algorithm = cublasLtMatmulAlgo_t;

  /// What the library suggests, the best first, among algorithms of has_fixed_order() whose
  /// workspace fits; at most `count`. None: it has nothing for these strides or alignments.
  /// Errors: Cuda.
  std::vector<Algorithm> suggestions(const char* op, cublasLtHandle_t library,
                                     std::int64_t workspace_bytes, int count) const;
  /// The algorithm with these attributes; none where the library refuses it for this product, its
  /// workspace is too small or has_fixed_order() is not true of it.
  std::optional<Algorithm> algorithm_of(cublasLtHandle_t library, std::int64_t workspace_bytes,
                                        const ProductAlgorithm& attributes) const;
  /// Computes a product of this plan's key. Asynchronous.
  cublasStatus_t run(cublasLtHandle_t library, const Algorithm& algorithm,
                     const MatrixProduct& product, std::byte* workspace,
                     std::int64_t workspace_bytes, CUstream_st* stream) const;
  /// The one that this was made for.
  const MatrixProduct& product() const { return product_; }

 private:
  ProductKey key_;
  MatrixProduct product_;
  Description description_;
  Layout to_, left_, right_;
};

/// Its attributes, all of them known to the library. Errors: Cuda.
ProductAlgorithm attributes_of(const cublasLtMatmulAlgo_t& algorithm);

/// Whether equal products give equal bits. A sum that is split is put together by a step of its
/// own, in an order of its own; whoever adds parts into the result as they come, adds them in
/// another order each time, or rounds them before.
bool has_fixed_order(const ProductAlgorithm& algorithm, Dtype to);

}  // namespace jiboia::cuda
