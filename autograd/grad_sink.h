#pragma once
#include "autograd/parameter.h"
#include "core/op.h"

namespace jiboia {

/// Receives the gradients of parameters. The tape asks where each goes and tells when it is final
/// for this backward pass, which is the moment at which a reducer may start to sum it over ranks.
class GradSink {
 public:
  virtual ~GradSink() = default;
  /// The memory of a parameter's gradient, and whether an op overwrites it or adds to it. Called
  /// once for each use of the parameter; every use after the first of a pass must be told to add.
  virtual Grad acquire(ParameterId id) = 0;
  /// All uses of the parameter in this backward pass have contributed.
  virtual void ready(ParameterId id) = 0;
};

}  // namespace jiboia
