#pragma once
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "data/file.h"
#include "data/safetensors.h"

namespace jiboia {

/// The weights of a Hugging Face model: model.safetensors, else the shards that
/// model.safetensors.index.json lists, or one .safetensors file given by its own path.
class WeightsFolder {
 public:
  /// Maps and checks all files. Errors: Checkpoint when there are no weights, when a file is not
  /// valid, when the index names a file outside the folder or one that is not there, and when index
  /// and files disagree about a tensor. A wrong total size in the index only warns.
  explicit WeightsFolder(const std::filesystem::path& folder_or_file);

  /// All tensors of all files, by name.
  std::vector<std::string> names() const;
  /// The tensor of that name, or null.
  const SafetensorsEntry* find(std::string_view name) const;
  /// The tensor of that name. Errors: Checkpoint when there is none.
  const SafetensorsEntry& at(std::string_view name) const { return *locate(name).entry; }

  /// Converts elements [first, first + out.size()) of a tensor, counted in C order, to T (float or
  /// double), and remembers how many are NaN or infinite. Errors: as SafetensorsFile::read().
  template <class T>
  void read(std::string_view name, std::int64_t first, std::span<T> out);

  /// Values that were NaN or infinite, by tensor, in all that read() gave so far.
  const std::map<std::string, std::int64_t>& non_finite() const { return non_finite_; }
  /// One warning with the counts and names of non_finite(); nothing when all values are finite.
  void warn_about_non_finite() const;

 private:
  struct Location {
    const SafetensorsFile* file;
    const SafetensorsEntry* entry;
  };

  void open_file(const std::filesystem::path& path);
  void open_index(const std::filesystem::path& index);
  const Location& locate(std::string_view name) const;

  std::filesystem::path path_;
  std::vector<SafetensorsFile> files_;
  std::map<std::string, Location, std::less<>> tensors_;
  std::map<std::string, std::int64_t> non_finite_;
};

/// A file that was written, for manifests.
struct WrittenFile {
  std::string name;
  FileDigest digest;
};

/// Whether write_weights_folder() gives a file that name, or removes it as an earlier export's.
bool is_weights_file_name(const std::string& name);

/// Hands all values of `tensor` to `writer.write(tensor.name, ...)`, in C order.
using GiveTensor = std::function<void(const TensorInfo& tensor, SafetensorsWriter& writer)>;

/// Writes model.safetensors or, when the tensors have more than `max_shard_bytes` bytes,
/// model-00001-of-0000n.safetensors and so on plus model.safetensors.index.json, cut and named as
/// Hugging Face does it; equal weights give equal files. Tensors fill the shards in the given
/// order; `give` is called for each in the order of the files. Weight files of an earlier export
/// into the folder are removed last, so that the folder always shows the old weights or the new
/// ones; only while shards replace shards does it show none. Shards that were written before an
/// error are removed. Errors: Io, InvalidArgument.
std::vector<WrittenFile> write_weights_folder(const std::filesystem::path& folder,
                                              const std::vector<TensorInfo>& tensors,
                                              std::int64_t max_shard_bytes, const GiveTensor& give);

/// Bytes of a size such as "5GB", "500MB" (decimal, as Hugging Face reads them), "2GiB" (binary) or
/// "1000000"; letters of either case. Errors: InvalidArgument for anything else, and for zero.
std::int64_t parse_byte_size(std::string_view text);

}  // namespace jiboia
