#pragma once
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "tests/bench/op_launches.h"

namespace jiboia::bench {

/// A micro-batch of a model: B rows of L tokens, width E, vocabulary V.
struct ModelShape {
  std::int64_t B = 1, L = 2048, E = 768, V = 32000;
  std::int64_t layers = 1;  ///< whose parameters an optimizer's pass updates at once

  std::int64_t D() const { return 2 * E; }
  static constexpr std::int64_t N = 16, W = 4;
  std::int64_t R() const { return ceil_div(E, 16); }
  std::int64_t tokens() const { return B * L; }
};

/// The least that a pass has to do: bytes read and written once, whatever an implementation saves
/// or reads twice, and operations of its matrix products.
struct Work {
  double bytes = 0, flops = 0;
};

/// An op at a shape: what it is called, what it has to do, how it is made ready.
struct OpCase {
  std::string op, shape;
  Work forward;
  std::optional<Work> backward;
  std::function<Launches(BenchTensors&)> prepare;

  /// "selective_scan backward (32, 1536)"
  std::string name(Pass pass) const {
    return fmt::format("{} {} {}", op, pass == Pass::kForward ? "forward" : "backward", shape);
  }
};

/// All ops of a model at these shapes, on tensors that lie as the model has them, in activations of
/// dtype `activation`. Shapes that a case shares with an earlier one are left out.
/// `document_length` > 0: documents of that many tokens, 0: none are marked.
std::vector<OpCase> op_cases(const std::vector<ModelShape>& shapes, Dtype activation,
                             std::int64_t document_length);

/// Those of the recipes.
std::vector<ModelShape> recipe_shapes();

}  // namespace jiboia::bench
