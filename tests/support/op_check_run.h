#pragma once
#include <algorithm>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "tests/support/op_check_inputs.h"

/// Runs an op forward and backward for a check, wherever it computes.
namespace jiboia::test::detail {

struct Values {
  std::vector<TestTensor> tensors;
};

/// Result of one forward and backward run.
struct Run {
  Values in, out, grad_out, grad_in;
  std::vector<std::string> failures;
};

enum class Prefill { kNaN, kOnes };

struct RunOptions {
  Dtype activation = Dtype::kF32;
  /// The dtype of activations that inputs are rounded for; by default `activation`.
  std::optional<Dtype> values{};
  int threads = 1;
  Prefill prefill = Prefill::kNaN;                ///< of the gradients, kOnes to be added to
  std::byte scratch_fill{0xFF};                   ///< what scratch memory holds before
  int launches = 1;                               ///< on a GPU: times that each pass is launched
  std::optional<std::size_t> without_grad_in{};   ///< an input whose gradient nobody wants
  std::optional<std::size_t> without_grad_out{};  ///< an output that got no gradient
  std::optional<std::size_t> zero_grad_out{};     ///< an output whose gradient is zero
};

/// Where an op runs: on the CPU, in the test tensors' own memory. What op_check_cuda.h has for
/// GPUs has the same members.
class CpuPlace {
 public:
  explicit CpuPlace(int threads) : exec_(threads) {}
  CpuExec& exec() { return exec_; }
  const CpuExec& exec() const { return exec_; }
  /// The tensor that an op gets for a test tensor, which has to stay where it is.
  Tensor put(TestTensor& tensor) { return tensor.tensor(); }
  /// Runs a pass on what was put, so that the test tensors hold what it wrote.
  template <class Pass>
  void run(const Pass& pass, int /*launches*/, std::vector<std::string>& /*failures*/) {
    pass();
  }

