#include "data/weights_folder.h"

#include <fnmatch.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <set>
#include <utility>

#include "core/error.h"
#include "core/log.h"
#include "data/json.h"

namespace jiboia {
namespace {

namespace fs = std::filesystem;

constexpr const char* kSingleFile = "model.safetensors";
constexpr const char* kIndexFile = "model.safetensors.index.json";
constexpr const char* kShardFiles =
    "model-[0-9][0-9][0-9][0-9][0-9]-of-[0-9][0-9][0-9][0-9][0-9].safetensors";

bool is_there(const fs::path& path) {
  std::error_code ignored;
  return fs::exists(path, ignored);
}

/// Whether a name from an index stays inside its folder.
bool is_plain_file_name(const std::string& name) {
  return !name.empty() && name != "." && name != ".." &&
         name.find_first_of(std::string_view("/\0", 2)) == name.npos;
}

using Shard = std::vector<TensorInfo>;

/// Hugging Face's rule: fill a shard until the next tensor would exceed the limit; a tensor above
/// the limit gets a shard of its own, which does not end the one being filled.
std::vector<Shard> cut_into_shards(const std::vector<TensorInfo>& tensors,
                                   std::int64_t max_shard_bytes) {
  std::vector<Shard> shards;
  Shard filling;
  std::int64_t bytes = 0;
  for (const TensorInfo& tensor : tensors) {
    if (tensor.bytes() > max_shard_bytes) {
      shards.push_back({tensor});
      continue;
    }
    if (bytes + tensor.bytes() > max_shard_bytes) {
      shards.push_back(std::exchange(filling, {}));
      bytes = 0;
    }
    bytes += tensor.bytes();
    filling.push_back(tensor);
  }
  if (!filling.empty() || shards.empty()) shards.push_back(std::move(filling));
  return shards;
}

/// Removes weight files that are not among `current`, left by an export of another shape.
void remove_stale_files(const fs::path& folder, const std::vector<WrittenFile>& current) {
  std::vector<fs::path> stale;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
    const std::string name = entry.path().filename();
    if (is_weights_file_name(name) &&
        std::ranges::find(current, name, &WrittenFile::name) == current.end())
      stale.push_back(entry.path());
  }
  // The index goes before the shards that it lists.
  std::ranges::sort(stale, std::greater<>());
  for (const fs::path& path : stale) remove_file(path);
  if (!stale.empty()) fsync_directory(folder);
}

FileDigest write_shard(const fs::path& path, Shard shard, const GiveTensor& give) {
  SafetensorsWriter writer(path, std::move(shard), {{"format", "pt"}});
  for (const TensorInfo& tensor : writer.order()) give(tensor, writer);
  return writer.commit();
}

}  // namespace

WeightsFolder::WeightsFolder(const fs::path& folder_or_file) : path_(folder_or_file) {
  std::error_code ignored;  // what cannot be looked at fails with a reason when it is opened
  if (!fs::is_directory(path_, ignored))
    open_file(path_);
  else if (is_there(path_ / kSingleFile))
    open_file(path_ / kSingleFile);
  else if (is_there(path_ / kIndexFile))
    open_index(path_ / kIndexFile);
  else
    fail(ErrorKind::kCheckpoint, "'{}' has neither {} nor {}{}", path_.string(), kSingleFile,
         kIndexFile,
         is_there(path_ / "pytorch_model.bin")
             ? "; scripts/convert_bin.py converts its pytorch_model.bin"
             : "");
}

void WeightsFolder::open_file(const fs::path& path) {
  const SafetensorsFile& file = files_.emplace_back(path);
  for (const SafetensorsEntry& entry : file.entries()) tensors_[entry.name] = {&file, &entry};
}

void WeightsFolder::open_index(const fs::path& index) {
  const nlohmann::json json = read_json_file(index, ErrorKind::kCheckpoint);
  const JsonObject root(json, {index.string(), ErrorKind::kCheckpoint});
  const JsonObject weight_map = root.get_object("weight_map");

  std::map<std::string, std::string> file_of;  // by tensor
  std::set<std::string> file_names;
  for (const auto& member : root.at("weight_map").items()) {
    const std::string file = weight_map.get_string(member.key());
    if (!is_plain_file_name(file))
      weight_map.fail_at(member.key(), fmt::format("'{:.80}' is not the name of a file in this "
                                                   "folder",
                                                   file.c_str()));
    file_of[member.key()] = file;
    file_names.insert(file);
  }

  std::int64_t total_bytes = 0;
  files_.reserve(file_names.size());  // tensors_ points into it
  for (const std::string& name : file_names) {
    require(is_there(path_ / name), ErrorKind::kCheckpoint, "{}: lists '{}', which is not there",
            index.string(), name);
    const SafetensorsFile& file = files_.emplace_back(path_ / name);
    for (const SafetensorsEntry& entry : file.entries()) {
      const auto listed = file_of.find(entry.name);
      require(listed != file_of.end() && listed->second == name, ErrorKind::kCheckpoint,
              "{}: tensor '{}' is in '{}', {}", index.string(), entry.name, name,
              listed == file_of.end() ? "but not in the index"
                                      : fmt::format("the index has it in '{}'", listed->second));
      tensors_[entry.name] = {&file, &entry};
      total_bytes += entry.bytes;
    }
  }
  for (const auto& [tensor, file] : file_of)
    require(tensors_.contains(tensor), ErrorKind::kCheckpoint,
            "{}: tensor '{}' is not in '{}', where the index has it", index.string(), tensor, file);

  if (!root.find("metadata")) return;
  const nlohmann::json* total_size = root.get_object("metadata").find("total_size");
  if (total_size && *total_size != total_bytes)
    log::warning("{}: metadata.total_size is {}, the tensors have {} bytes", index.string(),
                 total_size->is_number() ? total_size->dump() : "not a number", total_bytes);
}

