#pragma once
#include <concepts>
#include <type_traits>

#include "core/op.h"

namespace jiboia {

namespace detail {
template <class Op>
concept OpShape = requires(CpuExec& cpu, const typename Op::template In<Spec>& in,
                           const typename Op::Attrs& attrs, const ForwardArgs<Op>& forward) {
  { Op::kName } -> std::convertible_to<const char*>;
  { Op::infer(in, attrs) } -> std::same_as<typename Op::template Out<Spec>>;
  {Op::forward(cpu, forward)};
  requires std::is_trivially_copyable_v<typename Op::Attrs>;
};
}  // namespace detail

/// What the tape asks of an op (core/op.h describes the members).
template <class Op>
concept Differentiable =
    detail::OpShape<Op> && !Loss<Op> && requires(CpuExec & cpu, const BackwardArgs<Op>& backward) {
  { Op::kBackwardReadsInputs } -> std::convertible_to<typename Op::template In<bool>>;
  { Op::kBackwardReadsOutputs } -> std::convertible_to<typename Op::template Out<bool>>;
  {Op::backward(cpu, backward)};
};

/// What the tape asks of a loss: an op that ends a graph.
template <class Op>
concept DifferentiableLoss = detail::OpShape<Op> && Loss<Op> &&
    requires(CpuExec& cpu, const LossArgs<Op>& args) {
  {Op::forward_backward(cpu, args)};
};

}  // namespace jiboia
