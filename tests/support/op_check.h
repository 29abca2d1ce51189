#pragma once
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "autograd/differentiable.h"
#include "tests/support/op_check_run.h"
#include "tests/support/planted_error.h"

/// One call tests an op on the CPU: check_op(OpCheck<Op>{...}). op_check_cuda.h has the other one.
namespace jiboia::test {

namespace detail {

/// The check on the CPU.
template <class Op>
class Checker {
 public:
  template <class T>
  using In = typename Op::template In<T>;
  template <class T>
  using Out = typename Op::template Out<T>;

  explicit Checker(const OpCheck<Op>& check) : check_(check), runner_(check) {}

  std::vector<std::string> failures() {
    refuses_wrong_inputs();
    const Run exact = runner_.run({.activation = Dtype::kF64});
    const Run single = runner_.run({});
    note(exact.failures);
    note(single.failures);
    if (check_.reference) compare_with_reference(exact);
    compare_gradients_with_differences(exact);
    compare("f32", single, exact, check_.f32_relative, 1e-6, 0);
    compare("added f64", runner_.run({.activation = Dtype::kF64, .prefill = Prefill::kOnes}), exact,
            1e-12, 1e-12, 1);
    skips_absent_gradients(single);
    if constexpr (!Loss<Op>) takes_absent_gradients_for_zero();
    for (int threads : {1, 2, 3}) {
      const Run again = runner_.run({.threads = threads});
      const std::string what = fmt::format("has other bits on {} threads", threads);
      note(changes(again.out, single.out, Op::kOutputs, what));
      note(changes(again.grad_in, single.grad_in, Op::kInputs, "gradient " + what));
    }
    return failures_;
  }

 private:
  void note(const std::string& failure) {
    if (!failure.empty()) failures_.push_back(std::string(Op::kName) + ": " + failure);
  }
  void note(const std::vector<std::string>& failures) {
    for (const auto& failure : failures) note(failure);
  }

  void refuses_wrong_inputs() {
    for (std::size_t i = 0; i < runner_.input_count(); ++i) {
      const TestInput& input = runner_.input(i);
      if (!input.present()) continue;
      for (int d = 0; d < input.shape.rank(); ++d) {
        const auto& free = input.free_dimensions;
        if (std::find(free.begin(), free.end(), d) != free.end()) continue;
        In<Spec> wrong = runner_.specs(Dtype::kF32);
        Spec& spec = fields<Spec>(wrong)[i];
        spec = Spec(spec.dtype, spec.shape.with(d, spec.shape[d] + 1));
        expect_refused(wrong, Dtype::kF32,
                       fmt::format("{} with shape {}", Op::kInputs[i], spec.shape.to_string()));
      }
      refuses_dtype(i, Dtype::kU8, Dtype::kF32);
      if (input.is_integer() || float_inputs() == 1) continue;
      refuses_dtype(i, Dtype::kF64, Dtype::kF32);
      const bool is_bf16 = is_bf16_among_bf16(i);
      if (is_bf16 && bf16_inputs() == 1 && !attrs_name_activations()) continue;  // f32 then
      refuses_dtype(i, is_bf16 ? Dtype::kF32 : Dtype::kBf16, Dtype::kBf16);
    }
  }
  void refuses_dtype(std::size_t i, Dtype dtype, Dtype activation) {
    In<Spec> wrong = runner_.specs(activation);
    fields<Spec>(wrong)[i].dtype = dtype;
    expect_refused(wrong, activation,
                   fmt::format("{} of dtype {} among {} activations", Op::kInputs[i],
                               to_string(dtype), to_string(activation)));
  }
  std::int64_t float_inputs() const {
    return std::ranges::count_if(
        fields<const TestInput>(check_.inputs),
        [](const TestInput& input) { return input.present() && !input.is_integer(); });
  }
  bool is_bf16_among_bf16(std::size_t i) const {
    return runner_.input(i).present() && dtype_of(input_kind<Op>(i), Dtype::kBf16) == Dtype::kBf16;
  }
  std::int64_t bf16_inputs() const {
    std::int64_t count = 0;
    for (std::size_t i = 0; i < runner_.input_count(); ++i) count += is_bf16_among_bf16(i);
    return count;
  }
  static constexpr bool attrs_name_activations() {
    return requires(typename Op::Attrs attrs) { attrs.activations; };
  }
  void expect_refused(const In<Spec>& wrong, Dtype activation, const std::string& what) {
    try {
      (void)Op::infer(wrong, runner_.attrs(activation));
      note("accepted " + what);
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::kInvalidArgument) note(what + ": wrong kind of error");
      if (std::string(error.what()).find(Op::kName) == std::string::npos) {
        note(what + ": the error does not name the op: " + error.what());
      }
    }
  }