std::vector<std::string> WeightsFolder::names() const {
  std::vector<std::string> names;
  for (const auto& [name, location] : tensors_) names.push_back(name);
  return names;
}

const SafetensorsEntry* WeightsFolder::find(std::string_view name) const {
  const auto found = tensors_.find(name);
  return found == tensors_.end() ? nullptr : found->second.entry;
}

const WeightsFolder::Location& WeightsFolder::locate(std::string_view name) const {
  const auto found = tensors_.find(name);
  require(found != tensors_.end(), ErrorKind::kCheckpoint, "{}: has no tensor '{}'", path_.string(),
          name);
  return found->second;
}

template <class T>
void WeightsFolder::read(std::string_view name, std::int64_t first, std::span<T> out) {
  const Location& location = locate(name);
  const std::int64_t count = location.file->read(*location.entry, first, out);
  if (count > 0) non_finite_[location.entry->name] += count;
}
template void WeightsFolder::read(std::string_view, std::int64_t, std::span<float>);
template void WeightsFolder::read(std::string_view, std::int64_t, std::span<double>);

void WeightsFolder::warn_about_non_finite() const {
  if (non_finite_.empty()) return;
  constexpr std::size_t kNamed = 8;
  std::int64_t total = 0;
  std::vector<std::string> named;
  for (const auto& [name, count] : non_finite_) {
    total += count;
    if (named.size() < kNamed) named.push_back(fmt::format("{} ({})", name, count));
  }
  log::warning("{}: {} weights are NaN or infinite, in {} tensors: {}{}", path_.string(), total,
               non_finite_.size(), fmt::join(named, ", "),
               non_finite_.size() > kNamed ? ", ..." : "");
}

bool is_weights_file_name(const std::string& name) {
  return name == kSingleFile || name == kIndexFile || ::fnmatch(kShardFiles, name.c_str(), 0) == 0;
}

std::vector<WrittenFile> write_weights_folder(const fs::path& folder,
                                              const std::vector<TensorInfo>& tensors,
                                              std::int64_t max_shard_bytes,
                                              const GiveTensor& give) {
  std::vector<Shard> shards = cut_into_shards(tensors, max_shard_bytes);
  std::vector<WrittenFile> written;
  if (shards.size() == 1) {
    written.push_back({kSingleFile, write_shard(folder / kSingleFile, shards[0], give)});
    remove_stale_files(folder, written);
    return written;
  }

  // An old index must not name new shards while they are being written.
  if (remove_file(folder / kIndexFile)) fsync_directory(folder);
  std::int64_t total_bytes = 0;
  std::int64_t total_parameters = 0;
  nlohmann::json weight_map = nlohmann::json::object();
  try {
    for (std::size_t i = 0; i < shards.size(); ++i) {
      const std::string name =
          fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, shards.size());
      for (const TensorInfo& tensor : shards[i]) {
        weight_map[tensor.name] = name;
        total_bytes += tensor.bytes();
        total_parameters += tensor.elements();
      }
      written.push_back({name, write_shard(folder / name, std::move(shards[i]), give)});
    }
    const nlohmann::json index = {
        {"metadata", {{"total_parameters", total_parameters}, {"total_size", total_bytes}}},
        {"weight_map", weight_map}};
    written.push_back(
        {kIndexFile, write_file_atomically(folder / kIndexFile, index.dump(2) + "\n")});
  } catch (...) {
    std::error_code ignored;  // what ended the writing is the error to tell
    for (const WrittenFile& file : written) fs::remove(folder / file.name, ignored);
    throw;
  }
  remove_stale_files(folder, written);
  return written;
}

std::int64_t parse_byte_size(std::string_view text) {
  static constexpr std::array<std::pair<std::string_view, std::int64_t>, 9> kUnits{{
      {"", 1},
      {"KB", 1'000},
      {"MB", 1'000'000},
      {"GB", 1'000'000'000},
      {"TB", 1'000'000'000'000},
      {"KIB", std::int64_t{1} << 10},
      {"MIB", std::int64_t{1} << 20},
      {"GIB", std::int64_t{1} << 30},
      {"TIB", std::int64_t{1} << 40},
  }};
  std::int64_t bytes = 0;
  const auto [rest, error] = std::from_chars(text.data(), text.data() + text.size(), bytes);
  std::string suffix(rest, text.data() + text.size());
  for (char& letter : suffix)
    if (letter >= 'a' && letter <= 'z') letter = static_cast<char>(letter - 'a' + 'A');
  const auto unit =
      std::ranges::find(kUnits, suffix, &std::pair<std::string_view, std::int64_t>::first);
  require(error == std::errc() && unit != kUnits.end() && bytes > 0 &&
              !__builtin_mul_overflow(bytes, unit->second, &bytes),
          ErrorKind::kInvalidArgument,
          "'{}' is not a size in bytes; write it as 5GB, 500MB, 2GiB or 1000000", text);
  return bytes;
}

}  // namespace jiboia
