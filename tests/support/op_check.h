#pragma once
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "autograd/differentiable.h"
#include "core/op.h"
#include "tests/support/planted_error.h"
#include "tests/support/test_tensor.h"

/// One call tests an op: check_op<Op>(inputs) or check_loss<Op>(inputs).
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
  /// |f32 - f64| <= f32_relative * max|f64| + 1e-6 for every output and gradient.
  double f32_relative = 1e-5;
  /// Elements of each input whose gradient is held against finite differences, spread over it.
  std::int64_t gradient_samples = 40;
};

/// The inputs of a check: pseudo-random numbers that f32 holds exactly, so that both precisions
/// compute from the same ones.
template <class Op>
auto draw_inputs(const OpCheck<Op>& check, Dtype dtype) {
  using In = typename Op::template In<TestTensor>;
  return map_fields<TestTensor, In, TestInput>(
      check.inputs, [dtype, stream = std::uint32_t{0}](const TestInput& how) mutable {
        const Philox random(20260101, RandomPurpose::kTest, stream++);
        if (!how.present()) return TestTensor();
        TestTensor tensor(Spec(how.is_integer() ? Dtype::kI32 : dtype, how.shape),
                          how.columns_before, how.columns_after);
        for (std::int64_t k = 0; k < tensor.size(); ++k) {
          const double x =
              how.low + (how.high - how.low) * random.uniform(static_cast<std::uint64_t>(k));
          tensor.set(k, how.is_integer() ? how.integers[static_cast<std::size_t>(k)]
                                         : static_cast<double>(static_cast<float>(x)));
        }
        return tensor;
      });
}

namespace detail {

struct Values {
  std::vector<TestTensor> tensors;

  template <class Struct>
  Struct view() const {
    Struct result{};
    auto members = fields<Tensor>(result);
    for (std::size_t i = 0; i < members.size(); ++i) members[i] = tensors[i].tensor();
    return result;
  }
};

/// Result of one forward and backward run.
struct Run {
  Values in, out, grad_out, grad_in;
  std::vector<std::string> failures;
};

enum class Prefill { kNaN, kOnes };

struct RunOptions {
  Dtype dtype = Dtype::kF32;
  int threads = 1;
  Prefill prefill = Prefill::kNaN;                ///< of the gradients, kOnes to be added to
  std::optional<std::size_t> without_grad_in{};   ///< an input whose gradient nobody wants
  std::optional<std::size_t> without_grad_out{};  ///< an output that got no gradient
  std::optional<std::size_t> zero_grad_out{};     ///< an output whose gradient is zero
};

template <class Op>
class Checker {
 public:
  template <class T>
  using In = typename Op::template In<T>;
  template <class T>
  using Out = typename Op::template Out<T>;

  explicit Checker(const OpCheck<Op>& check) : check_(check) {}

  std::vector<std::string> failures() {
    refuses_wrong_inputs();
    const Run exact = run({.dtype = Dtype::kF64});
    const Run single = run({});
    note(exact.failures);
    note(single.failures);
    if (check_.reference) compare_with_reference(exact);
    compare_gradients_with_differences(exact);
    compare("f32", single, exact, check_.f32_relative, 1e-6, 0);
    compare("added f64", run({.dtype = Dtype::kF64, .prefill = Prefill::kOnes}), exact, 1e-12,
            1e-12, 1);
    skips_absent_gradients(single);
    if constexpr (!Loss<Op>) takes_absent_gradients_for_zero();
    for (int threads : {1, 2, 3}) {
      const Run again = run({.threads = threads});
      const std::string what = fmt::format("has other bits on {} threads", threads);
      note(changes(again.out, single.out, Op::kOutputs, what));
      note(changes(again.grad_in, single.grad_in, Op::kInputs, "gradient " + what));
    }
    return failures_;
  }

 private:
  const TestInput& input(std::size_t i) const { return fields<const TestInput>(check_.inputs)[i]; }
  std::size_t input_count() const { return fields<const TestInput>(check_.inputs).size(); }
  bool has_gradient(std::size_t i) const {
    return input(i).present() && !input(i).is_integer() && !input(i).constant;
  }
  void note(const std::string& failure) {
    if (!failure.empty()) failures_.push_back(std::string(Op::kName) + ": " + failure);
  }
  void note(const std::vector<std::string>& failures) {
    for (const auto& failure : failures) note(failure);
  }

