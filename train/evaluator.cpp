#include "train/evaluator.h"

#include <cmath>
#include <numbers>

#include "data/token_loader.h"
#include "train/memory_plan.h"

namespace jiboia {

double Evaluation::perplexity() const { return std::exp(loss); }

Evaluation evaluate(const MambaLm& model, const ParameterStore& parameters,
                    const TokenDataset& data, const EvaluationOptions& options,
                    TokenUploader& uploader, Arena& arena) {
  Exec& exec = parameters.exec();
  TokenLoader loader(data, {.order = RowOrder::kSequential,
                            .rows_per_batch = options.rows_per_batch,
                            .max_rows = options.max_rows});
  Evaluation result;
  double sum = 0;
  while (std::optional<TokenBatch> batch = loader.next()) {
    std::int64_t targets = 0;
    for (std::int32_t target : batch->targets) targets += target != kIgnoredTarget;
    Tape tape(exec, arena, parameters.values(), nullptr, TapeMode::kEvaluate);
    const LossVars losses = model.loss(tape, uploader.upload(*batch), 0, Recompute::kNone);
    sum += read_scalar(exec, tape.value(losses.cross_entropy)) * static_cast<double>(targets);
    result.targets += targets;
    result.rows += batch->data_rows;
    if (options.on_rows) options.on_rows(result.rows);
  }
  require(result.targets > 0, ErrorKind::kData, "{}: no row to evaluate on",
          data.manifest().folder.string());
  result.loss = sum / static_cast<double>(result.targets);
  require(std::isfinite(result.loss), ErrorKind::kNumerics, "the loss on {} is {}",
          data.manifest().folder.string(), result.loss);
  if (const auto bytes_per_token = data.manifest().bytes_per_token()) {
    result.bits_per_byte = result.loss / std::numbers::ln2 / *bytes_per_token;
  }
  return result;
}

std::int64_t plan_evaluate(const MambaLm& model, Activations activations, std::int64_t rows,
                           std::int64_t seq_len, Exec& exec) {
  return plan_evaluation(model, activations, exec, [&](Tape& tape) {
    model.loss(tape, planned_tokens(rows, seq_len, true), 0, Recompute::kNone);
  });
}

}  // namespace jiboia
