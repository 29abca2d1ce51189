#include "train/optim/parameter_store.h"

#include <algorithm>
#include <cstring>

#include "core/error.h"

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

ParameterStore::ParameterStore(std::vector<ParameterSpec> specs, Dtype dtype,
                               StoreContents contents)
    : specs_(std::move(specs)), dtype_(dtype), has_gradient_(specs_.size(), false) {
  Layout layout = lay_out(specs_);
  ranges_ = std::move(layout.ranges);
  parameter_count_ = layout.parameter_count;
  flat_size_ = layout.flat_size;
  const std::int64_t size = flat_size_ * size_of(dtype_);
  values_memory_ = HostBuffer(size, "the model's parameters");
  if (contents == StoreContents::kValuesAndTraining) {
    gradients_ = HostBuffer(size, "the parameters' gradients");
    exp_avg_ = HostBuffer(size, "the optimizer's first moments");
    exp_avg_sq_ = HostBuffer(size, "the optimizer's second moments");
  }
  for (std::size_t i = 0; i < specs_.size(); ++i) values_.push_back(view(values_memory_, i));
}

ParameterStore::Plan ParameterStore::plan(std::span<const ParameterSpec> specs, Dtype dtype,
                                          StoreContents contents) {
  const Layout layout = lay_out(specs);
  const std::int64_t size = layout.flat_size * size_of(dtype);
  const bool training = contents == StoreContents::kValuesAndTraining;
  return {layout.parameter_count, size, training ? size : 0, training ? 2 * size : 0};
}

std::optional<std::size_t> ParameterStore::find(std::string_view name) const {
  for (std::size_t i = 0; i < specs_.size(); ++i) {
    if (specs_[i].name == name) return i;
  }
  return std::nullopt;
}

FlatRange ParameterStore::slice(Rank rank) const {
  const std::int64_t size = round_up((flat_size_ + rank.count - 1) / rank.count, kShardUnit);
  const std::int64_t begin = std::min(size * rank.index, flat_size_);
  return {begin, std::min(size, flat_size_ - begin)};
}

Tensor ParameterStore::view(const HostBuffer& buffer, std::size_t i) const {
  if (!buffer.data()) return {};
  return {Spec(dtype_, specs_[i].shape), buffer.data() + ranges_[i].begin * size_of(dtype_)};
}

Tensor ParameterStore::flat(const HostBuffer& buffer) const {
  if (!buffer.data()) return {};
  return {Spec(dtype_, {flat_size_}), buffer.data()};
}

void ParameterStore::begin_gradients() { has_gradient_.assign(specs_.size(), false); }

void ParameterStore::end_gradients() {
  for (std::size_t i = 0; i < specs_.size(); ++i) {
    if (has_gradient_[i]) continue;
    const Tensor grad = gradient(i);
    std::memset(grad.data, 0, static_cast<std::size_t>(grad.bytes()));
  }
}

Grad ParameterStore::acquire(ParameterId id) {
  const std::size_t i = index(id);
  const GradMode mode = has_gradient_[i] ? GradMode::kAdd : GradMode::kOverwrite;
  has_gradient_[i] = true;
  return {gradient(i), mode};
}

}  // namespace jiboia
