#include "train/loaded_model.h"

#include "train/checkpoint/checkpoint_store.h"
#include "train/checkpoint/model_weights.h"
#include "train/model/hf_config.h"

namespace jiboia {

LoadedModel load_model(const std::filesystem::path& path) {
  const std::filesystem::path folder = find_model(path);
  MambaLm model(read_model_config(folder));
  ParameterStore parameters(model.parameters(), Dtype::kF32, StoreContents::kValues);
  load_model_weights(folder, parameters);
  return {folder, std::move(model), std::move(parameters)};
}

}  // namespace jiboia
