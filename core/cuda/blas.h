#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/dtype.h"
#include "core/op.h"

struct CUstream_st;

namespace jiboia::cuda {

/// A row-major matrix in GPU memory, or its transpose.
struct DeviceMatrix {
  void* data = nullptr;
  Dtype dtype = Dtype::kF32;
  std::int64_t rows = 0, columns = 0;
  std::int64_t row_stride = 0;  ///< elements between the starts of rows in memory
  bool transposed = false;      ///< rows and columns are those of the transpose
};

/// to = left right, or to += left right. left and right have one dtype, f32 or bf16;
/// `to` has that one or f32, and is not transposed. Sums in fp32 (no TF32); a bf16 product that is
/// added may be rounded to bf16 before.
struct MatrixProduct {
  DeviceMatrix to, left, right;
  GradMode mode = GradMode::kOverwrite;
};

/// "(3, 5) bf16 (5, 2) f32 -> (3, 2) f32", for errors.
std::string to_string(const MatrixProduct& product);

/// Errors: Internal unless shapes, strides and dtypes of the product fit together.
void require_product(const char* op, const MatrixProduct& product);

/// Matrix products on one stream, with a workspace of its own and with algorithms whose results do
/// not vary from run to run.
class Blas {
 public:
  /// Bytes of the workspace that the owner gives.
  static constexpr std::int64_t kWorkspaceBytes = std::int64_t{32} << 20;

  /// `workspace`: kWorkspaceBytes of GPU memory, 256-byte aligned, that outlive this.
  Blas(CUstream_st* stream, std::byte* workspace);
  ~Blas();
  Blas(const Blas&) = delete;
  Blas& operator=(const Blas&) = delete;

  /// `op` names who asks, for errors. Errors: Internal when shapes or dtypes disagree; Cuda.
  void multiply(const char* op, const MatrixProduct& product);

  /// One product of each kind (shapes, strides, dtypes, alignments) that was asked for so far and
  /// that the library may compute, in no order. Their matrices may be gone.
  std::vector<MatrixProduct> products() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace jiboia::cuda