  void skips_absent_gradients(const Run& all) {
    for (std::size_t i = 0; i < runner_.input_count(); ++i) {
      if (!runner_.has_gradient(i)) continue;
      Run others = runner_.run({.without_grad_in = i});
      others.grad_in.tensors[i] = all.grad_in.tensors[i];
      note(others.failures);
      const std::string what = fmt::format("has other bits without {}'s gradient", Op::kInputs[i]);
      note(changes(others.out, all.out, Op::kOutputs, what));
      note(changes(others.grad_in, all.grad_in, Op::kInputs, "gradient " + what));
    }
  }

  /// Of an op with several outputs that carry gradients.
  void takes_absent_gradients_for_zero() {
    const Values out = runner_.make_outputs(Dtype::kF64);
    const auto carries_gradient = [&](std::size_t i) {
      return out.tensors[i] && !runner_.is_saved(i);
    };
    std::int64_t carriers = 0;
    for (std::size_t i = 0; i < out.tensors.size(); ++i) carriers += carries_gradient(i);
    for (std::size_t i = 0; i < out.tensors.size() && carriers > 1; ++i) {
      if (!carries_gradient(i)) continue;
      compare(fmt::format("f64 without the gradient of {},", Op::kOutputs[i]),
              runner_.run({.activation = Dtype::kF64, .without_grad_out = i}),
              runner_.run({.activation = Dtype::kF64, .zero_grad_out = i}), 1e-14, 1e-14, 0);
    }
  }

  void compare_with_reference(const Run& exact) {
    Values want = runner_.make_outputs(Dtype::kF64);
    CpuPlace cpu(1);
    Values in = exact.in;
    check_.reference(Runner<Op>::template put<In<Tensor>>(cpu, in), check_.attrs,
                     Runner<Op>::template put<Out<Tensor>>(cpu, want));
    for (std::size_t i = 0; i < want.tensors.size(); ++i) {
      if (runner_.is_saved(i)) continue;
      note(difference(fmt::format("{} against the plain formula", Op::kOutputs[i]),
                      exact.out.tensors[i], want.tensors[i], 1e-12, 1e-13));
    }
  }

  /// `offset` is what the gradients' memory held before, when they were added to.
  void compare(const std::string& what, const Run& got, const Run& want, double relative,
               double absolute, double offset) {
    note(got.failures);
    for (std::size_t i = 0; i < want.out.tensors.size(); ++i) {
      note(difference(fmt::format("{} {}", what, Op::kOutputs[i]), got.out.tensors[i],
                      want.out.tensors[i], relative, absolute));
    }
    for (std::size_t i = 0; i < runner_.input_count(); ++i) {
      TestTensor gradient = got.grad_in.tensors[i];
      for (std::int64_t k = 0; k < gradient.size(); ++k) gradient.set(k, gradient.get(k) - offset);
      note(difference(fmt::format("{} gradient of {}", what, Op::kInputs[i]), gradient,
                      want.grad_in.tensors[i], relative, absolute));
    }
  }

  Values forward(Values& in) const {
    CpuPlace cpu(1);
    std::vector<std::string> failures;
    return runner_.forward(cpu, in, {.activation = Dtype::kF64}, failures);
  }

