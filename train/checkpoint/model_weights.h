#pragma once
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "data/weights_folder.h"
#include "train/model/parameter_spec.h"
#include "train/optim/parameter_store.h"

namespace jiboia {

/// What to do about tensors of a file that the model does not have.
enum class ExtraTensors { kRefuse, kWarn };

/// A Mamba model's weights in files, under this project's names, whoever wrote them: transformers,
/// mamba_ssm (`backbone.embedding.weight`) or TRI's mamba-7b-rw (`layers.*`, `norm_f.*`,
/// `model.lm_head.weight`). A head that a model with tied embeddings does not need is left out; if
/// it is not the embedding, bit for bit, that is warned about.
class ModelWeights {
 public:
  /// Matches the files with the parameters of a model. Errors: as WeightsFolder; Checkpoint with a
  /// table of all tensors that are missing, not expected, of another shape, or not of floats.
  ModelWeights(const std::filesystem::path& folder_or_file, std::span<const ParameterSpec> specs,
               ExtraTensors extra = ExtraTensors::kRefuse);

  /// Converts elements [first, first + out.size()) of parameter `name` to T (float or double).
  template <class T>
  void read(std::string_view name, std::int64_t first, std::span<T> out) {
    files_.read(stored_names_.find(name)->second, first, out);
  }
  /// Warns about the NaN and infinite values among all that was read.
  void warn_about_non_finite() const { files_.warn_about_non_finite(); }

 private:
  void check_tied_head(const std::string& head, const std::string& embedding);

  std::filesystem::path path_;
  WeightsFolder files_;
  std::map<std::string, std::string, std::less<>> stored_names_;  ///< by the model's name
};

/// Fills a store's values from a model's files; see ModelWeights for the errors. NaN and infinite
/// weights are warned about.
void load_model_weights(const std::filesystem::path& folder_or_file, ParameterStore& store,
                        ExtraTensors extra = ExtraTensors::kRefuse);

/// Size up to which a model stays one file: transformers' own limit up to version 4.
inline constexpr std::int64_t kDefaultShardBytes = 5'000'000'000;

/// Writes an f32 store's values as Hugging Face's model.safetensors, or as shards with an index.
/// Errors: Io; Unsupported for a store of another dtype.
std::vector<WrittenFile> write_model_weights(const std::filesystem::path& folder,
                                             const ParameterStore& store,
                                             std::int64_t max_shard_bytes = kDefaultShardBytes);

/// Writes a model's files anew, as f32 or bf16. With bf16, A_log and D stay f32: the recurrence
/// raises errors of A to the power of the distance, and mamba_ssm, too, computes both in f32.
/// Errors: Io, Checkpoint, Unsupported.
std::vector<WrittenFile> convert_model_weights(ModelWeights& weights,
                                               std::span<const ParameterSpec> specs, Dtype dtype,
                                               const std::filesystem::path& folder,
                                               std::int64_t max_shard_bytes);

}  // namespace jiboia
