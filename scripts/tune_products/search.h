#pragma once
#include <memory>
#include <optional>

#include "core/cuda/blas_table.h"

namespace jiboia {
class CudaExec;

/// What was found for one product.
struct FoundProduct {
  cuda::ProductAlgorithm algorithm;  ///< the fastest, or the first suggestion if none beats it
  double seconds = 0, first_seconds = 0;
  int suggestions = 0;      ///< of the library
  int lost = 0;             ///< of these, what their attributes do not tell in full
  int timed = 0;            ///< algorithms, suggestions included
  int unrepeatable = 0;     ///< fast ones whose results varied or were wrong
  double lost_seconds = 0;  ///< of the fastest of `lost`; infinite without any
};

/// Finds the fastest of cuBLASLt's algorithms for a product whose results do not vary.
///
/// First all that the library suggests are timed, then, from the fastest on, all algorithms that
/// differ from one of those in one attribute, as long as time is left. The fastest are timed
/// again in turns. Each timing multiplies random matrices, more than the cache holds, launched
/// faster than they are computed.
class ProductSearch {
 public:
  explicit ProductSearch(CudaExec& gpu);
  ~ProductSearch();
  ProductSearch(const ProductSearch&) = delete;
  ProductSearch& operator=(const ProductSearch&) = delete;

  /// Matrices like those of `product` are made. Nothing when the library has no algorithm, or none
  /// that passes. Errors: Cuda, OutOfMemory.
  std::optional<FoundProduct> search(const cuda::MatrixProduct& product, double seconds);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// Bytes of the result and of both operands, each once; the result twice where it is added to.
double bytes_of(const cuda::MatrixProduct& product);
double flops_of(const cuda::MatrixProduct& product);

}  // namespace jiboia
