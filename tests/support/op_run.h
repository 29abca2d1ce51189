#pragma once
#include <algorithm>
#include <span>
#include <vector>

#include "tests/support/op_check_cuda.h"

namespace jiboia::test {

/// An op run once, forward and backward, on values that a test may change first.
template <class Op>
struct OpRun {
  template <class T>
  using In = typename Op::template In<T>;
  template <class T>
  using Out = typename Op::template Out<T>;

  /// Inputs as check_op() would draw them, among activations of dtype `activation`.
  explicit OpRun(const OpCheck<Op>& check, Dtype activation = Dtype::kF32)
      : in(draw_inputs(check, activation)), attrs(attrs_among<Op>(activation, check.attrs)) {}

  void forward(int threads = 1) {
    detail::CpuPlace cpu(threads);
    forward_at(cpu);
  }
  /// After forward(): the gradients of all inputs, from `grad_out`, where absent means none.
  void backward(int threads = 1) {
    detail::CpuPlace cpu(threads);
    backward_at(cpu);
  }

  /// The same on GPU 0; launched several times, it has to give the same bits. Errors: Cuda without
  /// one.
  void forward_cuda([[maybe_unused]] int launches = 1) {
#if JIBOIA_WITH_CUDA
    CudaPlace place;
    forward_at(place, launches);
#else
    gpu();
#endif
  }
  void backward_cuda([[maybe_unused]] int launches = 1) {
#if JIBOIA_WITH_CUDA
    CudaPlace place;
    backward_at(place, launches);
#else
    gpu();
#endif
  }

  /// The same values and output gradients in f64, for a run to compare with.
  OpRun in_f64() const {
    OpRun wide = *this;
    wide.attrs = attrs_among<Op>(Dtype::kF64, attrs);
    for (TestTensor& tensor : fields<TestTensor>(wide.in)) tensor = widened(tensor);
    for (TestTensor& tensor : fields<TestTensor>(wide.grad_out)) tensor = widened(tensor);
    wide.out = {};
    wide.grad_in = {};
    return wide;
  }

  In<TestTensor> in{}, grad_in{};
  Out<TestTensor> out{}, grad_out{};
  typename Op::Attrs attrs;

 private:
  template <class Place>
  void forward_at(Place& place, int launches = 1) {
    out = map_fields<TestTensor, Out<TestTensor>, Spec>(
        Op::infer(specs(), attrs), [](const Spec& spec) { return TestTensor(spec); });
    TestTensor memory = scratch(place, Pass::kForward);
    const ForwardArgs<Op> args{put<In<Tensor>>(place, in), put<Out<Tensor>>(place, out), attrs,
                               bytes_of(place.put(memory))};
    run(place, launches, [&] { Op::forward(place.exec(), args); });
  }
  template <class Place>
  void backward_at(Place& place, int launches = 1) {
    In<Grad> grads{};
    for (std::size_t i = 0; i < std::size(Op::kInputs); ++i) {
      const Spec& spec = fields<TestTensor>(in)[i].spec();
      TestTensor& grad = fields<TestTensor>(grad_in)[i];
      grad = TestTensor();
      if (!spec || input_kind<Op>(i) == InputKind::kIndex) continue;
      grad = TestTensor(Spec(gradient_dtype_of(input_kind<Op>(i), spec.dtype), spec.shape));
      fields<Grad>(grads)[i] = Grad(place.put(grad), GradMode::kOverwrite);
    }
    TestTensor memory = scratch(place, Pass::kBackward);
    const BackwardArgs<Op> args{put<In<Tensor>>(place, in),
                                put<Out<Tensor>>(place, out),
                                attrs,
                                put<Out<Tensor>>(place, grad_out),
                                grads,
                                bytes_of(place.put(memory))};
    run(place, launches, [&] { Op::backward(place.exec(), args); });
  }
  template <class Place, class Run>
  static void run(Place& place, int launches, const Run& pass) {
    std::vector<std::string> failures;
    place.run(pass, launches, failures);
    EXPECT_THAT(failures, testing::IsEmpty());
  }

  template <class Tensors, class Place, class TestTensors>
  static Tensors put(Place& place, TestTensors& from) {
    Tensors result{};
    for (std::size_t i = 0; i < fields<Tensor>(result).size(); ++i) {
      TestTensor& tensor = fields<TestTensor>(from)[i];
      if (tensor) fields<Tensor>(result)[i] = place.put(tensor);
    }
    return result;
  }
  static std::span<std::byte> bytes_of(const Tensor& memory) {
    return {static_cast<std::byte*>(memory.data), static_cast<std::size_t>(memory.size())};
  }
  static TestTensor widened(const TestTensor& tensor) {
    if (!tensor || tensor.spec().dtype == Dtype::kI32) return tensor;
    TestTensor wide(Spec(Dtype::kF64, tensor.spec().shape));
    for (std::int64_t i = 0; i < wide.size(); ++i) wide.set(i, tensor.get(i));
    return wide;
  }
  In<Spec> specs() const {
    return map_fields<Spec, In<Spec>, TestTensor>(
        in, [](const TestTensor& tensor) { return tensor.spec(); });
  }
  template <class Place>
  TestTensor scratch(const Place& place, Pass pass) const {
    TestTensor memory(Spec(Dtype::kU8, {scratch_bytes<Op>(place.exec(), pass, specs(), attrs)}));
    memory.fill_bytes(std::byte{0xFF});
    return memory;
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
