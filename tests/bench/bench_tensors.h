#pragma once
#include <functional>
#include <map>
#include <vector>

#include "core/memory.h"

namespace jiboia::bench {

/// Tensors for one benchmark case, where an Exec computes, filled with values that repeat after
/// kPeriod elements: enough for timing, and quick to make.
class BenchTensors {
 public:
  /// Above (D, N) of the largest model, and no multiple of a row, so that rows differ.
  static constexpr std::int64_t kPeriod = (1 << 18) + 8;

  explicit BenchTensors(Exec& exec);

  Exec& exec() { return exec_; }
  Tensor zeros(const Spec& spec);
  /// Element i becomes value(i % kPeriod). `spec` is contiguous, f64, f32, bf16, i32 or u8.
  Tensor filled(const Spec& spec, const std::function<double(std::int64_t)>& value);
  /// Normally distributed.
  Tensor normal(const Spec& spec, double deviation = 1);
  /// Where the gradient of `value` lies: as `value` lies in the tensor that it is a slice of.
  Tensor gradient_of(const Tensor& value, Dtype dtype);
  /// Gives all tensors back.
  void clear();

 private:
  struct Allocation {
    Tensor whole;
    Buffer memory;
  };
  const Tensor& allocate_whole(const Spec& spec);

  Exec& exec_;
  Buffer staging_;
  std::vector<double> normals_;
  std::vector<Allocation> allocations_;
  std::map<const void*, Tensor> gradients_;  ///< by the address of the whole value
  std::int64_t drawn_ = 0;
};

/// a_log (D, N) as models begin with it: ln(1), ..., ln(N) along every row.
Tensor first_a_log(BenchTensors& tensors, const Spec& spec);
/// dt_bias (D) likewise: softplus of it is log-uniform in [0.001, 0.1].
Tensor first_dt_bias(BenchTensors& tensors, const Spec& spec);

/// Columns [begin, begin + count) of every row.
Tensor columns_of(const Tensor& tensor, std::int64_t begin, std::int64_t count);

}  // namespace jiboia::bench