  In<Spec> specs(Dtype dtype) const {
    In<Spec> result{};
    auto members = fields<Spec>(result);
    for (std::size_t i = 0; i < members.size(); ++i) {
      if (!input(i).present()) continue;
      members[i] = Spec(input(i).is_integer() ? Dtype::kI32 : dtype, input(i).shape);
      members[i].row_stride += input(i).columns_before + input(i).columns_after;
    }
    return result;
  }

  void refuses_wrong_inputs() {
    for (std::size_t i = 0; i < input_count(); ++i) {
      if (!input(i).present()) continue;
      for (int d = 0; d < input(i).shape.rank(); ++d) {
        const auto& free = input(i).free_dimensions;
        if (std::find(free.begin(), free.end(), d) != free.end()) continue;
        In<Spec> wrong = specs(Dtype::kF32);
        Spec& spec = fields<Spec>(wrong)[i];
        spec = Spec(spec.dtype, spec.shape.with(d, spec.shape[d] + 1));
        expect_refused(wrong,
                       fmt::format("{} with shape {}", Op::kInputs[i], spec.shape.to_string()));
      }
      In<Spec> wrong = specs(Dtype::kF32);
      fields<Spec>(wrong)[i].dtype = Dtype::kU8;
      expect_refused(wrong, fmt::format("{} of dtype u8", Op::kInputs[i]));
      if (input(i).is_integer() || float_inputs() == 1) continue;
      fields<Spec>(wrong)[i].dtype = Dtype::kF64;
      expect_refused(wrong, fmt::format("{} of dtype f64 among f32", Op::kInputs[i]));
    }
  }
  std::int64_t float_inputs() const {
    return std::ranges::count_if(
        fields<const TestInput>(check_.inputs),
        [](const TestInput& input) { return input.present() && !input.is_integer(); });
  }
  void expect_refused(const In<Spec>& wrong, const std::string& what) {
    try {
      (void)Op::infer(wrong, check_.attrs);
      note("accepted " + what);
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::kInvalidArgument) note(what + ": wrong kind of error");
      if (std::string(error.what()).find(Op::kName) == std::string::npos) {
        note(what + ": the error does not name the op: " + error.what());
      }
    }
  }

  Values make_inputs(Dtype dtype) const {
    const auto drawn = draw_inputs(check_, dtype);
    const auto tensors = fields<const TestTensor>(drawn);
    return {{tensors.begin(), tensors.end()}};
  }

  Values make_outputs(Dtype dtype) const {
    Values values;
    const Out<Spec> all = Op::infer(specs(dtype), check_.attrs);
    for (const Spec& spec : fields<const Spec>(all)) {
      TestTensor tensor(spec);
      tensor.fill(std::numeric_limits<double>::quiet_NaN());
      values.tensors.push_back(tensor);
    }
    return values;
  }

  bool is_saved(std::size_t i) const {
    const auto& saved = check_.saved_outputs;
    return std::find(saved.begin(), saved.end(), Op::kOutputs[i]) != saved.end();
  }

  std::vector<std::byte> scratch(const CpuExec& cpu, Pass pass, Dtype dtype) const {
    const auto bytes = scratch_bytes<Op>(cpu, pass, specs(dtype), check_.attrs);
    return std::vector<std::byte>(static_cast<std::size_t>(bytes) + kScratchGuard, std::byte{0xFF});
  }
  static std::span<std::byte> usable(std::vector<std::byte>& scratch) {
    return {scratch.data(), scratch.size() - kScratchGuard};
  }
  void check_scratch(const std::vector<std::byte>& scratch, Run& run) const {
    for (std::size_t i = scratch.size() - kScratchGuard; i < scratch.size(); ++i) {
      if (scratch[i] != std::byte{0xFF}) {
        run.failures.push_back("wrote past its scratch");
        return;
      }
    }
  }

  Values forward(const Values& in, Dtype dtype, CpuExec& cpu) const {
    Values out = make_outputs(dtype);
    auto memory = scratch(cpu, Pass::kForward, dtype);
    Op::forward(cpu, ForwardArgs<Op>{in.view<In<Tensor>>(), out.view<Out<Tensor>>(), check_.attrs,
                                     usable(memory)});
    return out;
  }

