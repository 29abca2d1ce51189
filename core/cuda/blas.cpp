#include "core/cuda/blas.h"

#include <cublasLt.h>

#include <algorithm>
#include <array>
#include <bit>
#include <map>
#include <optional>
#include <source_location>
#include <span>

#include "core/cuda/plain_product.h"
#include "core/error.h"
#include "core/log.h"

namespace jiboia::cuda {
namespace {

void check_blas(cublasStatus_t status, const char* op, const MatrixProduct* product = nullptr,
                std::source_location line = std::source_location::current()) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  fail(ErrorKind::kCuda, "{} ({}:{}): cuBLASLt {} failed{}{}: {} ({})", op, line.file_name(),
       line.line(), cublasLtGetVersion(), product ? " at " : "",
       product ? to_string(*product) : std::string(), cublasLtGetStatusString(status),
       cublasLtGetStatusName(status));
}

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
using Preference = Owned<cublasLtMatmulPreference_t, cublasLtMatmulPreferenceDestroy>;

/// Everything that decides how a matrix is read; alignment in bytes, a power of two up to 256.
struct MatrixKey {
  explicit MatrixKey(const DeviceMatrix& m)
      : stored_rows(m.transposed ? m.columns : m.rows),
        stored_columns(m.transposed ? m.rows : m.columns),
        // The library refuses a stride smaller than a row even where there is one row.
        row_stride(std::max(m.row_stride, stored_columns)),
        alignment(1u << std::min(8, std::countr_zero(reinterpret_cast<std::uintptr_t>(m.data)))),
        dtype(m.dtype),
        transposed(m.transposed) {}
  auto operator<=>(const MatrixKey&) const = default;

  std::int64_t stored_rows, stored_columns, row_stride;
  std::uint32_t alignment;
  Dtype dtype;
  bool transposed;
};

/// Products of equal keys take the same algorithm; whether they add changes nothing.
struct ProductKey {
  explicit ProductKey(const MatrixProduct& product)
      : to(product.to), left(product.left), right(product.right) {}
  auto operator<=>(const ProductKey&) const = default;

  MatrixKey to, left, right;
};

/// A product as the library sees it: its matrices are column-major, which makes ours their
/// transposes, and so to^T = right^T left^T is computed.
struct Plan {
  Description description;
  Layout to, left, right;
  /// None: the library has nothing for these strides or alignments.
  std::optional<cublasLtMatmulAlgo_t> algorithm;
};

cudaDataType_t type_of(Dtype dtype) { return dtype == Dtype::kBf16 ? CUDA_R_16BF : CUDA_R_32F; }

Layout layout_of(const MatrixKey& matrix, const char* op, const MatrixProduct& product) {
  cublasLtMatrixLayout_t layout = nullptr;
  check_blas(cublasLtMatrixLayoutCreate(
                 &layout, type_of(matrix.dtype), static_cast<std::uint64_t>(matrix.stored_columns),
                 static_cast<std::uint64_t>(matrix.stored_rows), matrix.row_stride),
             op, &product);
  return Layout(layout);
}

Description description_of(const ProductKey& key, const char* op, const MatrixProduct& product) {
  cublasLtMatmulDesc_t handle = nullptr;
  check_blas(cublasLtMatmulDescCreate(&handle, CUBLAS_COMPUTE_32F, CUDA_R_32F), op, &product);
  Description description(handle);
  const auto set_transposed = [&](cublasLtMatmulDescAttributes_t attribute, bool transposed) {
    const cublasOperation_t operation = transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
    check_blas(cublasLtMatmulDescSetAttribute(handle, attribute, &operation, sizeof(operation)), op,
               &product);
  };
  set_transposed(CUBLASLT_MATMUL_DESC_TRANSA, key.right.transposed);
  set_transposed(CUBLASLT_MATMUL_DESC_TRANSB, key.left.transposed);
  return description;
}

/// Partial sums are added by a step of its own, if at all: whoever adds them into the result as
/// they come, adds them in another order each time, or rounds them before.
bool has_fixed_order(const cublasLtMatmulAlgo_t& algorithm) {
  std::uint32_t scheme = CUBLASLT_REDUCTION_SCHEME_NONE;
  const cublasStatus_t status = cublasLtMatmulAlgoConfigGetAttribute(
      &algorithm, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME, &scheme, sizeof(scheme), nullptr);
  return status == CUBLAS_STATUS_SUCCESS && (scheme == CUBLASLT_REDUCTION_SCHEME_NONE ||
                                             scheme == CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE);
}

/// The algorithm of a product, the same on every run with the same GPU and library: the library's
/// first suggestion. The one place where algorithms are chosen.
std::optional<cublasLtMatmulAlgo_t> choose_algorithm(cublasLtHandle_t library, const Plan& plan,
                                                     const ProductKey& key, const char* op,
                                                     const MatrixProduct& product) {
  cublasLtMatmulPreference_t handle = nullptr;
  check_blas(cublasLtMatmulPreferenceCreate(&handle), op, &product);
  const Preference preference(handle);
  const auto set = [&](cublasLtMatmulPreferenceAttributes_t attribute, auto value) {
    check_blas(cublasLtMatmulPreferenceSetAttribute(handle, attribute, &value, sizeof(value)), op,
               &product);
  };
  set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, std::uint64_t{Blas::kWorkspaceBytes});
  set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
      std::uint32_t{CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE});
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, key.right.alignment);
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, key.left.alignment);
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, key.to.alignment);
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, key.to.alignment);

  std::array<cublasLtMatmulHeuristicResult_t, 8> found{};
  int count = 0;
  const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(
      library, plan.description.get(), plan.right.get(), plan.left.get(), plan.to.get(),
      plan.to.get(), handle, static_cast<int>(found.size()), found.data(), &count);
  if (status == CUBLAS_STATUS_NOT_SUPPORTED) return std::nullopt;
  check_blas(status, op, &product);
  for (const auto& result : std::span(found).first(static_cast<std::size_t>(count))) {
    if (result.state == CUBLAS_STATUS_SUCCESS &&
        result.workspaceSize <= static_cast<std::size_t>(Blas::kWorkspaceBytes) &&
        has_fixed_order(result.algo)) {
      return result.algo;
    }
  }
  return std::nullopt;
}

}  // namespace

