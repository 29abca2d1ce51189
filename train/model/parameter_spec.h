#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "core/shape.h"

namespace jiboia {

/// How a parameter's first values are drawn.
struct Initializer {
  enum class Kind : std::uint8_t {
    kConstant,   ///< every element is `a`
    kUniform,    ///< uniform in [-a, a)
    kNormal,     ///< mean 0, standard deviation a
    kLogStates,  ///< a_log: ln(1), ln(2), ..., ln(N) along every row (S4D-real)
    kTimeStep,   ///< dt_bias: softplus of it is log-uniform in [a, b], at least c
  };
  Kind kind = Kind::kConstant;
  double a = 0, b = 0, c = 0;
};

/// What a parameter is to the optimizer and to mixed precision.
enum class ParameterRole : std::uint8_t {
  kMatrix,  ///< of a matrix product, or the embedding
  kFilter,  ///< of a convolution
  kOther,   ///< norms, biases, A_log, D
};
/// Whether weight decay applies in the scope `default`.
constexpr bool decays(ParameterRole role) { return role != ParameterRole::kOther; }
/// Whether ops read it in fp32 whatever dtype activations have.
constexpr bool full_precision(ParameterRole role) { return role != ParameterRole::kMatrix; }

/// One trainable tensor as a model declares it.
struct ParameterSpec {
  std::string name;                      ///< Hugging Face's name, e.g. "backbone.norm_f.weight"
  Shape shape;                           ///< as the ops see it
  std::vector<std::int64_t> file_shape;  ///< as files have it; same elements
  Initializer initializer;
  ParameterRole role = ParameterRole::kOther;
};

}  // namespace jiboia
