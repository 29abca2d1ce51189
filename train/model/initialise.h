#pragma once
#include <cstdint>

#include "train/optim/parameter_store.h"

namespace jiboia {

/// Draws the first values of every parameter, as its Initializer says. Element i of parameter p is
/// a function of (seed, p, i), so it depends on neither threads nor ranks. Drawn by `threads` of
/// the CPU (0: all cores) whatever the exec, so that CPU and GPU start with the same bits.
void initialise(ParameterStore& parameters, std::uint64_t seed, int threads = 0);

}  // namespace jiboia