struct Blas::State {
  CUstream_st* stream;
  std::byte* workspace;
  Library library;
  std::map<ProductKey, Plan> plans;

  const Plan& plan_for(const char* op, const MatrixProduct& product) {
    const ProductKey key(product);
    const auto known = plans.find(key);
    if (known != plans.end()) return known->second;
    Plan plan{.description = description_of(key, op, product),
              .to = layout_of(key.to, op, product),
              .left = layout_of(key.left, op, product),
              .right = layout_of(key.right, op, product),
              .algorithm = {}};
    plan.algorithm = choose_algorithm(library.get(), plan, key, op, product);
    if (!plan.algorithm) {
      log::warning(
          "{}: cuBLASLt {} has no algorithm for {} with row strides {}, {} -> {}; a much slower "
          "kernel computes this product. Widths that are multiples of 8 avoid that",
          op, cublasLtGetVersion(), to_string(product), product.left.row_stride,
          product.right.row_stride, product.to.row_stride);
    }
    return plans.emplace(key, std::move(plan)).first->second;
  }
};

Blas::Blas(CUstream_st* stream, std::byte* workspace) {
  cublasLtHandle_t library = nullptr;
  check_blas(cublasLtCreate(&library), "matrix products");
  state_ = std::make_unique<State>(State{stream, workspace, Library(library), {}});
}

Blas::~Blas() = default;

void Blas::multiply(const char* op, const MatrixProduct& product) {
  require_product(op, product);
  const auto& [to, left, right, mode] = product;
  if (to.rows == 0 || to.columns == 0) return;
  if (left.columns == 0) return multiply_plainly(state_->stream, op, product);
  const Plan& plan = state_->plan_for(op, product);
  if (!plan.algorithm) return multiply_plainly(state_->stream, op, product);
  const float alpha = 1, beta = mode == GradMode::kAdd ? 1 : 0;
  check_blas(
      cublasLtMatmul(state_->library.get(), plan.description.get(), &alpha, right.data,
                     plan.right.get(), left.data, plan.left.get(), &beta, to.data, plan.to.get(),
                     to.data, plan.to.get(), &*plan.algorithm, state_->workspace,
                     static_cast<std::size_t>(kWorkspaceBytes), state_->stream),
      op, &product);
}

}  // namespace jiboia::cuda
