#pragma once
#include <span>
#include <vector>

#include "autograd/grad_sink.h"
#include "core/memory.h"
#include "kernels/adamw/adamw.h"
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

/// The memory of a model's parameters, where an Exec computes: flat buffers of values (the
/// masters), gradients and AdamW's two moments, all of one dtype and laid out alike, in order of
/// declaration; beside bf16 activations also a bf16 copy of the values, which ops read. Gaps
/// between parameters hold zeros. Sizes are padded to a multiple of kShardUnit, and ranks own
/// slices of whole units: whatever their number, they cut norms into the same partial sums.
class ParameterStore : public GradSink {
 public:
  static constexpr std::int64_t kAlignment = kDecayBlock;  ///< elements
  static constexpr std::int64_t kShardUnit = kNormBlock;   ///< elements

  /// Allocates, all zero. dtype: kF32 or, on the CPU, kF64. `exec` must outlive the store.
  /// Errors: OutOfMemory, with the bytes asked for.
  ParameterStore(Exec& exec, std::vector<ParameterSpec> specs, Dtype dtype, StoreContents contents,
                 Activations activations = Activations::kFull);

  Exec& exec() const { return *exec_; }
  std::size_t count() const { return specs_.size(); }
  const ParameterSpec& spec(std::size_t i) const { return specs_[i]; }
  std::span<const ParameterSpec> specs() const { return specs_; }
  /// The elements of parameter `i`; they begin at a multiple of kAlignment.
  FlatRange range(std::size_t i) const { return ranges_[i]; }
  /// The elements that a rank owns, in whole units. All slices are of one size, but for the last
  /// ranks': those may be shorter, or empty.
  FlatRange slice(Rank rank) const;
  /// Of masters, gradients and moments.
  Dtype dtype() const { return dtype_; }
  Activations activations() const { return activations_; }
  /// Elements of all parameters, without padding.
  std::int64_t parameter_count() const { return parameter_count_; }
  /// Elements of each flat buffer, with padding.
  std::int64_t flat_size() const { return flat_size_; }

  /// What ops read, by ParameterId, as the tape wants it: masters, or their bf16 copies.
  std::span<const Tensor> values() const { return values_; }
  /// The master values of parameter `i`. Who changes them calls round_values() afterwards.
  Tensor value(std::size_t i) const { return view(masters_, i); }
  /// First and second moment of AdamW; absent in a store of values only.
  Tensor exp_avg(std::size_t i) const { return view(exp_avg_, i); }
  Tensor exp_avg_sq(std::size_t i) const { return view(exp_avg_sq_, i); }
  Tensor gradient(std::size_t i) const { return view(gradients_, i); }
  /// Whole buffers, as one row.
  Tensor flat_values() const { return flat(masters_); }
  Tensor flat_gradients() const { return flat(gradients_); }
  Tensor flat_exp_avg() const { return flat(exp_avg_); }
  Tensor flat_exp_avg_sq() const { return flat(exp_avg_sq_); }
  /// The bf16 copy of flat_values(); absent where ops read the masters.
  Tensor flat_rounded() const;

  /// Makes the bf16 copy, where there is one, the rounded masters.
  void round_values();

  /// The next gradients start from nothing: each parameter's first contribution overwrites.
  void begin_gradients();
  /// Gradients that no op contributed to become 0. Call after the last backward pass of a step.
  void end_gradients();

  Grad acquire(ParameterId id) override;
  void ready(ParameterId) override {}

  /// Bytes of a store without making it.
  struct Plan {
    std::int64_t parameter_count = 0, values = 0, rounded = 0, gradients = 0, moments = 0;
    std::int64_t total() const { return values + rounded + gradients + moments; }
  };
  static Plan plan(std::span<const ParameterSpec> specs, Dtype dtype, StoreContents contents,
                   Activations activations = Activations::kFull);

 private:
  Tensor view(const Buffer& buffer, std::size_t i) const;
  Tensor flat(const Buffer& buffer) const;

  Exec* exec_;
  std::vector<ParameterSpec> specs_;
  std::vector<FlatRange> ranges_;
  Dtype dtype_;
  Activations activations_;
  std::int64_t parameter_count_ = 0;
  std::int64_t flat_size_ = 0;
  Buffer masters_, rounded_, gradients_, exp_avg_, exp_avg_sq_;
  std::vector<Tensor> values_;
  std::vector<bool> has_gradient_;
};

/// The spec of a parameter as ops read it, among masters of `dtype`.
Spec compute_spec(const ParameterSpec& spec, Dtype dtype, Activations activations);

}  // namespace jiboia
