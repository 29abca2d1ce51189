#include "scripts/tune_products/search.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <iterator>
#include <limits>
#include <set>
#include <vector>

#include "core/cuda/blas_plan.cuh"
#include "core/cuda/cuda_exec.h"
#include "core/event.h"
#include "core/memory.h"
#include "scripts/tune_products/measure.h"

namespace jiboia {

using cuda::Blas;
using cuda::DeviceMatrix;
using cuda::MatrixProduct;
using cuda::ProductAlgorithm;
using cuda::ProductPlan;

namespace {

constexpr const char* kWho = "tune_products";
constexpr int kSuggestions = 64;
/// Matrices that take turns hold more than this, some times what a GPU caches.
constexpr std::int64_t kBytesInTurn = 192 << 20;
/// Launches between two marks take about this long, so that the marks cost nothing.
constexpr double kTimedSeconds = 200e-6;
constexpr int kMaxLaunches = 16;
/// What is this much slower than the fastest is not looked at more closely.
constexpr double kHopeless = 1.25;
constexpr std::ptrdiff_t kFinalists = 6;
constexpr int kRounds = 11;
/// A suggestion is only given up for what is faster by more than noise.
constexpr double kWorthIt = 0.99;
constexpr double kNever = std::numeric_limits<double>::infinity();

using Clock = std::chrono::steady_clock;
using Deadline = decltype(Clock::now() + std::chrono::duration<double>());

struct Candidate {
  ProductAlgorithm attributes;
  ProductPlan::Algorithm algorithm;
  double seconds;
  bool explored = false;
};

std::int64_t stored_elements(const DeviceMatrix& m) {
  return (m.transposed ? m.columns : m.rows) * m.row_stride;
}

/// A matrix's memory, gaps between rows included.
Tensor memory_of(const DeviceMatrix& m) {
  return {Spec(m.dtype, Shape{stored_elements(m)}), m.data};
}

/// What an algorithm can be set to, by the library's own account.
template <class T>
std::vector<T> capabilities(const ProductPlan::Algorithm& algorithm,
                            cublasLtMatmulAlgoCapAttributes_t attribute) {
  std::size_t bytes = 0;
  if (cublasLtMatmulAlgoCapGetAttribute(&algorithm, attribute, nullptr, 0, &bytes) !=
      CUBLAS_STATUS_SUCCESS) {
    return {};
  }
  std::vector<T> values(bytes / sizeof(T));
  if (!values.empty()) {
    cuda::check_blas(
        cublasLtMatmulAlgoCapGetAttribute(&algorithm, attribute, values.data(), bytes, &bytes),
        kWho);
  }
  return values;
}

/// All that differ from `from` in one attribute; sums are split in several ways at a time.
std::vector<ProductAlgorithm> neighbours(const Candidate& from) {
  constexpr std::uint32_t kMostCustomOptions = 32;
  constexpr std::array kSplits{2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 20, 24, 28, 32, 48, 64};
  std::vector<ProductAlgorithm> all;
  const auto vary = [&](auto member, auto value) {
    ProductAlgorithm other = from.attributes;
    other.*member = static_cast<std::remove_reference_t<decltype(other.*member)>>(value);
    all.push_back(other);
  };
  for (const auto tile : capabilities<std::uint32_t>(from.algorithm, CUBLASLT_ALGO_CAP_TILE_IDS)) {
    vary(&ProductAlgorithm::tile, tile);
  }
  for (int shape = 0; shape < CUBLASLT_CLUSTER_SHAPE_END; ++shape) {
    vary(&ProductAlgorithm::cluster_shape, shape);
  }
  for (const auto stages :
       capabilities<std::uint32_t>(from.algorithm, CUBLASLT_ALGO_CAP_STAGES_IDS)) {
    vary(&ProductAlgorithm::stages, stages);
  }
  for (const auto most :
       capabilities<std::int32_t>(from.algorithm, CUBLASLT_ALGO_CAP_CUSTOM_OPTION_MAX)) {
    const auto end = std::min(static_cast<std::uint32_t>(most), kMostCustomOptions);
    for (std::uint32_t i = 0; i <= end; ++i) vary(&ProductAlgorithm::custom_option, i);
  }
  for (const auto most :
       capabilities<std::uint32_t>(from.algorithm, CUBLASLT_ALGO_CAP_CTA_SWIZZLING_SUPPORT)) {
    for (std::uint32_t i = 0; i <= std::min(most, 1u); ++i) vary(&ProductAlgorithm::swizzling, i);
  }
  for (int shape = 0; shape < CUBLASLT_MATMUL_INNER_SHAPE_END; ++shape) {
    vary(&ProductAlgorithm::inner_shape, shape);
  }
  ProductAlgorithm whole = from.attributes;
  whole.split_k = 1;
  whole.reduction = CUBLASLT_REDUCTION_SCHEME_NONE;
  all.push_back(whole);
  for (const std::uint32_t reduction :
       {CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE, CUBLASLT_REDUCTION_SCHEME_OUTPUT_TYPE}) {
    for (const int split : kSplits) {
      ProductAlgorithm other = from.attributes;
      other.split_k = split;
      other.reduction = reduction;
      all.push_back(other);
    }
  }
  return all;
}

}  // namespace

struct ProductSearch::State {
  explicit State(CudaExec& exec) : gpu(exec), measure(exec) {}

