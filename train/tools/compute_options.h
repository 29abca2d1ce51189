#pragma once
#include <CLI/CLI.hpp>

#include "train/device.h"

namespace jiboia {

/// Where and in what a program that does not train computes.
struct ComputeOptions {
  DeviceChoice device = DeviceChoice::kAuto;
  Precision precision = Precision::kFp32;
  int threads = 0;
};

/// Adds --device, --precision and --threads.
void add_compute_options(CLI::App& app, ComputeOptions& options);

}  // namespace jiboia
