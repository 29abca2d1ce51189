#pragma once
#include <filesystem>
#include <string>
#include <vector>

#include "core/dtype.h"
#include "data/weights_folder.h"
#include "train/model/model_config.h"

namespace jiboia {

/// A small file that models carry along unchanged.
struct CompanionFile {
  std::string name;
  std::string contents;
};

/// The tokenizer's files that `folder` has, of those that transformers looks for. Read once at the
/// start of a run, so that no checkpoint depends on the folder's later fate. Errors: Io.
std::vector<CompanionFile> read_tokenizer_files(const std::filesystem::path& folder);

/// Whether models have a file of that name beside their weights: config.json,
/// generation_config.json or one of the tokenizer's.
bool is_model_description(const std::string& name);

/// Writes what a Hugging Face folder has beside weights: config.json, generation_config.json and
/// the companions, each all or nothing. Errors: Io.
std::vector<WrittenFile> write_model_description(const std::filesystem::path& folder,
                                                 const ModelConfig& config, Dtype weights,
                                                 const std::vector<CompanionFile>& companions);

}  // namespace jiboia