  Run run(const RunOptions& options) const {
    const auto [dtype, threads, prefill, without_grad_in, without_grad_out, zero_grad_out] =
        options;
    CpuExec cpu(threads);
    Run run;
    run.in = make_inputs(dtype);
    const Values given = run.in;
    In<Grad> grads{};
    for (std::size_t i = 0; i < input_count(); ++i) {
      run.grad_in.tensors.emplace_back(has_gradient(i) ? run.in.tensors[i].spec() : Spec(),
                                       input(i).columns_before, input(i).columns_after);
      run.grad_in.tensors[i].fill(
          prefill == Prefill::kNaN ? std::numeric_limits<double>::quiet_NaN() : 1.0);
      if (has_gradient(i) && i != without_grad_in) {
        fields<Grad>(grads)[i] = {run.grad_in.tensors[i].tensor(),
                                  prefill == Prefill::kNaN ? GradMode::kOverwrite : GradMode::kAdd};
      }
    }
    if constexpr (Loss<Op>) {
      run.out = make_outputs(dtype);
      auto memory = scratch(cpu, Pass::kBackward, dtype);
      Op::forward_backward(cpu, LossArgs<Op>{run.in.view<In<Tensor>>(), run.out.view<Out<Tensor>>(),
                                             check_.attrs, grads, usable(memory)});
      check_scratch(memory, run);
      const Values plain = forward(run.in, dtype, cpu);
      for (std::size_t i = 0; i < plain.tensors.size(); ++i) {
        if (!plain.tensors[i].same_bits(run.out.tensors[i])) {
          run.failures.push_back(
              fmt::format("{} differs between forward and forward_backward", Op::kOutputs[i]));
        }
      }
    } else {
      run.out = forward(run.in, dtype, cpu);
      make_grad_out(run);
      if (without_grad_out) run.grad_out.tensors[*without_grad_out] = TestTensor();
      if (zero_grad_out) run.grad_out.tensors[*zero_grad_out].fill(0);
      // What backward says that it does not read must not matter.
      Values in = run.in, out = run.out;
      constexpr auto reads_in = Op::kBackwardReadsInputs;
      constexpr auto reads_out = Op::kBackwardReadsOutputs;
      for (std::size_t i = 0; i < in.tensors.size(); ++i) {
        if (!fields<const bool>(reads_in)[i]) spoil(in.tensors[i]);
      }
      for (std::size_t i = 0; i < out.tensors.size(); ++i) {
        if (!fields<const bool>(reads_out)[i]) spoil(out.tensors[i]);
      }
      const Values in_before = in, out_before = out, grad_out_before = run.grad_out;
      auto memory = scratch(cpu, Pass::kBackward, dtype);
      Op::backward(cpu,
                   BackwardArgs<Op>{in.view<In<Tensor>>(), out.view<Out<Tensor>>(), check_.attrs,
                                    run.grad_out.view<Out<Tensor>>(), grads, usable(memory)});
      check_scratch(memory, run);
      append(run.failures, changes(in, in_before, Op::kInputs, "was changed by backward"));
      append(run.failures, changes(out, out_before, Op::kOutputs, "was changed by backward"));
      append(run.failures, changes(run.grad_out, grad_out_before, Op::kOutputs,
                                   "gradient was changed by backward"));
    }
    append(run.failures, changes(run.in, given, Op::kInputs, "was changed"));
    for (std::size_t i = 0; i < run.out.tensors.size(); ++i) {
      if (!run.out.tensors[i].guards_intact()) {
        run.failures.push_back(fmt::format("wrote outside {}", Op::kOutputs[i]));
      }
    }
    for (std::size_t i = 0; i < input_count(); ++i) {
      if (!run.grad_in.tensors[i].guards_intact()) {
        run.failures.push_back(fmt::format("wrote outside the gradient of {}", Op::kInputs[i]));
      }
    }
    return run;
  }
  static void spoil(TestTensor& tensor) {
    if (tensor && tensor.spec().dtype != Dtype::kI32) {
      tensor.fill(std::numeric_limits<double>::quiet_NaN());
    }
  }
  void make_grad_out(Run& run) const {
    for (std::size_t i = 0; i < run.out.tensors.size(); ++i) {
      const Spec spec = is_saved(i) ? Spec() : run.out.tensors[i].spec();
      TestTensor grad(spec);
      const Philox random(7, RandomPurpose::kTest, static_cast<std::uint32_t>(100 + i));
      for (std::int64_t k = 0; k < grad.size(); ++k) {
        const double x = 2 * random.uniform(static_cast<std::uint64_t>(k)) - 1;
        grad.set(k, static_cast<double>(static_cast<float>(x)));
      }
      run.grad_out.tensors.push_back(grad);
    }
  }

