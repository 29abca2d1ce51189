#include "train/token_tensors.h"

namespace jiboia {

TokenTensors tensors_of(TokenBatch& batch) {
  const Spec spec(Dtype::kI32, {batch.rows, batch.seq_len});
  const auto view = [&](std::vector<std::int32_t>& values) {
    return values.empty() ? Tensor() : Tensor(spec, values.data());
  };
  return {view(batch.tokens), view(batch.targets), view(batch.document_start)};
}

TokenTensors planned_tokens(std::int64_t rows, std::int64_t seq_len, bool with_document_starts) {
  const Tensor tokens(Spec(Dtype::kI32, {rows, seq_len}), nullptr);
  return {tokens, tokens, with_document_starts ? tokens : Tensor()};
}

}  // namespace jiboia