 private:
  CpuExec exec_;
};

/// Names those of `now` that have other bits than `before`.
inline std::vector<std::string> changes(const Values& now, const Values& before,
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
inline void append(std::vector<std::string>& to, const std::vector<std::string>& from) {
  to.insert(to.end(), from.begin(), from.end());
}

/// Runs the op of a check.
template <class Op>
class Runner {
 public:
  template <class T>
  using In = typename Op::template In<T>;
  template <class T>
  using Out = typename Op::template Out<T>;

  explicit Runner(const OpCheck<Op>& check) : check_(check) {}

  const TestInput& input(std::size_t i) const { return fields<const TestInput>(check_.inputs)[i]; }
  std::size_t input_count() const { return fields<const TestInput>(check_.inputs).size(); }
  bool has_gradient(std::size_t i) const {
    return input(i).present() && !input(i).is_integer() && !input(i).constant;
  }
  bool is_saved(std::size_t i) const {
    const auto& saved = check_.saved_outputs;
    return std::find(saved.begin(), saved.end(), Op::kOutputs[i]) != saved.end();
  }
  typename Op::Attrs attrs(Dtype activation) const {
    return attrs_among<Op>(activation, check_.attrs);
  }

  In<Spec> specs(Dtype activation) const {
    In<Spec> result{};
    auto members = fields<Spec>(result);
    for (std::size_t i = 0; i < members.size(); ++i) {
      if (!input(i).present()) continue;
      members[i] = Spec(dtype_of(input_kind<Op>(i), activation), input(i).shape);
      members[i].row_stride += input(i).columns_before + input(i).columns_after;
    }
    return result;
  }

  Values make_outputs(Dtype activation) const {
    Values values;
    const Out<Spec> all = Op::infer(specs(activation), attrs(activation));
    for (const Spec& spec : fields<const Spec>(all)) {
      TestTensor tensor(spec);
      tensor.fill(std::numeric_limits<double>::quiet_NaN());
      values.tensors.push_back(tensor);
    }
    return values;
  }

  template <class Struct, class Place>
  static Struct put(Place& place, Values& values) {
    Struct result{};
    auto members = fields<Tensor>(result);
    for (std::size_t i = 0; i < members.size(); ++i) {
      if (values.tensors[i]) members[i] = place.put(values.tensors[i]);
    }
    return result;
  }

  template <class Place>
  Values forward(Place& place, Values& in, const RunOptions& options,
                 std::vector<std::string>& failures) const {
    Values out = make_outputs(options.activation);
    TestTensor memory = scratch(place, Pass::kForward, options);
    const ForwardArgs<Op> args{put<In<Tensor>>(place, in), put<Out<Tensor>>(place, out),
                               attrs(options.activation), put_scratch(place, memory)};
    place.run([&] { Op::forward(place.exec(), args); }, options.launches, failures);
    check_scratch(memory, failures);
    return out;
  }

  Run run(const RunOptions& options) const {
    CpuPlace cpu(options.threads);
    return run(cpu, options);
  }

  template <class Place>
  Run run(Place& place, const RunOptions& options) const {
    Run run;
    const auto drawn =
        draw_inputs(check_, options.activation, options.values.value_or(options.activation));
    const auto tensors = fields<const TestTensor>(drawn);
    run.in.tensors = {tensors.begin(), tensors.end()};
    const Values given = run.in;
    make_grad_in(run, options);
    if constexpr (Loss<Op>) {
      run_loss(place, run, options);
    } else {
      run.out = forward(place, run.in, options, run.failures);
      run_backward(place, run, options);
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

 private:
  template <class Place>
  TestTensor scratch(Place& place, Pass pass, const RunOptions& options) const {
    const std::int64_t bytes = scratch_bytes<Op>(
        std::as_const(place).exec(), pass, specs(options.activation), attrs(options.activation));
    TestTensor memory(Spec(Dtype::kU8, {bytes}));
    memory.fill_bytes(options.scratch_fill);
    return memory;
  }
  template <class Place>
  static std::span<std::byte> put_scratch(Place& place, TestTensor& memory) {
    const Tensor tensor = place.put(memory);
    return {static_cast<std::byte*>(tensor.data), static_cast<std::size_t>(tensor.size())};
  }
  static void check_scratch(const TestTensor& memory, std::vector<std::string>& failures) {
    if (!memory.guards_intact()) failures.push_back("wrote outside its scratch");
  }

  void make_grad_in(Run& run, const RunOptions& options) const {
    for (std::size_t i = 0; i < input_count(); ++i) {
      Spec spec;
      if (has_gradient(i)) {
        spec = Spec(gradient_dtype_of(input_kind<Op>(i), options.activation), input(i).shape);
      }
      TestTensor grad(spec, input(i).columns_before, input(i).columns_after);
      grad.fill(options.prefill == Prefill::kNaN ? std::numeric_limits<double>::quiet_NaN() : 1.0);
      run.grad_in.tensors.push_back(grad);
    }
  }
  template <class Place>
  In<Grad> put_grad_in(Place& place, Run& run, const RunOptions& options) const {
    In<Grad> grads{};
    for (std::size_t i = 0; i < input_count(); ++i) {
      if (!has_gradient(i) || i == options.without_grad_in) continue;
      fields<Grad>(grads)[i] = {place.put(run.grad_in.tensors[i]), options.prefill == Prefill::kNaN
                                                                       ? GradMode::kOverwrite
                                                                       : GradMode::kAdd};
    }
    return grads;
  }
  /// Adding again would give something else.
  static int backward_launches(const RunOptions& options) {
    return options.prefill == Prefill::kNaN ? options.launches : 1;
  }

  template <class Place>
  void run_loss(Place& place, Run& run, const RunOptions& options) const {
    run.out = make_outputs(options.activation);
    TestTensor memory = scratch(place, Pass::kBackward, options);
    const LossArgs<Op> args{put<In<Tensor>>(place, run.in), put<Out<Tensor>>(place, run.out),
                            attrs(options.activation), put_grad_in(place, run, options),
                            put_scratch(place, memory)};
    place.run([&] { Op::forward_backward(place.exec(), args); }, backward_launches(options),
              run.failures);
    check_scratch(memory, run.failures);
    const Values plain = forward(place, run.in, options, run.failures);
    append(run.failures,
           changes(plain, run.out, Op::kOutputs, "differs between forward and forward_backward"));
  }

  template <class Place>
  void run_backward(Place& place, Run& run, const RunOptions& options) const {
    make_grad_out(run, options);
    if (options.without_grad_out) run.grad_out.tensors[*options.without_grad_out] = TestTensor();
    if (options.zero_grad_out) run.grad_out.tensors[*options.zero_grad_out].fill(0);
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
    TestTensor memory = scratch(place, Pass::kBackward, options);
    const BackwardArgs<Op> args{
        put<In<Tensor>>(place, in),       put<Out<Tensor>>(place, out),
        attrs(options.activation),        put<Out<Tensor>>(place, run.grad_out),
        put_grad_in(place, run, options), put_scratch(place, memory)};
    place.run([&] { Op::backward(place.exec(), args); }, backward_launches(options), run.failures);
    check_scratch(memory, run.failures);
    append(run.failures, changes(in, in_before, Op::kInputs, "was changed by backward"));
    append(run.failures, changes(out, out_before, Op::kOutputs, "was changed by backward"));
    append(run.failures, changes(run.grad_out, grad_out_before, Op::kOutputs,
                                 "gradient was changed by backward"));
  }
  static void spoil(TestTensor& tensor) {
    if (tensor && tensor.spec().dtype != Dtype::kI32) {
      tensor.fill(std::numeric_limits<double>::quiet_NaN());
    }
  }
  void make_grad_out(Run& run, const RunOptions& options) const {
    // Rounded as outputs among activations of `values` would be.
    const Dtype values = options.values.value_or(options.activation);
    const Out<Spec> stored = Op::infer(specs(values), attrs(values));
    for (std::size_t i = 0; i < run.out.tensors.size(); ++i) {
      const Spec spec = is_saved(i) ? Spec() : run.out.tensors[i].spec();
      const bool rounds = fields<const Spec>(stored)[i].dtype == Dtype::kBf16;
      TestTensor grad(spec);
      const Philox random(7, RandomPurpose::kTest, static_cast<std::uint32_t>(100 + i));
      for (std::int64_t k = 0; k < grad.size(); ++k) {
        const auto x = static_cast<float>(2 * random.uniform(static_cast<std::uint64_t>(k)) - 1);
        grad.set(k, rounds ? float_from_bf16(bf16_from_float(x)) : x);
      }
      run.grad_out.tensors.push_back(grad);
    }
  }

  const OpCheck<Op>& check_;
};

}  // namespace jiboia::test::detail