  CudaExec& gpu;
  Measure measure;
  cuda::Library library = cuda::make_library();
  Buffer workspace = allocate(gpu, Blas::kWorkspaceBytes, kWho);
  Buffer memory{};
  Event begin{}, end{};
  std::vector<MatrixProduct> sets{};  // equal but for where they lie, with random values
  Tensor reference{};                 // as large as a result
  std::size_t next_set = 0;
  int launches = 1;  // between two marks

  void make_matrices(const MatrixProduct& product);
  cublasStatus_t run(const ProductPlan& plan, const ProductPlan::Algorithm& algorithm,
                     const MatrixProduct& product) {
    return plan.run(library.get(), algorithm, product, workspace.data(), Blas::kWorkspaceBytes,
                    gpu.stream());
  }
  double time(const ProductPlan& plan, const ProductPlan::Algorithm& algorithm);
  double time_if_fast(const ProductPlan& plan, const ProductPlan::Algorithm& algorithm,
                      double fastest);
  std::vector<double> time_in_turns(const ProductPlan& plan,
                                    const std::vector<const ProductPlan::Algorithm*>& algorithms);
  std::optional<std::uint64_t> repeatable_result(const ProductPlan& plan,
                                                 const ProductPlan::Algorithm& algorithm);

  /// What is known of one product.
  struct Contest {
    const ProductPlan& plan;
    std::vector<ProductPlan::Algorithm> suggestions;
    FoundProduct found{};
    bool lost_first = false;  // the first suggestion's attributes do not tell it in full
    double fastest = kNever;  // of all that were timed
    std::set<ProductAlgorithm> seen{};
    std::vector<Candidate> candidates{};
  };
  /// Times an algorithm that was not seen before and makes it a candidate.
  void consider(Contest& contest, const ProductAlgorithm& attributes);
  void time_suggestions(Contest& contest);
  /// Considers the neighbours of what is fast, from the fastest on.
  void explore(Contest& contest, Deadline deadline);
  /// Times the fastest again, and leaves them alone in `candidates`, sorted.
  void time_finalists(Contest& contest);
  /// The fastest whose results do not vary and are right.
  std::optional<FoundProduct> winner(Contest& contest);
  std::optional<FoundProduct> search(const MatrixProduct& product, double seconds);
};

void ProductSearch::State::make_matrices(const MatrixProduct& product) {
  const auto bytes_of_matrix = [](const DeviceMatrix& m) {
    return ceil_div(stored_elements(m) * size_of(m.dtype), 256) * 256;
  };
  const std::int64_t result_bytes = bytes_of_matrix(product.to);
  const std::int64_t set_bytes =
      result_bytes + bytes_of_matrix(product.left) + bytes_of_matrix(product.right);
  const std::int64_t count =
      std::clamp<std::int64_t>(ceil_div(kBytesInTurn, set_bytes), 1, kMaxLaunches);
  const std::int64_t needed = result_bytes + count * set_bytes;
  if (needed > memory.bytes()) {
    memory = Buffer();
    memory = allocate(gpu, needed, kWho);
  }
  std::byte* free = memory.data();
  std::uint32_t seed = 0;
  const auto place = [&](DeviceMatrix& m) {
    m.data = free;
    free += bytes_of_matrix(m);
    measure.fill_random(memory_of(m), ++seed);
  };
  DeviceMatrix result = product.to;
  place(result);
  reference = memory_of(result);
  sets.assign(static_cast<std::size_t>(count), product);
  for (MatrixProduct& set : sets) {
    for (DeviceMatrix* m : {&set.to, &set.left, &set.right}) place(*m);
  }
}

/// Seconds of one product, launched several times on matrices that the cache does not hold.
double ProductSearch::State::time(const ProductPlan& plan,
                                  const ProductPlan::Algorithm& algorithm) {
  measure.flush_cache();  // also gives the CPU time to be ahead
  begin.record(gpu);
  for (int i = 0; i < launches; ++i) {
    next_set = (next_set + 1) % sets.size();
    if (run(plan, algorithm, sets[next_set]) != CUBLAS_STATUS_SUCCESS) return kNever;
  }
  end.record(gpu);
  return end.seconds_since(begin) / launches;
}

/// The shortest of some timings; of one where that shows that others are much faster.
double ProductSearch::State::time_if_fast(const ProductPlan& plan,
                                          const ProductPlan::Algorithm& algorithm, double fastest) {
  // The library loads a kernel when it is launched first.
  if (run(plan, algorithm, sets[0]) != CUBLAS_STATUS_SUCCESS) return kNever;
  gpu.wait();
  double shortest = time(plan, algorithm);
  for (int i = 0; i < 2 && shortest < kHopeless * fastest; ++i) {
    shortest = std::min(shortest, time(plan, algorithm));
  }
  return shortest;
}

/// The median of each.
std::vector<double> ProductSearch::State::time_in_turns(
    const ProductPlan& plan, const std::vector<const ProductPlan::Algorithm*>& algorithms) {
  std::vector<std::array<double, kRounds>> times(algorithms.size());
  for (std::size_t round = 0; round < kRounds; ++round) {
    for (std::size_t i = 0; i < algorithms.size(); ++i)
      times[i][round] = time(plan, *algorithms[i]);
  }
  std::vector<double> medians;
  for (auto& of_one : times) {
    std::ranges::nth_element(of_one, of_one.begin() + kRounds / 2);
    medians.push_back(of_one[kRounds / 2]);
  }
  return medians;
}

/// Whatever the workspace holds before: a checksum of the result, which is left in the first set.
/// None when it varies.
std::optional<std::uint64_t> ProductSearch::State::repeatable_result(
    const ProductPlan& plan, const ProductPlan::Algorithm& algorithm) {
  constexpr int kRuns = 4;
  const Tensor result = memory_of(sets[0].to);
  std::set<std::uint64_t> seen;
  for (int i = 0; i < kRuns; ++i) {
    measure.fill_random(result, 0);
    if (i == 0) measure.spoil(workspace);
    if (i == 1) measure.flush_cache();
    if (run(plan, algorithm, sets[0]) != CUBLAS_STATUS_SUCCESS) return std::nullopt;
    seen.insert(measure.checksum(result));
  }
  if (seen.size() > 1) return std::nullopt;
  return *seen.begin();
}

void ProductSearch::State::consider(Contest& contest, const ProductAlgorithm& attributes) {
  if (!contest.seen.insert(attributes).second) return;
  const auto algorithm =
      contest.plan.algorithm_of(library.get(), Blas::kWorkspaceBytes, attributes);
  if (!algorithm) return;
  const double time = time_if_fast(contest.plan, *algorithm, contest.fastest);
  if (time == kNever) return;
  ++contest.found.timed;
  contest.fastest = std::min(contest.fastest, time);
  contest.candidates.push_back({attributes, *algorithm, time});
}

void ProductSearch::State::time_suggestions(Contest& contest) {
  FoundProduct& found = contest.found;
  found.suggestions = static_cast<int>(contest.suggestions.size());
  found.lost_seconds = kNever;
  launches = 1;
  contest.fastest = time_if_fast(contest.plan, contest.suggestions.front(), kNever);
  launches = std::clamp(static_cast<int>(kTimedSeconds / contest.fastest), 1, kMaxLaunches);
  for (const auto& suggestion : contest.suggestions) {
    const ProductAlgorithm attributes = cuda::attributes_of(suggestion);
    consider(contest, attributes);
    const auto restored =
        contest.plan.algorithm_of(library.get(), Blas::kWorkspaceBytes, attributes);
    if (restored && std::memcmp(&*restored, &suggestion, sizeof(suggestion)) == 0) continue;
    ++found.lost;
    contest.lost_first |= &suggestion == &contest.suggestions.front();
    found.lost_seconds =
        std::min(found.lost_seconds, time_if_fast(contest.plan, suggestion, contest.fastest));
  }
}

void ProductSearch::State::explore(Contest& contest, Deadline deadline) {
  while (Clock::now() < deadline) {
    Candidate* best = nullptr;
    for (Candidate& candidate : contest.candidates) {
      if (!candidate.explored && candidate.seconds < kHopeless * contest.fastest &&
          (!best || candidate.seconds < best->seconds)) {
        best = &candidate;
      }
    }
    if (!best) break;
    best->explored = true;
    for (const ProductAlgorithm& attributes : neighbours(Candidate(*best))) {
      if (Clock::now() >= deadline) break;
      consider(contest, attributes);
    }
  }
}

void ProductSearch::State::time_finalists(Contest& contest) {
  std::vector<Candidate>& candidates = contest.candidates;
  std::ranges::sort(candidates, {}, &Candidate::seconds);
  candidates.erase(candidates.begin() + std::min(std::ssize(candidates), kFinalists),
                   candidates.end());
  std::vector<const ProductPlan::Algorithm*> finalists{&contest.suggestions.front()};
  for (const Candidate& candidate : candidates) finalists.push_back(&candidate.algorithm);
  const std::vector<double> medians = time_in_turns(contest.plan, finalists);
  for (std::size_t i = 0; i < candidates.size(); ++i) candidates[i].seconds = medians[i + 1];
  std::ranges::sort(candidates, {}, &Candidate::seconds);
  contest.found.first_seconds = medians[0];
}

std::optional<FoundProduct> ProductSearch::State::winner(Contest& contest) {
  FoundProduct& found = contest.found;
  const ProductPlan::Algorithm& first = contest.suggestions.front();
  const bool first_repeats = repeatable_result(contest.plan, first).has_value();
  copy(gpu, memory_of(sets[0].to), reference);
  const double limit = sets[0].to.dtype == Dtype::kBf16 ? 5e-3 : 1e-4;
  for (const Candidate& candidate : contest.candidates) {
    if (first_repeats && candidate.seconds > kWorthIt * found.first_seconds) break;
    if (repeatable_result(contest.plan, candidate.algorithm) &&
        measure.relative_difference(memory_of(sets[0].to), reference) < limit) {
      found.algorithm = candidate.attributes;
      found.seconds = candidate.seconds;
      return found;
    }
    ++found.unrepeatable;
  }
  if (!first_repeats || contest.lost_first) return std::nullopt;
  found.algorithm = cuda::attributes_of(first);
  found.seconds = found.first_seconds;
  return found;
}

std::optional<FoundProduct> ProductSearch::State::search(const MatrixProduct& product,
                                                         double seconds) {
  const Deadline deadline = Clock::now() + std::chrono::duration<double>(seconds);
  make_matrices(product);
  const ProductPlan plan(kWho, sets[0]);
  Contest contest{
      .plan = plan,
      .suggestions = plan.suggestions(kWho, library.get(), Blas::kWorkspaceBytes, kSuggestions)};
  if (contest.suggestions.empty()) return std::nullopt;
  time_suggestions(contest);
  explore(contest, deadline);
  time_finalists(contest);
  return winner(contest);
}

ProductSearch::ProductSearch(CudaExec& gpu) : state_(std::make_unique<State>(gpu)) {}
ProductSearch::~ProductSearch() = default;

std::optional<FoundProduct> ProductSearch::search(const MatrixProduct& product, double seconds) {
  return state_->search(product, seconds);
}

double bytes_of(const MatrixProduct& product) {
  const auto bytes = [](const DeviceMatrix& m) {
    return static_cast<double>(m.rows * m.columns * size_of(m.dtype));
  };
  return bytes(product.left) + bytes(product.right) +
         bytes(product.to) * (product.mode == GradMode::kAdd ? 2 : 1);
}

double flops_of(const MatrixProduct& product) {
  return 2 * static_cast<double>(product.to.rows) * static_cast<double>(product.to.columns) *
         static_cast<double>(product.left.columns);
}

}  // namespace jiboia
