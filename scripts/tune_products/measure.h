#pragma once
#include <cstdint>

#include "core/buffer.h"
#include "core/tensor.h"

namespace jiboia {
class CudaExec;

/// What is done on the GPU around timed products: random operands, and comparisons of results.
class Measure {
 public:
  explicit Measure(CudaExec& gpu);

  /// Random values, uniform in [-1, 1), of a contiguous f32 or bf16 tensor. Asynchronous.
  void fill_random(const Tensor& to, std::uint32_t seed);
  /// Every byte of a range becomes 0xFF: NaN, whatever is read from it. Asynchronous.
  void spoil(const Buffer& buffer);
  /// A number that depends on every bit of a tensor and on its place. Waits.
  std::uint64_t checksum(const Tensor& of);
  /// ||a - b|| / ||b||, of contiguous tensors of one dtype. Waits.
  double relative_difference(const Tensor& a, const Tensor& b);
  /// Reads more memory than a GPU caches, so that nothing else is left in the cache, which has
  /// nothing to write back either. Asynchronous.
  void flush_cache();

 private:
  CudaExec* gpu_;
  Buffer sums_, much_;
};

}  // namespace jiboia
