#include "train/loaded_model.h"

#include "core/error.h"
#include "train/checkpoint/checkpoint_store.h"
#include "train/checkpoint/model_weights.h"
#include "train/model/hf_config.h"

namespace jiboia {

namespace fs = std::filesystem;

fs::path find_model_folder(const fs::path& path) {
  require(fs::exists(path), ErrorKind::kCheckpoint, "'{}': no such folder", path.string());
  require(fs::is_directory(path), ErrorKind::kCheckpoint, "'{}' is no folder, expected a model's",
          path.string());
  const fs::path folder = find_model(path);
  require(fs::exists(folder / "config.json"), ErrorKind::kCheckpoint,
          "'{}' has no config.json: not a model folder", folder.string());
  return folder;
}

LoadedModel load_model(const fs::path& path, Exec& exec, Activations activations) {
  const fs::path folder = find_model_folder(path);
  MambaLm model(read_model_config(folder));
  ParameterStore parameters(exec, model.parameters(), Dtype::kF32, StoreContents::kValues,
                            activations);
  load_model_weights(folder, parameters);
  return {folder, std::move(model), std::move(parameters)};
}

}  // namespace jiboia
