#pragma once
#include <string_view>

namespace jiboia {

/// Dense matrix product rates of a GPU in FLOP/s with fp32 sums, as the vendor states them: of bf16
/// on tensor cores, and of fp32.
struct PeakRates {
  double bf16 = 0, f32 = 0;
};

/// Those of a GPU by its name, which must be one of the table's as a whole: "NVIDIA H200", but not
/// "NVIDIA H200 MIG 1g.18gb". 0 for all others.
PeakRates peak_rates(std::string_view gpu_name);

}  // namespace jiboia