  /// The scalar whose gradient a run computed.
  double objective(const Values& out, const Run& run) const {
    if constexpr (Loss<Op>) return out.tensors[0].get(0);
    double sum = 0;
    for (std::size_t i = 0; i < run.grad_out.tensors.size(); ++i) {
      const TestTensor& weight = run.grad_out.tensors[i];
      for (std::int64_t k = 0; k < weight.size(); ++k) sum += weight.get(k) * out.tensors[i].get(k);
    }
    return sum;
  }

  void compare_gradients_with_differences(const Run& exact) {
    constexpr double kStep = 1e-5;
    for (std::size_t i = 0; i < runner_.input_count(); ++i) {
      if (!runner_.has_gradient(i)) continue;
      const TestTensor& gradient = exact.grad_in.tensors[i];
      const std::int64_t size = gradient.size();
      const std::int64_t stride = std::max<std::int64_t>(1, size / check_.gradient_samples);
      const double scale = gradient.largest();
      for (std::int64_t k = (size - 1) % stride; k < size; k += stride) {
        Values in = exact.in;
        const double x = in.tensors[i].get(k);
        in.tensors[i].set(k, x + kStep);
        const double above = objective(forward(in), exact);
        in.tensors[i].set(k, x - kStep);
        const double below = objective(forward(in), exact);
        const double want = (above - below) / (2 * kStep);
        const double limit = 1e-6 * std::abs(want) + 1e-7 * scale + 1e-9;
        if (!(std::abs(gradient.get(k) - want) <= limit)) {
          note(fmt::format(
              "gradient of {}[{}] is {:.9g}, finite differences give {:.9g} (limit {:.3g})",
              Op::kInputs[i], k, gradient.get(k), want, limit));
          break;
        }
      }
    }
  }

  const OpCheck<Op>& check_;
  const Runner<Op> runner_;
  std::vector<std::string> failures_;
};

template <class Op, class Mutant>
void check_catches_planted_errors(const OpCheck<Op>& check) {
  OpCheck<Mutant> mutant{.inputs = {},
                         .attrs = check.attrs,
                         .saved_outputs = check.saved_outputs,
                         .f32_relative = check.f32_relative};
  mutant.inputs = check.inputs;
  for (std::size_t i = 0; i < fields<const TestInput>(check.inputs).size(); ++i) {
    const TestInput& input = fields<const TestInput>(check.inputs)[i];
    if (!input.present() || input.is_integer() || input.constant) continue;
    Mutant::input = i;
    EXPECT_THAT(Checker<Mutant>(mutant).failures(),
                testing::ElementsAre(testing::AllOf(
                    testing::HasSubstr(fmt::format(": gradient of {}[", Op::kInputs[i])),
                    testing::HasSubstr("finite differences give"))))
        << "with an error planted in the gradient of " << Op::kInputs[i];
  }
}

}  // namespace detail

/// Whether errors are planted, too: each gradient in turn is spoilt by 1e-4, and the check has to
/// fail, by its finite differences and nothing else. Once for each op is enough.
enum class PlantErrors { kNo, kYes };

/// Checks, for an op: every input of a wrong shape or dtype is refused by infer() with an error
/// that names the op; f64 gradients equal central differences; f32 is close to f64; the plain
/// formula, if given, is met; same bits again and on 1, 2, 3 threads; guard bytes and inputs stay
/// intact; overwritten gradients do not depend on what was there, added ones add; gradients that
/// nobody wants change no other, those that no output got count as zero; nothing undeclared is read
/// backwards.
template <class Op>
void check_op(const OpCheck<Op>& check, PlantErrors plant = PlantErrors::kNo) {
  if constexpr (Loss<Op>) {
    static_assert(DifferentiableLoss<Op>);
  } else {
    static_assert(Differentiable<Op>);
  }
  EXPECT_THAT(detail::Checker<Op>(check).failures(), testing::IsEmpty());
  if (plant == PlantErrors::kYes) {
    using Mutant = std::conditional_t<Loss<Op>, detail::PlantedLoss<Op>, detail::PlantedOp<Op>>;
    detail::check_catches_planted_errors<Op, Mutant>(check);
  }
}

}  // namespace jiboia::test
