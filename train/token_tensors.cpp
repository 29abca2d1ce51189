#include "train/token_tensors.h"

#include <algorithm>

namespace jiboia {

TokenUploader::TokenUploader(Exec& exec, std::int64_t rows, std::int64_t seq_len)
    : capacity_(rows * seq_len),
      ring_(make_upload_ring(exec, kSlots, kArrays * array_bytes(rows, seq_len))) {}

std::int64_t TokenUploader::array_bytes(std::int64_t rows, std::int64_t seq_len) {
  const std::int64_t bytes = rows * seq_len * size_of(Dtype::kI32);
  return (bytes + 255) / 256 * 256;
}

std::int64_t TokenUploader::planned_bytes(const Exec& exec, std::int64_t rows,
                                          std::int64_t seq_len) {
  return upload_ring_bytes(exec, kSlots, kArrays * array_bytes(rows, seq_len));
}

TokenTensors TokenUploader::upload(const TokenBatch& batch) {
  require(batch.rows * batch.seq_len <= capacity_, ErrorKind::kInternal,
          "a batch of {} tokens for an uploader of {}", batch.rows * batch.seq_len, capacity_);
  const std::int64_t stride = array_bytes(batch.rows, batch.seq_len);
  std::byte* host = ring_->fill();
  const std::vector<std::int32_t>* arrays[kArrays] = {&batch.tokens, &batch.targets,
                                                      &batch.document_start};
  for (int i = 0; i < kArrays; ++i) {
    std::ranges::copy(*arrays[i], reinterpret_cast<std::int32_t*>(host + i * stride));
  }
  ring_->upload(kArrays * stride);
  const Spec spec(Dtype::kI32, {batch.rows, batch.seq_len});
  const auto view = [&](int i) {
    return arrays[i]->empty() ? Tensor() : Tensor(spec, ring_->data() + i * stride);
  };
  return {view(0), view(1), view(2)};
}

TokenTensors planned_tokens(std::int64_t rows, std::int64_t seq_len, bool with_document_starts) {
  const Tensor tokens(Spec(Dtype::kI32, {rows, seq_len}), nullptr);
  return {tokens, tokens, with_document_starts ? tokens : Tensor()};
}

}  // namespace jiboia
