#pragma once
#include <cstdint>
#include <functional>
#include <limits>
#include <optional>
#include <span>
#include <vector>

#include "core/host_access.h"
#include "train/model/mamba_lm.h"
#include "train/optim/parameter_store.h"

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
  /// Works where the parameters are, in planned_bytes() of `arena`. All must outlive it.
  Generator(const MambaLm& model, const ParameterStore& parameters, Arena& arena);

  /// Draws up to `count` tokens after `prompt`, calling `emit` with each, until it returns false;
  /// stops after `end_token`, which is not emitted. Errors: InvalidArgument when the prompt is
  /// empty or has an id that the model does not know.
  void generate(std::span<const std::int32_t> prompt, std::int64_t count,
                const SamplingOptions& options, std::optional<std::int32_t> end_token,
                const std::function<bool(std::int32_t)>& emit);

  /// Arena bytes that generate() takes.
  static std::int64_t planned_bytes(const MambaLm& model, Activations activations, Exec& exec);

 private:
  class Block;
  static constexpr std::int64_t kPiece = 128;  // tokens of the prompt that are read at once

  const MambaLm& model_;
  const ParameterStore& parameters_;
  Arena& arena_;
  HostAccess host_;
};

}  // namespace jiboia
