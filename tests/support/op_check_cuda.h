#pragma once
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "tests/support/device_tensor.h"
#include "tests/support/emulated_order.h"
#include "tests/support/op_check.h"

/// One call tests an op on the GPU: check_op_cuda(OpCheck<Op>{...}).
namespace jiboia::test {

namespace detail {

/// How far a value may lie from the exact one.
struct Tolerance {
  double of_largest = 0;  ///< times the largest exact value of the tensor
  double of_element = 0;  ///< times the exact value
  double absolute = 1e-6;
};

/// "" when got - offset is close to want, element by element. What is added to an offset may have
/// been rounded before, as cuBLASLt's bf16 products are: then the rounding counts twice.
inline std::string device_difference(const std::string& what, const TestTensor& got,
                                     const TestTensor& want, const Tolerance& tolerance,
                                     double offset = 0) {
  const double everywhere = tolerance.of_largest * want.largest() + tolerance.absolute;
  for (std::int64_t i = 0; i < want.size(); ++i) {
    const double exact = want.get(i) + offset;
    const double rounded = std::abs(exact) + (offset == 0 ? 0 : std::abs(want.get(i)));
    const double limit = everywhere + tolerance.of_element * rounded;
    if (!(std::abs(got.get(i) - exact) <= limit)) {
      return fmt::format("{}: element {} is {:.9g}, expected {:.9g} (limit {:.3g})", what, i,
                         got.get(i), exact, limit);
    }
  }
  return "";
}

}  // namespace detail

#if JIBOIA_WITH_CUDA
namespace detail {

/// Times that every pass is launched: JIBOIA_GPU_LAUNCHES, 2 by default.
inline int gpu_launches() {
  const char* launches = std::getenv("JIBOIA_GPU_LAUNCHES");
  return launches ? std::max(1, std::atoi(launches)) : 2;
}

/// The check on the GPU, with activations of one dtype.
template <class Op>
class CudaChecker {
 public:
  CudaChecker(const OpCheck<Op>& check, Dtype activation)
      : check_(check), runner_(check), activation_(activation) {}

  /// With `planted`, the gradient of that input is spoilt first.
  std::vector<std::string> failures(std::optional<std::size_t> planted = {}) {
    planted_ = planted;
    const Run exact = runner_.run({.activation = Dtype::kF64, .values = activation_});
    const Run base = run({.launches = planted_ ? 1 : gpu_launches()});
    note(base.failures);
    compare("", base, exact, 0);
    compare("added ", run({.prefill = Prefill::kOnes}), exact, 1);
    const OtherEmulatedOrder order;
    const Run again = run({.scratch_fill = std::byte{0}});
    note(again.failures);
    note(changes(again.out, base.out, Op::kOutputs, "has other bits again"));
    note(changes(again.grad_in, base.grad_in, Op::kInputs, "gradient has other bits again"));
    skips_absent_gradients(base);
    if constexpr (!Loss<Op>) takes_absent_gradients_for_zero(base);
    return failures_;
  }

 private:
  void note(const std::string& failure) {
    if (failure.empty()) return;
    failures_.push_back(
        fmt::format("{} on the GPU in {}: {}", Op::kName, to_string(activation_), failure));
  }
  void note(const std::vector<std::string>& failures) {
    for (const auto& failure : failures) note(failure);
  }

  Run run(RunOptions options) const {
    options.activation = activation_;
    CudaPlace place;
    Run run = runner_.run(place, options);
    if (planted_) spoil(run.grad_in.tensors[*planted_], options.prefill);
    return run;
  }
  /// As if the op's formula were off by a part that is well above the tolerance.
  void spoil(TestTensor& gradient, Prefill prefill) const {
    const double before = prefill == Prefill::kOnes ? 1 : 0;
    const double part = activation_ == Dtype::kBf16 ? 0.05 : 1e-3;
    for (std::int64_t k = 0; k < gradient.size(); ++k) {
      const double x = gradient.get(k);
      gradient.set(k, x + part * (x - before));
    }
  }

  Tolerance tolerance(Dtype stored) const {
    if (activation_ != Dtype::kBf16) {
      return {.of_largest = 10 * check_.f32_relative, .of_element = 0x1p-23};
    }
    return {.of_largest = check_.bf16_relative,
            .of_element = stored == Dtype::kBf16 ? 0x1p-8 : 0x1p-23};
  }

