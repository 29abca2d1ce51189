#include "train/checkpoint/model_folder.h"

#include <algorithm>
#include <array>

#include "core/error.h"
#include "train/model/hf_config.h"

namespace jiboia {
namespace {

constexpr std::array kTokenizerFiles{"tokenizer.json",
                                     "tokenizer_config.json",
                                     "special_tokens_map.json",
                                     "added_tokens.json",
                                     "vocab.json",
                                     "merges.txt",
                                     "tokenizer.model"};
constexpr std::int64_t kMaxTokenizerBytes = std::int64_t{256} << 20;

}  // namespace

std::vector<CompanionFile> read_tokenizer_files(const std::filesystem::path& folder) {
  std::vector<CompanionFile> files;
  for (const char* name : kTokenizerFiles) {
    std::error_code ignored;  // a file that cannot be examined fails with a reason when it is read
    const auto type = std::filesystem::status(folder / name, ignored).type();
    if (type == std::filesystem::file_type::not_found) continue;
    files.push_back({name, read_text_file(folder / name, kMaxTokenizerBytes)});
  }
  return files;
}

void require_still_there(const std::filesystem::path& folder) {
  std::error_code ignored;  // a folder that cannot be examined is there
  require(std::filesystem::status(folder, ignored).type() != std::filesystem::file_type::not_found,
          ErrorKind::kCheckpoint,
          "'{}' was removed while it was read; a run in progress removes old checkpoints "
          "(checkpoint.keep); start again, or name another",
          folder.string());
}

bool is_model_description(const std::string& name) {
  return name == "config.json" || name == "generation_config.json" ||
         std::ranges::find(kTokenizerFiles, name) != kTokenizerFiles.end();
}

std::vector<WrittenFile> write_model_description(const std::filesystem::path& folder,
                                                 const ModelConfig& config, Dtype weights,
                                                 const std::vector<CompanionFile>& companions) {
  std::vector<CompanionFile> files = {
      {"config.json", hugging_face_config(config, weights)},
      {"generation_config.json", hugging_face_generation_config(config)}};
  files.insert(files.end(), companions.begin(), companions.end());
  std::vector<WrittenFile> written;
  for (const CompanionFile& file : files)
    written.push_back({file.name, write_file_atomically(folder / file.name, file.contents)});
  return written;
}

}  // namespace jiboia
