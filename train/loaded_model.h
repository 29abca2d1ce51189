#pragma once
#include <filesystem>

#include "train/model/mamba_lm.h"
#include "train/optim/parameter_store.h"

namespace jiboia {

/// A model with its weights, for programs that do not train.
struct LoadedModel {
  std::filesystem::path folder;
  MambaLm model;
  ParameterStore parameters;
};

/// The folder that a user means by `path`: any Hugging Face Mamba folder, a checkpoint, or a run's
/// output_dir, whose newest undamaged checkpoint is taken. To be read by read_while_there().
/// Errors: Checkpoint, Io.
std::filesystem::path find_model_folder(const std::filesystem::path& path);

/// Loads what a user means by `path`, see find_model_folder(), to where `exec` computes, which must
/// outlive it.
/// Errors: Checkpoint, Io.
LoadedModel load_model(const std::filesystem::path& path, Exec& exec,
                       Activations activations = Activations::kFull);

}  // namespace jiboia
