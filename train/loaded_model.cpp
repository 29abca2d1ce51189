#include "train/loaded_model.h"

#include "core/error.h"
#include "train/checkpoint/checkpoint_store.h"
#include "train/checkpoint/model_folder.h"
#include "train/checkpoint/model_weights.h"
#include "train/model/hf_config.h"

namespace jiboia {

namespace fs = std::filesystem;

fs::path find_model_folder(const fs::path& path) {
  const fs::path folder = find_model(path);
  return read_while_there(folder, [&] {
    require(fs::is_directory(folder), ErrorKind::kCheckpoint,
            "'{}' is no folder, expected a model's", folder.string());
    require(fs::exists(folder / "config.json"), ErrorKind::kCheckpoint,
            "'{}' has no config.json: not a model folder", folder.string());
    return folder;
  });
}

LoadedModel load_model(const fs::path& path, Exec& exec, Activations activations) {
  const fs::path folder = find_model_folder(path);
  return read_while_there(folder, [&] {
    MambaLm model(read_model_config(folder));
    ParameterStore parameters(exec, model.parameters(), Dtype::kF32, StoreContents::kValues,
                              activations);
    load_model_weights(folder, parameters);
    return LoadedModel{folder, std::move(model), std::move(parameters)};
  });
}

}  // namespace jiboia
