#include "core/cuda/blas.h"

#include <optional>
#include <unordered_map>

#include "core/cuda/blas_plan.cuh"
#include "core/cuda/check.cuh"
#include "core/cuda/plain_product.h"
#include "core/log.h"

namespace jiboia::cuda {
namespace {

constexpr const char* kWho = "matrix products";

struct HashKey {
  std::size_t operator()(const ProductKey& key) const {
    std::uint64_t hash = 0;
    const auto mix = [&](auto value) {
      hash = (hash ^ static_cast<std::uint64_t>(value)) * 0x9E3779B97F4A7C15u;
      hash ^= hash >> 32;
    };
    for (const MatrixKey* m : {&key.to, &key.left, &key.right}) {
      mix(m->stored_rows);
      mix(m->stored_columns);
      mix(m->row_stride);
      mix(m->alignment << 8 | static_cast<unsigned>(m->dtype) << 1 | unsigned{m->transposed});
    }
    return static_cast<std::size_t>(hash);
  }
};

struct PlannedProduct {
  ProductPlan plan;
  /// None: the library has nothing for these strides or alignments.
  std::optional<ProductPlan::Algorithm> algorithm;
};

std::string name_of_gpu() {
  int device = 0;
  cudaDeviceProp properties{};
  check(cudaGetDevice(&device), kWho);
  check(cudaGetDeviceProperties(&properties, device), kWho);
  return properties.name;
}

}  // namespace

struct Blas::State {
  CUstream_st* stream;
  std::byte* workspace;
  Library library = make_library();
  std::string gpu = name_of_gpu();
  std::unordered_map<ProductKey, PlannedProduct, HashKey> products{};
  bool told_that_table_is_stale = false;

  /// The algorithm of a product, the same on every run with the same GPU and library: the table's,
  /// or else the library's first suggestion. The one place where algorithms are chosen.
  std::optional<ProductPlan::Algorithm> choose_algorithm(const char* op, const ProductPlan& plan) {
    const std::string name = product_name(plan.product());
    const TunedProduct* tuned = find_tuned(tuned_products(), gpu, cublasLtGetVersion(), name);
    if (tuned) {
      const auto algorithm =
          plan.algorithm_of(library.get(), Blas::kWorkspaceBytes, tuned->algorithm);
      if (algorithm) return algorithm;
    }
    if (!told_that_table_is_stale && (tuned || is_tuned_for_other_library(name))) {
      told_that_table_is_stale = true;
      log::info(
          "{}: core/cuda/blas_table.inc {}, so cuBLASLt {} chooses algorithms itself; "
          "tune_products brings the table up to date",
          kWho,
          tuned ? fmt::format("names an algorithm that is refused for {}", name)
                : "was measured with another version",
          cublasLtGetVersion());
    }
    const auto suggestions = plan.suggestions(op, library.get(), Blas::kWorkspaceBytes, 8);
    if (suggestions.empty()) return std::nullopt;
    return suggestions.front();
  }

  bool is_tuned_for_other_library(const std::string& name) const {
    for (const TunedProduct& entry : tuned_products()) {
      if (entry.gpu == gpu && entry.product == name) return true;
    }
    return false;
  }

  const PlannedProduct& planned(const char* op, const MatrixProduct& product) {
    const ProductKey key(product);
    const auto known = products.find(key);
    if (known != products.end()) return known->second;
    ProductPlan plan(op, product);
    const auto algorithm = choose_algorithm(op, plan);
    if (!algorithm) {
      log::warning(
          "{}: cuBLASLt {} has no algorithm for {} with row strides {}, {} -> {}; a much slower "
          "kernel computes this product. Widths that are multiples of 8 avoid that",
          op, cublasLtGetVersion(), to_string(product), product.left.row_stride,
          product.right.row_stride, product.to.row_stride);
    }
    return products.emplace(key, PlannedProduct{std::move(plan), algorithm}).first->second;
  }
};

Blas::Blas(CUstream_st* stream, std::byte* workspace)
    : state_(new State{.stream = stream, .workspace = workspace}) {}

Blas::~Blas() = default;

void Blas::multiply(const char* op, const MatrixProduct& product) {
  require_product(op, product);
  const auto& [to, left, right, mode] = product;
  if (to.rows == 0 || to.columns == 0) return;
  if (left.columns == 0) return multiply_plainly(state_->stream, op, product);
  const auto& [plan, algorithm] = state_->planned(op, product);
  if (!algorithm) return multiply_plainly(state_->stream, op, product);
  check_blas(plan.run(state_->library.get(), *algorithm, product, state_->workspace,
                      kWorkspaceBytes, state_->stream),
             op, &product);
}

std::vector<MatrixProduct> Blas::products() const {
  std::vector<MatrixProduct> all;
  for (const auto& [key, planned] : state_->products) all.push_back(planned.plan.product());
  return all;
}

}  // namespace jiboia::cuda
