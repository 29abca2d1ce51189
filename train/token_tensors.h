#pragma once
#include <memory>

#include "core/upload.h"
#include "data/token_loader.h"
#include "train/model/mamba_lm.h"

namespace jiboia {

/// Brings batches to where an Exec computes, beside its work on earlier ones.
class TokenUploader {
 public:
  /// For batches of up to rows * seq_len tokens. `exec` must outlive it. Errors: OutOfMemory, Cuda.
  TokenUploader(Exec& exec, std::int64_t rows, std::int64_t seq_len);

  /// The batch as tensors, for what the exec is asked until the next call; at the same addresses
  /// for all batches of one shape. The batch itself may go when this returns.
  TokenTensors upload(const TokenBatch& batch);

  /// Bytes that it takes where `exec` computes.
  static std::int64_t planned_bytes(const Exec& exec, std::int64_t rows, std::int64_t seq_len);

 private:
  static constexpr int kSlots = 3;
  static constexpr int kArrays = 3;  // tokens, targets, document starts
  static std::int64_t array_bytes(std::int64_t rows, std::int64_t seq_len);

  std::int64_t capacity_;  // tokens
  std::unique_ptr<UploadRing> ring_;
};

/// Specs of a batch without memory, for dry runs.
TokenTensors planned_tokens(std::int64_t rows, std::int64_t seq_len, bool with_document_starts);

}  // namespace jiboia
