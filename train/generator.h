#pragma once
#include <cstdint>
#include <functional>
#include <limits>
#include <optional>
#include <span>
#include <vector>

#include "train/model/mamba_lm.h"
#include "train/workspace.h"

namespace jiboia {

/// How the next token is drawn.
struct SamplingOptions {
  double temperature = 1;  ///< 0: always the likeliest
  double top_p = 1;        ///< only the likeliest tokens that together have this probability
  std::uint64_t seed = 0;
  /// Only tokens below this are drawn: rows that pad a model's vocabulary stand for no text.
  std::int64_t vocab_size = std::numeric_limits<std::int64_t>::max();
};

/// Draws token number `i` of a sample from logits. Equal options, i and logits give equal tokens.
/// Errors: Numerics when a logit is NaN.
std::int32_t sample(std::span<const float> logits, const SamplingOptions& options, std::uint64_t i);

/// Continues a text token by token with recurrent state: the cost of a token does not depend on how
/// many came before.
class Generator {
 public:
  Generator(const MambaLm& model, std::span<const Tensor> parameters, Exec& exec);

  /// Draws up to `count` tokens after `prompt`, calling `emit` with each; stops after `end_token`,
  /// which is not emitted. Errors: InvalidArgument when the prompt is empty or has an id that the
  /// model does not know.
  void generate(std::span<const std::int32_t> prompt, std::int64_t count,
                const SamplingOptions& options, std::optional<std::int32_t> end_token,
                const std::function<void(std::int32_t)>& emit);

 private:
  static constexpr std::int64_t kPiece = 128;  // tokens of the prompt that are read at once
  std::int64_t planned_bytes() const;

  const MambaLm& model_;
  std::span<const Tensor> parameters_;
  Exec& exec_;
  Workspace workspace_;
};

}  // namespace jiboia
