#pragma once
#include <gtest/gtest.h>

#include <span>
#include <utility>
#include <vector>

#include "core/memory.h"
#include "tests/support/gpu.h"

namespace jiboia::test {

/// Values in the memory where an exec computes, followed by bytes that nobody may change. For
/// functions that are no ops; ops have check_op().
template <class T>
class Placed {
 public:
  Placed(Exec& exec, std::vector<T> values, Dtype dtype = kDtypeOf<T>)
      : exec_(&exec), values_(std::move(values)), dtype_(dtype) {
    values_.resize(values_.size() + kGuard, T(93));
    memory_ = allocate(exec, static_cast<std::int64_t>(values_.size() * sizeof(T)), "a test");
    copy(exec, host(), device());
    wait(exec);
  }

  /// The values' tensor, without the first `begin`.
  Tensor tensor(std::int64_t begin = 0) const {
    const auto size = static_cast<std::int64_t>(values_.size() - kGuard);
    return {Spec(dtype_, {size - begin}), memory_.data() + begin * size_of(dtype_)};
  }
  /// All of it as bytes.
  std::span<std::byte> bytes() const {
    return {memory_.data(), (values_.size() - kGuard) * sizeof(T)};
  }

  /// What the values are now. Waits for the exec's work.
  std::vector<T> values() {
    copy(*exec_, device(), host());
    wait(*exec_);
    for (std::size_t i = values_.size() - kGuard; i < values_.size(); ++i) {
      EXPECT_EQ(values_[i], T(93)) << "was written behind the end";
    }
    return {values_.begin(), values_.end() - kGuard};
  }

 private:
  static constexpr std::size_t kGuard = 64;  ///< elements

  Tensor host() {
    return {Spec(dtype_, {static_cast<std::int64_t>(values_.size())}), values_.data()};
  }
  Tensor device() const {
    return {Spec(dtype_, {static_cast<std::int64_t>(values_.size())}), memory_.data()};
  }

  Exec* exec_;
  std::vector<T> values_;
  Dtype dtype_;
  Buffer memory_;
};

/// Runs test(exec) on the GPU; skips without one.
inline void run_on_gpu(void (*test)(Exec&)) {
  JIBOIA_SKIP_WITHOUT_GPU();
#if JIBOIA_WITH_CUDA
  Exec exec = CudaExec(0);
  test(exec);
#else
  (void)test;
#endif
}

}  // namespace jiboia::test
