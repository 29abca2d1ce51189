#pragma once
#include <filesystem>
#include <string>

#include "core/dtype.h"
#include "train/model/model_config.h"

namespace jiboia {

/// Reads the shape of a model from folder/config.json: Hugging Face's (model_type "mamba"; missing
/// fields take MambaConfig's defaults, intermediate_size can only be expand * hidden_size) or
/// mamba_ssm's own (d_model, n_layer, ssm_cfg, ...; the vocabulary is padded as mamba_ssm does).
/// Errors: Io; Checkpoint, naming file and field, when it is no such model or has an impossible
/// size.
ModelConfig read_model_config(const std::filesystem::path& folder);

/// The text of config.json with every field of MambaConfig, plus `initialisation`, which
/// transformers keeps but does not use. `config` is resolved; ids of -1 become null.
std::string hugging_face_config(const ModelConfig& config, Dtype weights);

/// Whether `text` is a config.json that hugging_face_config() wrote, and not one of a model that
/// transformers has saved since: it keeps our key and notes its own version.
bool is_own_config(const std::string& text);

/// The text of generation_config.json.
std::string hugging_face_generation_config(const ModelConfig& config);

}  // namespace jiboia
