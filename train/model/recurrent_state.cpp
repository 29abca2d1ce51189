#include "train/model/recurrent_state.h"

namespace jiboia {
namespace {

struct LayerSpecs {
  Spec history, scan;
  // Every state begins at a multiple of 256 bytes.
  std::int64_t history_bytes() const { return (history.bytes() + 255) / 256 * 256; }
  std::int64_t bytes() const { return history_bytes() + (scan.bytes() + 255) / 256 * 256; }
};

LayerSpecs specs_of(const ModelConfig& config, std::int64_t rows, Dtype dtype) {
  const std::int64_t D = config.intermediate_size();
  return {.history = Spec(dtype, {rows, config.conv_kernel - 1, D}),
          .scan = Spec(accumulator_of(dtype), {rows, config.state_size, D})};
}

}  // namespace

RecurrentState::RecurrentState(const ModelConfig& config, std::int64_t rows, Dtype dtype,
                               std::byte* memory) {
  const LayerSpecs specs = specs_of(config, rows, dtype);
  for (std::int64_t i = 0; i < config.num_hidden_layers; ++i) {
    std::byte* at = memory ? memory + i * specs.bytes() : nullptr;
    std::byte* scan = memory ? at + specs.history_bytes() : nullptr;
    // A convolution of one tap remembers nothing.
    layers_.push_back(
        {specs.history.size() ? Tensor(specs.history, at) : Tensor(), Tensor(specs.scan, scan)});
  }
}

std::int64_t RecurrentState::bytes(const ModelConfig& config, std::int64_t rows, Dtype dtype) {
  return config.num_hidden_layers * specs_of(config, rows, dtype).bytes();
}

void push_history(Exec& exec, const Tensor& x, const Tensor& history) {
  if (!history) return;
  const std::int64_t rows = x.shape[0], L = x.shape[1], kept = history.shape[1];
  const Spec row(x.dtype, {x.columns()});
  const auto row_of = [&](const Tensor& tensor, std::int64_t i) {
    return Tensor(
        row, static_cast<std::byte*>(tensor.data) + i * tensor.row_stride * size_of(tensor.dtype));
  };
  for (std::int64_t b = 0; b < rows; ++b) {
    for (std::int64_t i = 0; i < kept; ++i) {  // oldest first: reads run ahead of writes
      const std::int64_t t = L - kept + i;     // position in x; before it, in the old history
      copy(exec, t >= 0 ? row_of(x, b * L + t) : row_of(history, b * kept + i + L),
           row_of(history, b * kept + i));
    }
  }
}

}  // namespace jiboia
