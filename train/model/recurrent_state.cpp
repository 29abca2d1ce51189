#include "train/model/recurrent_state.h"

#include <algorithm>
#include <cstring>

namespace jiboia {

RecurrentState::RecurrentState(const ModelConfig& config, std::int64_t rows, Dtype dtype) {
  const std::int64_t D = config.intermediate_size();
  const Spec history(dtype, {rows, config.conv_kernel - 1, D});
  const Spec scan(dtype, {rows, config.state_size, D});
  const std::int64_t layer_bytes = history.bytes() + scan.bytes();
  memory_ = HostBuffer(config.num_hidden_layers * layer_bytes, "the state of a generation");
  for (std::int64_t i = 0; i < config.num_hidden_layers; ++i) {
    std::byte* at = memory_.data() + i * layer_bytes;
    // A convolution of one tap remembers nothing.
    layers_.push_back(
        {history.size() ? Tensor(history, at) : Tensor(), Tensor(scan, at + history.bytes())});
  }
}

void copy(Exec&, const Tensor& from, const Tensor& to) {
  require(
      from.dtype == to.dtype && from.size() == to.size() && from.contiguous() && to.contiguous(),
      ErrorKind::kInternal, "copy of {} to {}", from.to_string(), to.to_string());
  std::memcpy(to.data, from.data, static_cast<std::size_t>(from.bytes()));
}

void push_history(Exec&, const Tensor& x, const Tensor& history) {
  if (!history) return;
  const std::int64_t rows = x.shape[0], L = x.shape[1], kept = history.shape[1];
  const std::int64_t D = x.columns(), element = size_of(x.dtype);
  const auto* from = static_cast<const std::byte*>(x.data);
  auto* to = static_cast<std::byte*>(history.data);
  const auto row_bytes = static_cast<std::size_t>(D * element);
  for (std::int64_t b = 0; b < rows; ++b) {
    for (std::int64_t i = 0; i < kept; ++i) {  // oldest first: reads run ahead of writes
      const std::int64_t t = L - kept + i;     // position in x; before it, in the old history
      std::byte* target = to + (b * kept + i) * D * element;
      const std::byte* source = t >= 0 ? from + (b * L + t) * x.row_stride * element
                                       : to + (b * kept + i + L) * D * element;
      std::memmove(target, source, row_bytes);
    }
  }
}

}  // namespace jiboia
