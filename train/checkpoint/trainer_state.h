#pragma once
#include <cstdint>
#include <filesystem>
#include <map>
#include <string>

#include "train/config/config.h"

namespace jiboia {

/// What a run is made from, for telling whether a checkpoint may go on as this run.
struct RunInputs {
  std::map<std::string, std::string> config;  ///< every key and its value, as YAML
  std::string data_fingerprint;               ///< ShardManifest::fingerprint() of the training data

  bool operator==(const RunInputs&) const = default;
};

/// The RunInputs of a configuration and its training data.
RunInputs make_run_inputs(const RunConfig& config, std::string data_fingerprint);

/// Whether a run may go on with other data, another seed or another row length than it began with.
enum class DataChange { kRefuse, kAllow };

/// Compares a checkpoint's inputs with those of the run that wants to go on from it. Differences
/// that are allowed are logged. Errors: Checkpoint, naming keys and both values, when the model has
/// another shape, or, unless allowed, when the row at a global position is not the same any more.
void check_inputs(const RunInputs& saved, const RunInputs& now, DataChange data_change);

/// A training run between two steps, without its tensors: everything later steps depend on.
struct TrainerState {
  static constexpr const char* kFileName = "trainer_state.json";

  std::int64_t step = 0;      ///< optimizer steps done
  std::int64_t tokens = 0;    ///< positions seen
  std::int64_t next_row = 0;  ///< global position of the first row not seen
  RunInputs inputs;

  bool operator==(const TrainerState&) const = default;
};

std::string to_text(const TrainerState& state);

/// Errors: Io; Checkpoint, naming file and key.
TrainerState read_trainer_state(const std::filesystem::path& folder);

}  // namespace jiboia