  /// `offset` is what the gradients' memory held before, when they were added to.
  void compare(const std::string& what, const Run& got, const Run& want, double offset) {
    note(got.failures);
    for (std::size_t i = 0; i < want.out.tensors.size(); ++i) {
      const TestTensor& out = got.out.tensors[i];
      // What is saved for backward is the op's own affair, and its shape may be the dtype's.
      if (out.spec().shape != want.out.tensors[i].spec().shape && runner_.is_saved(i)) continue;
      note(device_difference(fmt::format("{}{}", what, Op::kOutputs[i]), out, want.out.tensors[i],
                             tolerance(out.spec().dtype)));
    }
    for (std::size_t i = 0; i < runner_.input_count(); ++i) {
      const TestTensor& gradient = got.grad_in.tensors[i];
      note(device_difference(fmt::format("{}gradient of {}", what, Op::kInputs[i]), gradient,
                             want.grad_in.tensors[i], tolerance(gradient.spec().dtype), offset));
    }
  }

  void skips_absent_gradients(const Run& all) {
    for (std::size_t i = 0; i < runner_.input_count(); ++i) {
      if (!runner_.has_gradient(i)) continue;
      Run others = run({.without_grad_in = i});
      others.grad_in.tensors[i] = all.grad_in.tensors[i];
      note(others.failures);
      const std::string what = fmt::format("has other bits without {}'s gradient", Op::kInputs[i]);
      note(changes(others.out, all.out, Op::kOutputs, what));
      note(changes(others.grad_in, all.grad_in, Op::kInputs, "gradient " + what));
    }
  }

  /// Of an op with several outputs that carry gradients.
  void takes_absent_gradients_for_zero(const Run& all) {
    const auto carries_gradient = [&](std::size_t i) {
      return all.out.tensors[i] && !runner_.is_saved(i);
    };
    std::int64_t carriers = 0;
    for (std::size_t i = 0; i < all.out.tensors.size(); ++i) carriers += carries_gradient(i);
    for (std::size_t i = 0; i < all.out.tensors.size() && carriers > 1; ++i) {
      if (!carries_gradient(i)) continue;
      compare(fmt::format("without the gradient of {}, ", Op::kOutputs[i]),
              run({.without_grad_out = i}),
              runner_.run({.activation = Dtype::kF64, .values = activation_, .zero_grad_out = i}),
              0);
    }
  }

  const OpCheck<Op>& check_;
  const Runner<Op> runner_;
  Dtype activation_;
  std::optional<std::size_t> planted_{};
  std::vector<std::string> failures_;
};

/// Whether a check is too large for JIBOIA_SMALL_SHAPES.
template <class Op>
bool is_left_out(const OpCheck<Op>& check) {
  constexpr std::int64_t kMostElements = 4 * 65 * 64;
  return only_small_shapes() &&
         std::ranges::any_of(fields<const TestInput>(check.inputs), [](const TestInput& input) {
           return input.present() && input.shape.size() > kMostElements;
         });
}

template <class Op>
void check_op_on_gpu(const OpCheck<Op>& check, PlantErrors plant) {
  if (is_left_out(check)) return;
  for (Dtype activation : {Dtype::kF32, Dtype::kBf16}) {
    EXPECT_THAT(CudaChecker<Op>(check, activation).failures(), testing::IsEmpty());
    if (plant == PlantErrors::kNo) continue;
    for (std::size_t i = 0; i < std::size(Op::kInputs); ++i) {
      if (!Runner<Op>(check).has_gradient(i)) continue;
      const std::string named = fmt::format("gradient of {}: element", Op::kInputs[i]);
      EXPECT_THAT(CudaChecker<Op>(check, activation).failures(i),
                  testing::AllOf(testing::Not(testing::IsEmpty()),
                                 testing::Each(testing::HasSubstr(named))))
          << "with an error planted in the gradient of " << Op::kInputs[i];
    }
  }
}

}  // namespace detail
#endif

/// Checks, for an op on the GPU, with activations in f32 and in bf16: it is as close to the CPU's
/// f64 on the same (rounded) values as OpCheck's tolerances say; same bits in every one of
/// JIBOIA_GPU_LAUNCHES launches, whatever scratch memory held; guard bytes around everything,
/// inputs and output gradients stay intact; overwritten gradients do not depend on what was there,
/// added ones add; gradients that nobody wants change no other, those that no output got count as
/// zero; nothing undeclared is read backwards. With PlantErrors::kYes an error planted in each
/// gradient in turn has to be noticed, there and nowhere else.
/// Skips the test without a GPU, as JIBOIA_SKIP_WITHOUT_GPU() does.
template <class Op>
void check_op_cuda(const OpCheck<Op>& check, PlantErrors plant = PlantErrors::kNo) {
  JIBOIA_SKIP_WITHOUT_GPU();
#if JIBOIA_WITH_CUDA
  detail::check_op_on_gpu(check, plant);
#else
  (void)check, (void)plant;
#endif
}

}  // namespace jiboia::test
