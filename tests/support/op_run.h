#pragma once
#include <algorithm>
#include <vector>

#include "tests/support/op_check.h"

namespace jiboia::test {

/// An op run once, forward and backward, on values that a test may change first.
template <class Op>
struct OpRun {
  template <class T>
  using In = typename Op::template In<T>;
  template <class T>
  using Out = typename Op::template Out<T>;

  /// Inputs as check_op() would draw them, in `dtype`.
  explicit OpRun(const OpCheck<Op>& check, Dtype dtype = Dtype::kF32)
      : in(draw_inputs(check, dtype)), attrs(check.attrs) {}

  void forward(int threads = 1) {
    out = map_fields<TestTensor, Out<TestTensor>, Spec>(
        Op::infer(specs(), attrs), [](const Spec& spec) { return TestTensor(spec); });
    CpuExec cpu(threads);
    auto memory = scratch(cpu, Pass::kForward);
    Op::forward(cpu, {tensors<In<Tensor>>(in), tensors<Out<Tensor>>(out), attrs, memory});
  }

  /// After forward(): the gradients of all inputs, from `grad_out`, where absent means none.
  void backward(int threads = 1) {
    grad_in = map_fields<TestTensor, In<TestTensor>, TestTensor>(
        in, [](const TestTensor& tensor) { return TestTensor(tensor.spec()); });
    const auto grads = map_fields<Grad, In<Grad>, TestTensor>(
        grad_in, [](const TestTensor& grad) { return Grad(grad.tensor(), GradMode::kOverwrite); });
    CpuExec cpu(threads);
    auto memory = scratch(cpu, Pass::kBackward);
    Op::backward(cpu, {tensors<In<Tensor>>(in), tensors<Out<Tensor>>(out), attrs,
                       tensors<Out<Tensor>>(grad_out), grads, memory});
  }

  In<TestTensor> in{}, grad_in{};
  Out<TestTensor> out{}, grad_out{};
  typename Op::Attrs attrs;

 private:
  template <class Tensors, class TestTensors>
  static Tensors tensors(const TestTensors& from) {
    return map_fields<Tensor, Tensors, TestTensor>(
        from, [](const TestTensor& tensor) { return tensor.tensor(); });
  }
  In<Spec> specs() const {
    return map_fields<Spec, In<Spec>, TestTensor>(
        in, [](const TestTensor& tensor) { return tensor.spec(); });
  }
  std::vector<std::byte> scratch(const CpuExec& cpu, Pass pass) const {
    return std::vector<std::byte>(
        static_cast<std::size_t>(scratch_bytes<Op>(cpu, pass, specs(), attrs)), std::byte{0xFF});
  }
};

/// Steps [begin, end) of a (B, L, ...) tensor.
inline TestTensor steps_of(const TestTensor& whole, std::int64_t begin, std::int64_t end) {
  const Shape shape = whole.spec().shape;
  const std::int64_t length = end - begin, width = shape.rank() == 3 ? shape[2] : 1;
  TestTensor part(Spec(whole.spec().dtype, shape.with(1, length)));
  for (std::int64_t i = 0; i < part.size(); ++i) {
    const std::int64_t row = i / width, step = begin + row % length;
    part.set(i, whole.get((row / length * shape[1] + step) * width + i % width));
  }
  return part;
}

/// A tensor like `like` with pseudo-random values in [-1, 1) that f32 holds exactly.
inline TestTensor random_like(const TestTensor& like, std::uint32_t stream) {
  TestTensor result(like.spec());
  const Philox random(11, RandomPurpose::kTest, stream);
  for (std::int64_t i = 0; i < result.size(); ++i) {
    result.set(i, static_cast<float>(2 * random.uniform(static_cast<std::uint64_t>(i)) - 1));
  }
  return result;
}

}  // namespace jiboia::test
