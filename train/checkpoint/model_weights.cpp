#include "train/checkpoint/model_weights.h"

#include <algorithm>
#include <cstring>

#include "core/error.h"
#include "core/host_access.h"
#include "core/log.h"

namespace jiboia {
namespace {

constexpr const char* kEmbedding = "backbone.embeddings.weight";
constexpr const char* kHead = "lm_head.weight";
constexpr std::int64_t kPieceElements = 1 << 20;  // read at a time

/// The name in transformers of a tensor that may come from another library.
std::string canonical_name(std::string_view stored) {
  if (stored.starts_with("model.")) stored.remove_prefix(std::strlen("model."));
  std::string name(stored);
  const auto begins_with = [&](const char* part) { return name.starts_with(part); };
  if (begins_with("layers.") || begins_with("norm_f.") || begins_with("embedding"))
    name.insert(0, "backbone.");
  return name == "backbone.embedding.weight" ? kEmbedding : name;
}

std::string shape_text(std::span<const std::int64_t> shape) {
  return fmt::format("({})", fmt::join(shape, ", "));
}

/// What keeps a stored tensor from being `spec`'s values; empty when nothing does.
std::string find_mismatch(const SafetensorsEntry& entry, const ParameterSpec& spec) {
  if (!std::ranges::equal(entry.shape, spec.file_shape))
    return fmt::format("is {}, expected {}", shape_text(entry.shape), shape_text(spec.file_shape));
  const bool is_float = entry.dtype == Dtype::kF32 || entry.dtype == Dtype::kF64 ||
                        entry.dtype == Dtype::kBf16 || entry.dtype == Dtype::kF16;
  return is_float ? "" : fmt::format("is {}, expected F32, BF16, F16 or F64", entry.dtype_name);
}

/// Calls visit(first, count) for consecutive pieces of `elements` elements.
template <class Visit>
void for_each_piece(std::int64_t elements, Visit visit) {
  for (std::int64_t first = 0; first < elements; first += kPieceElements)
    visit(first, static_cast<std::size_t>(std::min(kPieceElements, elements - first)));
}

std::vector<TensorInfo> tensors_of(std::span<const ParameterSpec> specs, Dtype dtype) {
  std::vector<TensorInfo> tensors;
  for (const ParameterSpec& spec : specs) {
    const bool keeps_f32 = spec.name.ends_with(".A_log") || spec.name.ends_with(".D");
    tensors.push_back({spec.name, keeps_f32 ? Dtype::kF32 : dtype, spec.file_shape});
  }
  return tensors;
}

}  // namespace

ModelWeights::ModelWeights(const std::filesystem::path& folder_or_file,
                           std::span<const ParameterSpec> specs, ExtraTensors extra)
    : path_(folder_or_file), files_(folder_or_file) {
  std::vector<std::string> problems;
  for (const std::string& stored : files_.names()) {
    const auto [match, is_new] = stored_names_.emplace(canonical_name(stored), stored);
    if (!is_new)
      problems.push_back(fmt::format("{}: is the same tensor as {}", stored, match->second));
  }

  auto unclaimed = stored_names_;
  for (const ParameterSpec& spec : specs) {
    const auto stored = unclaimed.find(spec.name);
    if (stored == unclaimed.end()) {
      problems.push_back(spec.name + ": is missing");
      continue;
    }
    const std::string mismatch = find_mismatch(files_.at(stored->second), spec);
    if (!mismatch.empty()) problems.push_back(fmt::format("{}: {}", stored->second, mismatch));
    unclaimed.erase(stored);
  }
  const auto head = unclaimed.extract(kHead);  // left over when embeddings are tied

  for (const auto& [name, stored] : unclaimed) {
    if (extra == ExtraTensors::kRefuse)
      problems.push_back(stored + ": is not a part of the model");
    else
      log::warning("{}: tensor '{}' is not a part of the model and is ignored", path_.string(),
                   stored);
  }
  require(problems.empty(), ErrorKind::kCheckpoint,
          "{}: the weights are not those of the model, which has {} tensors:\n  {}", path_.string(),
          specs.size(), fmt::join(problems, "\n  "));
  const auto embedding = stored_names_.find(kEmbedding);
  if (head && embedding != stored_names_.end()) check_tied_head(head.mapped(), embedding->second);
}

void ModelWeights::check_tied_head(const std::string& head, const std::string& embedding) {
  bool equal = files_.at(head).shape == files_.at(embedding).shape;
  std::vector<double> a(kPieceElements), b(kPieceElements);
  for_each_piece(equal ? files_.at(head).elements : 0, [&](std::int64_t first, std::size_t count) {
    if (!equal) return;
    files_.read(head, first, std::span(a).first(count));
    files_.read(embedding, first, std::span(b).first(count));
    equal = std::memcmp(a.data(), b.data(), count * sizeof(double)) == 0;
  });
  if (!equal)
    log::warning(
        "{}: the model's embeddings are tied, so '{}' is ignored, though it differs "
        "from '{}'",
        path_.string(), head, embedding);
}

void load_model_weights(const std::filesystem::path& folder_or_file, ParameterStore& store,
                        ExtraTensors extra) {
  ModelWeights weights(folder_or_file, store.specs(), extra);
  HostAccess host(store.exec());
  visit_float(store.dtype(), [&]<class T>() {
    for (std::size_t i = 0; i < store.count(); ++i) {
      host.write<T>(store.value(i), [&](std::int64_t first, std::span<T> piece) {
        weights.read(store.spec(i).name, first, piece);
      });
    }
  });
  store.round_values();
  weights.warn_about_non_finite();
}

std::vector<WrittenFile> write_model_weights(const std::filesystem::path& folder,
                                             const ParameterStore& store,
                                             std::int64_t max_shard_bytes) {
  require(store.dtype() == Dtype::kF32, ErrorKind::kUnsupported,
          "only f32 parameters can be saved, these are {}", to_string(store.dtype()));
  HostAccess host(store.exec());
  std::map<std::string, Tensor> values;
  for (std::size_t i = 0; i < store.count(); ++i) values[store.spec(i).name] = store.value(i);
  return write_weights_folder(
      folder, tensors_of(store.specs(), Dtype::kF32), max_shard_bytes,
      [&](const TensorInfo& tensor, SafetensorsWriter& writer) {
        host.read<float>(values.at(tensor.name),
                         [&](std::span<const float> piece) { writer.write(tensor.name, piece); });
      });
}

std::vector<WrittenFile> convert_model_weights(ModelWeights& weights,
                                               std::span<const ParameterSpec> specs, Dtype dtype,
                                               const std::filesystem::path& folder,
                                               std::int64_t max_shard_bytes) {
  std::vector<float> piece(kPieceElements);
  auto written = write_weights_folder(
      folder, tensors_of(specs, dtype), max_shard_bytes,
      [&](const TensorInfo& tensor, SafetensorsWriter& writer) {
        for_each_piece(tensor.elements(), [&](std::int64_t first, std::size_t count) {
          weights.read(tensor.name, first, std::span(piece).first(count));
          writer.write(tensor.name, std::span<const float>(piece).first(count));
        });
      });
  weights.warn_about_non_finite();
  return written;
}

}  // namespace jiboia
