#pragma once
#include <cstdint>
#include <functional>
#include <optional>
#include <span>

#include "core/arena.h"
#include "data/token_dataset.h"
#include "train/model/mamba_lm.h"
#include "train/optim/parameter_store.h"
#include "train/token_tensors.h"

namespace jiboia {

/// Loss on held-out text.
struct Evaluation {
  double loss = 0;  ///< nats per token: mean cross entropy over all targets, no z-loss
  std::int64_t targets = 0;
  std::int64_t rows = 0;
  std::optional<double> bits_per_byte;  ///< when the data knows its bytes

  double perplexity() const;
};

/// How a model is run over data.
struct EvaluationOptions {
  std::int64_t rows_per_batch = 1;
  std::int64_t max_rows = 0;  ///< 0: all
  /// Called with the rows done after each batch.
  std::function<void(std::int64_t rows)> on_rows{};
};

/// Scores the rows of `data` from the first on, where the parameters are. Errors: Data, from
/// reading; Numerics when the loss is not finite.
Evaluation evaluate(const MambaLm& model, const ParameterStore& parameters,
                    const TokenDataset& data, const EvaluationOptions& options,
                    TokenUploader& uploader, Arena& arena);

/// Arena bytes that evaluate() takes.
std::int64_t plan_evaluate(const MambaLm& model, Activations activations, std::int64_t rows,
                           std::int64_t seq_len, Exec& exec);

}  // namespace jiboia
