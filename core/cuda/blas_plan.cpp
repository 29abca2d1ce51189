#include "core/cuda/blas_plan.cuh"

#include <algorithm>
#include <bit>
#include <span>

#include "core/error.h"

namespace jiboia::cuda {
namespace {

constexpr cublasComputeType_t kCompute = CUBLAS_COMPUTE_32F;
constexpr cudaDataType_t kScale = CUDA_R_32F;

cudaDataType_t type_of(Dtype dtype) { return dtype == Dtype::kBf16 ? CUDA_R_16BF : CUDA_R_32F; }

/// Calls visit(attribute, member) for all of an algorithm but its id, which the library sets.
template <class Algorithm, class Visit>
void visit_attributes(Algorithm& algorithm, Visit visit) {
  visit(CUBLASLT_ALGO_CONFIG_TILE_ID, algorithm.tile);
  visit(CUBLASLT_ALGO_CONFIG_SPLITK_NUM, algorithm.split_k);
  visit(CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME, algorithm.reduction);
  visit(CUBLASLT_ALGO_CONFIG_CTA_SWIZZLING, algorithm.swizzling);
  visit(CUBLASLT_ALGO_CONFIG_CUSTOM_OPTION, algorithm.custom_option);
  visit(CUBLASLT_ALGO_CONFIG_STAGES_ID, algorithm.stages);
  visit(CUBLASLT_ALGO_CONFIG_INNER_SHAPE_ID, algorithm.inner_shape);
  visit(CUBLASLT_ALGO_CONFIG_CLUSTER_SHAPE_ID, algorithm.cluster_shape);
}

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
  check_blas(cublasLtMatmulDescCreate(&handle, kCompute, kScale), op, &product);
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

}  // namespace

void check_blas(cublasStatus_t status, const char* op, const MatrixProduct* product,
                std::source_location line) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  fail(ErrorKind::kCuda, "{} ({}:{}): cuBLASLt {} failed{}{}: {} ({})", op, line.file_name(),
       line.line(), cublasLtGetVersion(), product ? " at " : "",
       product ? to_string(*product) : std::string(), cublasLtGetStatusString(status),
       cublasLtGetStatusName(status));
}

Library make_library() {
  cublasLtHandle_t library = nullptr;
  check_blas(cublasLtCreate(&library), "matrix products");
  return Library(library);
}

MatrixKey::MatrixKey(const DeviceMatrix& m)
    : stored_rows(m.transposed ? m.columns : m.rows),
      stored_columns(m.transposed ? m.rows : m.columns),
      // The library refuses a stride smaller than a row even where there is one row.
      row_stride(std::max(m.row_stride, stored_columns)),
      alignment(1u << std::min(8, std::countr_zero(reinterpret_cast<std::uintptr_t>(m.data)))),
      dtype(m.dtype),
      transposed(m.transposed) {}

bool has_fixed_order(const ProductAlgorithm& algorithm, Dtype to) {
  return algorithm.reduction == CUBLASLT_REDUCTION_SCHEME_NONE ||
         algorithm.reduction == CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE ||
         (algorithm.reduction == CUBLASLT_REDUCTION_SCHEME_OUTPUT_TYPE && to == Dtype::kF32);
}

ProductAlgorithm attributes_of(const cublasLtMatmulAlgo_t& algorithm) {
  ProductAlgorithm attributes;
  const auto get = [&](cublasLtMatmulAlgoConfigAttributes_t attribute, auto& value) {
    check_blas(
        cublasLtMatmulAlgoConfigGetAttribute(&algorithm, attribute, &value, sizeof(value), nullptr),
        "matrix products");
  };
  get(CUBLASLT_ALGO_CONFIG_ID, attributes.id);
  visit_attributes(attributes, get);
  return attributes;
}

ProductPlan::ProductPlan(const char* op, const MatrixProduct& product)
    : key_(product),
      product_(product),
      description_(description_of(key_, op, product)),
      to_(layout_of(key_.to, op, product)),
      left_(layout_of(key_.left, op, product)),
      right_(layout_of(key_.right, op, product)) {}

