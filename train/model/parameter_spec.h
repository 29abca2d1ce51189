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

/// One trainable tensor as a model declares it.
struct ParameterSpec {
  std::string name;                      ///< Hugging Face's name, e.g. "backbone.norm_f.weight"
  Shape shape;                           ///< as the ops see it
  std::vector<std::int64_t> file_shape;  ///< as files have it; same elements
  Initializer initializer;
  bool decays = false;  ///< weight decay applies in the scope `default`: matrices only
};

}  // namespace jiboia
