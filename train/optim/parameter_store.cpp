#include "train/optim/parameter_store.h"

#include <algorithm>

#include "core/error.h"
#include "kernels/convert/convert.h"

namespace jiboia {
namespace {

std::int64_t round_up(std::int64_t n, std::int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

struct Layout {
  std::vector<FlatRange> ranges;
  std::int64_t parameter_count = 0;
  std::int64_t flat_size = 0;
};

Layout lay_out(std::span<const ParameterSpec> specs) {
  Layout layout;
  for (const ParameterSpec& spec : specs) {
    const FlatRange range{layout.flat_size, spec.shape.size()};
    layout.ranges.push_back(range);
    layout.parameter_count += range.size;
    layout.flat_size = round_up(range.begin + range.size, ParameterStore::kAlignment);
  }
  layout.flat_size = round_up(layout.flat_size, ParameterStore::kShardUnit);
  return layout;
}

}  // namespace

ParameterStore::ParameterStore(Exec& exec, std::vector<ParameterSpec> specs, Dtype dtype,
                               StoreContents contents, Activations activations)
    : exec_(&exec),
      specs_(std::move(specs)),
      dtype_(dtype),
      activations_(activations),
      has_gradient_(specs_.size(), false) {
  Layout layout = lay_out(specs_);
  ranges_ = std::move(layout.ranges);
  parameter_count_ = layout.parameter_count;
  flat_size_ = layout.flat_size;
  const std::int64_t size = flat_size_ * size_of(dtype_);
  masters_ = allocate(exec, size, "the model's parameters");
  if (activations_ == Activations::kBf16) {
    rounded_ =
        allocate(exec, flat_size_ * size_of(Dtype::kBf16), "the bf16 copy of the parameters");
  }
  if (contents == StoreContents::kValuesAndTraining) {
    gradients_ = allocate(exec, size, "the parameters' gradients");
    exp_avg_ = allocate(exec, size, "the optimizer's first moments");
    exp_avg_sq_ = allocate(exec, size, "the optimizer's second moments");
  }
  for (std::size_t i = 0; i < specs_.size(); ++i) {
    const Spec spec = compute_spec(specs_[i], dtype_, activations_);
    const Buffer& memory = spec.dtype == dtype_ ? masters_ : rounded_;
    values_.emplace_back(spec, memory.data() + ranges_[i].begin * size_of(spec.dtype));
  }
}

ParameterStore::Plan ParameterStore::plan(std::span<const ParameterSpec> specs, Dtype dtype,
                                          StoreContents contents, Activations activations) {
  const Layout layout = lay_out(specs);
  const std::int64_t size = layout.flat_size * size_of(dtype);
  const bool training = contents == StoreContents::kValuesAndTraining;
  return {
      .parameter_count = layout.parameter_count,
      .values = size,
      .rounded = activations == Activations::kBf16 ? layout.flat_size * size_of(Dtype::kBf16) : 0,
      .gradients = training ? size : 0,
      .moments = training ? 2 * size : 0};
}

FlatRange ParameterStore::slice(Rank rank) const {
  const std::int64_t size = round_up((flat_size_ + rank.count - 1) / rank.count, kShardUnit);
  const std::int64_t begin = std::min(size * rank.index, flat_size_);
  return {begin, std::min(size, flat_size_ - begin)};
}

Tensor ParameterStore::view(const Buffer& buffer, std::size_t i) const {
  if (!buffer.data()) return {};
  return {Spec(dtype_, specs_[i].shape), buffer.data() + ranges_[i].begin * size_of(dtype_)};
}

Tensor ParameterStore::flat(const Buffer& buffer) const {
  if (!buffer.data()) return {};
  return {Spec(dtype_, {flat_size_}), buffer.data()};
}

Tensor ParameterStore::flat_rounded() const {
  if (!rounded_.data()) return {};
  return {Spec(Dtype::kBf16, {flat_size_}), rounded_.data()};
}

void ParameterStore::round_values() {
  if (!rounded_.data()) return;
  std::visit([&](auto& backend) { convert(backend, flat_values(), flat_rounded()); }, *exec_);
}

void ParameterStore::begin_gradients() { has_gradient_.assign(specs_.size(), false); }

void ParameterStore::end_gradients() {
  for (std::size_t i = 0; i < specs_.size(); ++i) {
    if (!has_gradient_[i]) fill_zero(*exec_, gradient(i));
  }
}

Grad ParameterStore::acquire(ParameterId id) {
  const std::size_t i = index(id);
  const GradMode mode = has_gradient_[i] ? GradMode::kAdd : GradMode::kOverwrite;
  has_gradient_[i] = true;
  return {gradient(i), mode};
}

Spec compute_spec(const ParameterSpec& spec, Dtype dtype, Activations activations) {
  const bool rounded = activations == Activations::kBf16 && !full_precision(spec.role);
  return {rounded ? Dtype::kBf16 : dtype, spec.shape};
}

}  // namespace jiboia