std::vector<ProductPlan::Algorithm> ProductPlan::suggestions(const char* op,
                                                             cublasLtHandle_t library,
                                                             std::int64_t workspace_bytes,
                                                             int count) const {
  cublasLtMatmulPreference_t handle = nullptr;
  check_blas(cublasLtMatmulPreferenceCreate(&handle), op, &product_);
  const Owned<cublasLtMatmulPreference_t, cublasLtMatmulPreferenceDestroy> preference(handle);
  const auto set = [&](cublasLtMatmulPreferenceAttributes_t attribute, auto value) {
    check_blas(cublasLtMatmulPreferenceSetAttribute(handle, attribute, &value, sizeof(value)), op,
               &product_);
  };
  set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, static_cast<std::uint64_t>(workspace_bytes));
  set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
      std::uint32_t{CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE});
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, key_.right.alignment);
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, key_.left.alignment);
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, key_.to.alignment);
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, key_.to.alignment);

  std::vector<cublasLtMatmulHeuristicResult_t> found(static_cast<std::size_t>(count));
  int found_count = 0;
  const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(
      library, description_.get(), right_.get(), left_.get(), to_.get(), to_.get(), handle, count,
      found.data(), &found_count);
  if (status == CUBLAS_STATUS_NOT_SUPPORTED) return {};
  check_blas(status, op, &product_);
  std::vector<Algorithm> usable;
  for (const auto& result : std::span(found).first(static_cast<std::size_t>(found_count))) {
    if (result.state == CUBLAS_STATUS_SUCCESS &&
        result.workspaceSize <= static_cast<std::size_t>(workspace_bytes) &&
        has_fixed_order(attributes_of(result.algo), key_.to.dtype)) {
      usable.push_back(result.algo);
    }
  }
  return usable;
}

std::optional<ProductPlan::Algorithm> ProductPlan::algorithm_of(
    cublasLtHandle_t library, std::int64_t workspace_bytes,
    const ProductAlgorithm& attributes) const {
  if (!has_fixed_order(attributes, key_.to.dtype)) return std::nullopt;
  const cudaDataType_t to = type_of(key_.to.dtype);
  Algorithm algorithm{};
  bool accepted = cublasLtMatmulAlgoInit(library, kCompute, kScale, type_of(key_.right.dtype),
                                         type_of(key_.left.dtype), to, to, attributes.id,
                                         &algorithm) == CUBLAS_STATUS_SUCCESS;
  if (!accepted) return std::nullopt;
  visit_attributes(attributes, [&](cublasLtMatmulAlgoConfigAttributes_t attribute, auto value) {
    accepted &= cublasLtMatmulAlgoConfigSetAttribute(&algorithm, attribute, &value,
                                                     sizeof(value)) == CUBLAS_STATUS_SUCCESS;
  });
  // The check does not know where matrices lie.
  const auto aligned = [&](cublasLtMatmulAlgoCapAttributes_t capability, std::uint32_t alignment) {
    std::uint32_t needed = 0;
    return cublasLtMatmulAlgoCapGetAttribute(&algorithm, capability, &needed, sizeof(needed),
                                             nullptr) == CUBLAS_STATUS_SUCCESS &&
           needed <= alignment;
  };
  cublasLtMatmulHeuristicResult_t result{};
  if (!accepted || !aligned(CUBLASLT_ALGO_CAP_MIN_ALIGNMENT_A_BYTES, key_.right.alignment) ||
      !aligned(CUBLASLT_ALGO_CAP_MIN_ALIGNMENT_B_BYTES, key_.left.alignment) ||
      !aligned(CUBLASLT_ALGO_CAP_MIN_ALIGNMENT_C_BYTES, key_.to.alignment) ||
      !aligned(CUBLASLT_ALGO_CAP_MIN_ALIGNMENT_D_BYTES, key_.to.alignment) ||
      cublasLtMatmulAlgoCheck(library, description_.get(), right_.get(), left_.get(), to_.get(),
                              to_.get(), &algorithm, &result) != CUBLAS_STATUS_SUCCESS ||
      result.workspaceSize > static_cast<std::size_t>(workspace_bytes)) {
    return std::nullopt;
  }
  return algorithm;
}

cublasStatus_t ProductPlan::run(cublasLtHandle_t library, const Algorithm& algorithm,
                                const MatrixProduct& product, std::byte* workspace,
                                std::int64_t workspace_bytes, CUstream_st* stream) const {
  const float alpha = 1, beta = product.mode == GradMode::kAdd ? 1 : 0;
  return cublasLtMatmul(library, description_.get(), &alpha, product.right.data, right_.get(),
                        product.left.data, left_.get(), &beta, product.to.data, to_.get(),
                        product.to.data, to_.get(), &algorithm, workspace,
                        static_cast<std::size_t>(workspace_bytes), stream);
}

}  // namespace jiboia::cuda
