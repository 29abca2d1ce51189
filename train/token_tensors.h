#pragma once
#include "data/token_loader.h"
#include "train/model/mamba_lm.h"

namespace jiboia {

/// Views a batch as tensors; it must outlive them.
TokenTensors tensors_of(TokenBatch& batch);

/// Specs of a batch without memory, for dry runs.
TokenTensors planned_tokens(std::int64_t rows, std::int64_t seq_len, bool with_document_starts);

}  // namespace jiboia
