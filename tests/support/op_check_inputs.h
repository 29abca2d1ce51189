#pragma once
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "core/op.h"
#include "tests/support/test_tensor.h"

/// What a check of an op is told: inputs, tolerances, a plain formula.
namespace jiboia::test {

/// How a test fills one input. Default: absent.
struct TestInput {
  Shape shape{};
  double low = 0, high = 0;              ///< floating-point inputs: uniform in [low, high)
  std::vector<std::int32_t> integers{};  ///< i32 inputs: the values
  std::int64_t columns_before = 0;       ///< > 0: the input is a slice of columns
  std::int64_t columns_after = 0;
  std::vector<int> free_dimensions{};  ///< dimensions that no other argument ties down
  bool constant = false;               ///< gets no gradient

  bool present() const { return shape.rank() > 0; }
  bool is_integer() const { return !integers.empty(); }
};

template <class Op>
struct OpCheck {
  template <class T>
  using In = typename Op::template In<T>;
  template <class T>
  using Out = typename Op::template Out<T>;

  In<TestInput> inputs;
  typename Op::Attrs attrs{};
  /// Outputs that carry no gradient: saved values.
  std::vector<std::string> saved_outputs{};
  /// The op's formula written plainly, in f64: fills `out` (saved outputs may be left alone).
  std::function<void(const In<Tensor>& in, const typename Op::Attrs&, const Out<Tensor>& out)>
      reference{};
  /// |f32 - f64| <= f32_relative * max|f64| + 1e-6 for every output and gradient; on the GPU ten
  /// times that.
  double f32_relative = 1e-5;
  /// On the GPU with bf16 activations, against f64 on the same rounded inputs:
  /// |bf16 - f64| <= bf16_relative * max|f64| + 1e-6 for what is stored in fp32, and 2^-8 |f64|
  /// more, the rounding, for what is stored in bf16. An op that rounds to bf16 inside needs more
  /// than this, up to 2e-3; its test says which rounding that is. Still more, up to 2^-8, wants a
  /// stricter test beside it, against a formula with the same roundings.
  double bf16_relative = 1e-4;
  /// Elements of each input whose gradient is held against finite differences, spread over it.
  std::int64_t gradient_samples = 40;
};

/// The kind of input `i` of an op.
template <class Op>
InputKind input_kind(std::size_t i) {
  const auto kinds = Op::kInputKinds;
  return fields<const InputKind>(kinds)[i];
}

/// The attributes of an op among activations of dtype `activation`.
template <class Op>
typename Op::Attrs attrs_among(Dtype activation, typename Op::Attrs attrs) {
  if constexpr (requires { attrs.activations; }) {
    attrs.activations = activation == Dtype::kBf16 ? Activations::kBf16 : Activations::kFull;
  }
  return attrs;
}

/// The inputs of a check among activations of dtype `activation`: pseudo-random numbers that f32
/// holds exactly, so that f32 and f64 compute from the same ones. Those that would be stored in
/// bf16 among activations of dtype `values` are rounded to it.
template <class Op>
auto draw_inputs(const OpCheck<Op>& check, Dtype activation, Dtype values) {
  using In = typename Op::template In<TestTensor>;
  return map_fields<TestTensor, In, TestInput>(
      check.inputs, [=, i = std::size_t{0}](const TestInput& how) mutable {
        const InputKind kind = input_kind<Op>(i);
        const Philox random(20260101, RandomPurpose::kTest, static_cast<std::uint32_t>(i++));
        if (!how.present()) return TestTensor();
        TestTensor tensor(Spec(dtype_of(kind, activation), how.shape), how.columns_before,
                          how.columns_after);
        const bool rounds = dtype_of(kind, values) == Dtype::kBf16;
        for (std::int64_t k = 0; k < tensor.size(); ++k) {
          if (kind == InputKind::kIndex) {
            tensor.set(k, how.integers[static_cast<std::size_t>(k)]);
          } else {
            const auto x = static_cast<float>(
                how.low + (how.high - how.low) * random.uniform(static_cast<std::uint64_t>(k)));
            tensor.set(k, rounds ? float_from_bf16(bf16_from_float(x)) : x);
          }
        }
        return tensor;
      });
}
template <class Op>
auto draw_inputs(const OpCheck<Op>& check, Dtype activation) {
  return draw_inputs(check, activation, activation);
}

}  // namespace jiboia::test
