#include "tests/bench/bare_parameters.h"

#include <cmath>

namespace jiboia::bench {
namespace {

constexpr Dtype kGradient = Dtype::kF32;

Tensor first_value(BenchTensors& tensors, const Spec& spec, const Initializer& how) {
  switch (how.kind) {
    case Initializer::Kind::kConstant:
      return tensors.filled(spec, [&](std::int64_t) { return how.a; });
    case Initializer::Kind::kUniform: return tensors.normal(spec, how.a / std::sqrt(3.0));
    case Initializer::Kind::kNormal: return tensors.normal(spec, how.a);
    case Initializer::Kind::kLogStates: return first_a_log(tensors, spec);
    case Initializer::Kind::kTimeStep: return first_dt_bias(tensors, spec);
  }
  return {};
}

}  // namespace

BareParameters::BareParameters(Exec& exec, std::span<const ParameterSpec> specs,
                               Activations activations)
    : tensors_(exec), has_gradient_(specs.size(), false) {
  for (const ParameterSpec& spec : specs) {
    const Spec compute = compute_spec(spec, Dtype::kF32, activations);
    values_.push_back(first_value(tensors_, compute, spec.initializer));
    gradients_.push_back(tensors_.gradient_of(values_.back(), kGradient));
  }
}

Grad BareParameters::acquire(ParameterId id) {
  const std::size_t i = index(id);
  const GradMode mode = has_gradient_[i] ? GradMode::kAdd : GradMode::kOverwrite;
  has_gradient_[i] = true;
  return {gradients_[i], mode};
}

ParameterStore::Plan BareParameters::plan(std::span<const ParameterSpec> specs,
                                          Activations activations) {
  ParameterStore::Plan plan;
  for (const ParameterSpec& spec : specs) {
    plan.parameter_count += spec.shape.size();
    const Spec compute = compute_spec(spec, Dtype::kF32, activations);
    (compute.dtype == Dtype::kF32 ? plan.values : plan.rounded) += compute.bytes();
    plan.gradients += spec.shape.size() * size_of(kGradient);
  }
  return plan;
}

}  // namespace jiboia::bench
