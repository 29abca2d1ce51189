#pragma once
#include <algorithm>
#include <functional>

#include "core/op.h"
#include "tests/bench/bench_tensors.h"

namespace jiboia::bench {

/// Both passes of an op on tensors that stay the same. What has no backward pass has no call there.
struct Launches {
  std::function<void()> forward, backward;
};

template <class Op>
struct OpInputs {
  typename Op::template In<Tensor> in;
  typename Op::Attrs attrs{};
  /// Which outputs the model goes on with: these get gradients.
  typename Op::template Out<bool> used{};
  /// Of the gradients of activations; those of parameters are always added to.
  GradMode activations = GradMode::kOverwrite;
};

/// Makes what else an op needs through its public contract: outputs, gradients, scratch.
template <class Op>
Launches launches_of(BenchTensors& tensors, const OpInputs<Op>& inputs) {
  using InSpec = typename Op::template In<Spec>;
  using InGrad = typename Op::template In<Grad>;
  using OutTensor = typename Op::template Out<Tensor>;
  Exec& exec = tensors.exec();
  const auto specs =
      map_fields<Spec, InSpec, Tensor>(inputs.in, [](const Tensor& tensor) { return tensor; });
  const auto out = map_fields<Tensor, OutTensor, Spec>(
      Op::infer(specs, inputs.attrs),
      [&](const Spec& spec) { return spec ? tensors.zeros(spec) : Tensor(); });

  const std::int64_t scratch_size = std::visit(
      [&](const auto& backend) {
        return std::max(scratch_bytes<Op>(backend, Pass::kForward, specs, inputs.attrs),
                        scratch_bytes<Op>(backend, Pass::kBackward, specs, inputs.attrs));
      },
      exec);
  const Tensor memory = tensors.zeros(Spec(Dtype::kU8, {scratch_size}));
  const std::span<std::byte> scratch(static_cast<std::byte*>(memory.data),
                                     static_cast<std::size_t>(scratch_size));

  InGrad grad_in{};
  for (std::size_t i = 0; i < std::size(Op::kInputs); ++i) {
    constexpr auto kinds = Op::kInputKinds;
    const InputKind kind = fields<const InputKind>(kinds)[i];
    const Tensor& value = fields<const Tensor>(inputs.in)[i];
    if (!value || kind == InputKind::kIndex) continue;
    const bool is_activation = value.shape.rank() == 3;
    const Dtype dtype = kind == InputKind::kActivation ? value.dtype : accumulator_of(value.dtype);
    fields<Grad>(grad_in)[i] = Grad(tensors.gradient_of(value, dtype),
                                    is_activation ? inputs.activations : GradMode::kAdd);
  }

  const ForwardArgs<Op> forward{inputs.in, out, inputs.attrs, scratch};
  Launches launches;
  launches.forward = [&exec, forward] {
    std::visit([&](auto& backend) { Op::forward(backend, forward); }, exec);
  };
  if constexpr (Loss<Op>) {
    const LossArgs<Op> both{inputs.in, out, inputs.attrs, grad_in, scratch};
    launches.backward = [&exec, both] {
      std::visit([&](auto& backend) { Op::forward_backward(backend, both); }, exec);
    };
  } else {
    OutTensor grad_out{};
    for (std::size_t i = 0; i < std::size(Op::kOutputs); ++i) {
      const Tensor& value = fields<const Tensor>(out)[i];
      if (fields<const bool>(inputs.used)[i]) {
        fields<Tensor>(grad_out)[i] = tensors.normal(value, 1e-3);
      }
    }
    const BackwardArgs<Op> backward{inputs.in, out, inputs.attrs, grad_out, grad_in, scratch};
    launches.backward = [&exec, backward] {
      std::visit([&](auto& b) { Op::backward(b, backward); }, exec);
    };
  }
  return launches;
}

}  // namespace jiboia::bench
