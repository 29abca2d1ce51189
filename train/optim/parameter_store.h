#pragma once
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "autograd/grad_sink.h"
#include "core/buffer.h"
#include "kernels/global_norm/global_norm.h"
#include "train/model/parameter_spec.h"

namespace jiboia {

/// What a ParameterStore keeps beside the values.
enum class StoreContents : std::uint8_t { kValues, kValuesAndTraining };

/// A range of elements within the flat buffers.
struct FlatRange {
  std::int64_t begin = 0;  ///< from the start of the buffers
  std::int64_t size = 0;
};

/// One process among those that train a model together.
struct Rank {
  int index = 0;
  int count = 1;
};

/// The memory of a model's parameters: flat buffers of values, gradients and AdamW's two moments,
/// all laid out alike, in order of declaration. Gaps between parameters hold zeros. Sizes are
/// padded to a multiple of kShardUnit, and ranks own slices of whole units: whatever their number,
/// they cut norms into the same partial sums.
class ParameterStore : public GradSink {
 public:
  static constexpr std::int64_t kAlignment = 64;          ///< elements
  static constexpr std::int64_t kShardUnit = kNormBlock;  ///< elements

  /// Allocates, all zero. dtype: kF32 or kF64. Errors: OutOfMemory, with the bytes asked for.
  ParameterStore(std::vector<ParameterSpec> specs, Dtype dtype, StoreContents contents);

  std::size_t count() const { return specs_.size(); }
  const ParameterSpec& spec(std::size_t i) const { return specs_[i]; }
  std::span<const ParameterSpec> specs() const { return specs_; }
  std::optional<std::size_t> find(std::string_view name) const;
  /// The elements of parameter `i`; they begin at a multiple of kAlignment.
  FlatRange range(std::size_t i) const { return ranges_[i]; }
  /// The elements that a rank owns, in whole units. All slices are of one size, but for the last
  /// ranks': those may be shorter, or empty.
  FlatRange slice(Rank rank) const;
  Dtype dtype() const { return dtype_; }
  /// Elements of all parameters, without padding.
  std::int64_t parameter_count() const { return parameter_count_; }
  /// Elements of each flat buffer, with padding.
  std::int64_t flat_size() const { return flat_size_; }

  /// Values by ParameterId, as the tape wants them.
  std::span<const Tensor> values() const { return values_; }
  Tensor value(std::size_t i) const { return values_[i]; }
  /// First and second moment of AdamW; absent in a store of values only.
  Tensor exp_avg(std::size_t i) const { return view(exp_avg_, i); }
  Tensor exp_avg_sq(std::size_t i) const { return view(exp_avg_sq_, i); }
  Tensor gradient(std::size_t i) const { return view(gradients_, i); }
  /// Whole buffers, as one row.
  Tensor flat_values() const { return flat(values_memory_); }
  Tensor flat_gradients() const { return flat(gradients_); }
  Tensor flat_exp_avg() const { return flat(exp_avg_); }
  Tensor flat_exp_avg_sq() const { return flat(exp_avg_sq_); }

  /// The next gradients start from nothing: each parameter's first contribution overwrites.
  void begin_gradients();
  /// Gradients that no op contributed to become 0. Call after the last backward pass of a step.
  void end_gradients();

  Grad acquire(ParameterId id) override;
  void ready(ParameterId) override {}

  /// Bytes of a store without making it: (values, gradients, moments).
  struct Plan {
    std::int64_t parameter_count = 0, values = 0, gradients = 0, moments = 0;
  };
  static Plan plan(std::span<const ParameterSpec> specs, Dtype dtype, StoreContents contents);

 private:
  Tensor view(const HostBuffer& buffer, std::size_t i) const;
  Tensor flat(const HostBuffer& buffer) const;

  std::vector<ParameterSpec> specs_;
  std::vector<FlatRange> ranges_;
  Dtype dtype_;
  std::int64_t parameter_count_ = 0;
  std::int64_t flat_size_ = 0;
  HostBuffer values_memory_, gradients_, exp_avg_, exp_avg_sq_;
  std::vector<Tensor> values_;
  std::vector<bool> has_gradient_;
};

}  // namespace jiboia
