#pragma once
#include <filesystem>
#include <stdexcept>
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

/// Errors: Checkpoint when `folder` is not there any more, though it was when it was chosen.
void require_still_there(const std::filesystem::path& folder);

/// What `read()` returns, which reads files of the model in `folder`. Whatever it found, or did not
/// find, counts only if the folder is still there: checkpoints of a run in progress go away in one
/// piece. Errors: as require_still_there(); those of `read` while the folder is there.
template <class Read>
auto read_while_there(const std::filesystem::path& folder, Read read) {
  try {
    auto result = read();
    require_still_there(folder);
    return result;
  } catch (const std::runtime_error&) {  // Error, or one of std::filesystem
    require_still_there(folder);
    throw;
  }
}

/// Writes what a Hugging Face folder has beside weights: config.json, generation_config.json and
/// the companions, each all or nothing. Errors: Io.
std::vector<WrittenFile> write_model_description(const std::filesystem::path& folder,
                                                 const ModelConfig& config, Dtype weights,
                                                 const std::vector<CompanionFile>& companions);

}  // namespace jiboia
