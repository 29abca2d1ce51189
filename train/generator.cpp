#include "train/generator.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/rng.h"
#include "train/memory_plan.h"

namespace jiboia {

std::int32_t sample(std::span<const float> logits, const SamplingOptions& options,
                    std::uint64_t i) {
  const auto tokens = static_cast<std::int64_t>(logits.size());
  logits = logits.first(static_cast<std::size_t>(std::min(tokens, options.vocab_size)));
  const auto likeliest = std::max_element(logits.begin(), logits.end());
  for (float logit : logits) {
    require(!std::isnan(logit), ErrorKind::kNumerics, "the model's logits are not numbers");
  }
  if (options.temperature == 0) return static_cast<std::int32_t>(likeliest - logits.begin());

  std::vector<double> weights(logits.size());
  for (std::size_t v = 0; v < logits.size(); ++v) {
    weights[v] = std::exp((static_cast<double>(logits[v]) - *likeliest) / options.temperature);
  }
  std::vector<std::int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  // Ties keep the order of ids, so that equal logits give equal samples.
  std::stable_sort(order.begin(), order.end(), [&](std::int32_t a, std::int32_t b) {
    return weights[static_cast<std::size_t>(a)] > weights[static_cast<std::size_t>(b)];
  });
  const double total = std::accumulate(weights.begin(), weights.end(), 0.0);
  std::size_t kept = 0;
  double mass = 0;
  while (kept < order.size() && (kept == 0 || mass < options.top_p * total)) {
    mass += weights[static_cast<std::size_t>(order[kept++])];
  }
  double remaining = Philox(options.seed, RandomPurpose::kSampling).uniform(i) * mass;
  for (std::size_t k = 0; k < kept; ++k) {
    remaining -= weights[static_cast<std::size_t>(order[k])];
    if (remaining < 0) return order[k];
  }
  return order[kept - 1];
}

Generator::Generator(const MambaLm& model, const ParameterStore& parameters, Arena& arena)
    : model_(model), parameters_(parameters), arena_(arena), host_(parameters.exec()) {}

/// Arena memory that is given back when a generation ends, however it ends.
class Generator::Block {
 public:
  Block(Arena& arena, std::int64_t bytes, const char* label)
      : arena_(arena), block_(arena.allocate(bytes, MemoryUse::kValue, label)) {}
  ~Block() { arena_.free(block_); }
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;
  std::byte* data() const { return block_.data; }

 private:
  Arena& arena_;
  Arena::Block block_;
};

std::int64_t Generator::planned_bytes(const MambaLm& model, Activations activations, Exec& exec) {
  const Dtype dtype = activations == Activations::kBf16 ? Dtype::kBf16 : Dtype::kF32;
  Arena arena;
  const Block tokens(arena, kPiece * size_of(Dtype::kI32), "generator.tokens");
  const Block memory(arena, RecurrentState::bytes(model.config(), 1, dtype), "generator.state");
  RecurrentState state(model.config(), 1, dtype, nullptr);
  const std::vector<Tensor> parameters = planned_parameters(model, Dtype::kF32, activations);
  // Of a first-fit arena a shorter piece might take more than a longer one.
  for (std::int64_t size = 1; size <= kPiece; ++size) {
    Tape tape(exec, arena, parameters, nullptr, TapeMode::kEvaluate);
    const Var hidden = model.hidden(tape, Tensor(Spec(Dtype::kI32, {1, size}), nullptr), state);
    if (size == 1) model.logits(tape, hidden);
  }
  return arena.peak_bytes();
}

void Generator::generate(std::span<const std::int32_t> prompt, std::int64_t count,
                         const SamplingOptions& options, std::optional<std::int32_t> end_token,
                         const std::function<bool(std::int32_t)>& emit) {
  require(!prompt.empty(), ErrorKind::kInvalidArgument, "the prompt has no token");
  for (std::int32_t token : prompt) {
    require(token >= 0 && token < model_.config().vocab_size, ErrorKind::kInvalidArgument,
            "the prompt has token {}; the model knows 0 to {}", token,
            model_.config().vocab_size - 1);
  }
  Exec& exec = parameters_.exec();
  const Dtype dtype = parameters_.values()[0].dtype;
  const Block tokens(arena_, kPiece * size_of(Dtype::kI32), "generator.tokens");
  const std::int64_t state_bytes = RecurrentState::bytes(model_.config(), 1, dtype);
  const Block memory(arena_, state_bytes, "generator.state");
  fill_zero(exec, Tensor(Spec(Dtype::kU8, {state_bytes}), memory.data()));
  RecurrentState state(model_.config(), 1, dtype, memory.data());
  const auto piece_of = [&](std::span<const std::int32_t> from) {
    const Spec spec(Dtype::kI32, {1, static_cast<std::int64_t>(from.size())});
    const Tensor piece(spec, tokens.data());
    copy(exec, Tensor(spec, const_cast<std::int32_t*>(from.data())), piece);
    return piece;
  };

  std::span<const std::int32_t> rest = prompt;
  while (rest.size() > 1) {  // the last token is read below, with the head
    const std::size_t size = std::min<std::size_t>(rest.size() - 1, kPiece);
    Tape tape(exec, arena_, parameters_.values(), nullptr, TapeMode::kEvaluate);
    model_.hidden(tape, piece_of(rest.first(size)), state);
    rest = rest.subspan(size);
  }
  std::int32_t token = rest[0];
  std::vector<float> logits(static_cast<std::size_t>(model_.config().vocab_size));
  for (std::int64_t i = 0; i < count; ++i) {
    Tape tape(exec, arena_, parameters_.values(), nullptr, TapeMode::kEvaluate);
    const Var hidden = model_.hidden(tape, piece_of({&token, 1}), state);
    const Tensor values = tape.value(model_.logits(tape, hidden));
    host_.read_as_float(values, logits);
    token = sample(logits, options, static_cast<std::uint64_t>(i));
    if (token == end_token || !emit(token)) return;
  }
}

}  // namespace jiboia