  /// Names those of `now` that have other bits than `before`.
  static std::vector<std::string> changes(const Values& now, const Values& before,
                                          std::span<const char* const> names,
                                          const std::string& what) {
    std::vector<std::string> result;
    for (std::size_t i = 0; i < now.tensors.size(); ++i) {
      if (!now.tensors[i].same_bits(before.tensors[i])) {
        result.push_back(fmt::format("{} {}", names[i], what));
      }
    }
    return result;
  }
  static void append(std::vector<std::string>& to, const std::vector<std::string>& from) {
    to.insert(to.end(), from.begin(), from.end());
  }

  void skips_absent_gradients(const Run& all) {
    for (std::size_t i = 0; i < input_count(); ++i) {
      if (!has_gradient(i)) continue;
      Run others = run({.without_grad_in = i});
      others.grad_in.tensors[i] = all.grad_in.tensors[i];
      note(others.failures);
      const std::string what = fmt::format("has other bits without {}'s gradient", Op::kInputs[i]);
      note(changes(others.out, all.out, Op::kOutputs, what));
      note(changes(others.grad_in, all.grad_in, Op::kInputs, "gradient " + what));
    }
  }

  /// Of an op with several outputs that carry gradients.
  void takes_absent_gradients_for_zero() {
    const Values out = make_outputs(Dtype::kF64);
    const auto carries_gradient = [&](std::size_t i) { return out.tensors[i] && !is_saved(i); };
    std::int64_t carriers = 0;
    for (std::size_t i = 0; i < out.tensors.size(); ++i) carriers += carries_gradient(i);
    for (std::size_t i = 0; i < out.tensors.size() && carriers > 1; ++i) {
      if (!carries_gradient(i)) continue;
      compare(fmt::format("f64 without the gradient of {},", Op::kOutputs[i]),
              run({.dtype = Dtype::kF64, .without_grad_out = i}),
              run({.dtype = Dtype::kF64, .zero_grad_out = i}), 1e-14, 1e-14, 0);
    }
  }

  void compare_with_reference(const Run& exact) {
    Values want = make_outputs(Dtype::kF64);
    check_.reference(exact.in.view<In<Tensor>>(), check_.attrs, want.view<Out<Tensor>>());
    for (std::size_t i = 0; i < want.tensors.size(); ++i) {
      if (is_saved(i)) continue;
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
    for (std::size_t i = 0; i < input_count(); ++i) {
      TestTensor gradient = got.grad_in.tensors[i];
      for (std::int64_t k = 0; k < gradient.size(); ++k) gradient.set(k, gradient.get(k) - offset);
      note(difference(fmt::format("{} gradient of {}", what, Op::kInputs[i]), gradient,
                      want.grad_in.tensors[i], relative, absolute));
    }
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
    CpuExec cpu(1);
    for (std::size_t i = 0; i < input_count(); ++i) {
      if (!has_gradient(i)) continue;
      const TestTensor& gradient = exact.grad_in.tensors[i];
      const std::int64_t size = gradient.size();
      const std::int64_t stride = std::max<std::int64_t>(1, size / check_.gradient_samples);
      const double scale = gradient.largest();
      for (std::int64_t k = (size - 1) % stride; k < size; k += stride) {
        Values in = exact.in;
        const double x = in.tensors[i].get(k);
        in.tensors[i].set(k, x + kStep);
        const double above = objective(forward(in, Dtype::kF64, cpu), exact);
        in.tensors[i].set(k, x - kStep);
        const double below = objective(forward(in, Dtype::kF64, cpu), exact);
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

  static constexpr std::size_t kScratchGuard = 256;
  const OpCheck<Op>& check_;
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
