#pragma once
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace jiboia {

/// How the tokens of a folder of shards lie: cut into rows, or as one sequence.
enum class ShardLayout { kStream, kRows };

/// A file that a manifest names.
struct ManifestFile {
  std::string name;  ///< inside the folder
  std::int64_t bytes = 0;
  std::string xxh3;  ///< of the whole file, 16 hexadecimal digits
};

struct ManifestShard : ManifestFile {
  std::int64_t tokens = 0;
  std::optional<std::int64_t> documents;  ///< starts listed in the shard, when it lists them
  std::optional<std::int64_t> source_bytes;
};

/// manifest.json of a folder of token shards; data/FORMAT.md says what each field means.
struct ShardManifest {
  std::filesystem::path folder;
  ShardLayout layout = ShardLayout::kStream;
  std::int64_t row_length = 0;  ///< with kRows
  std::int64_t vocab_size = 0;
  std::int64_t tokens = 0;
  std::optional<std::int64_t> source_bytes;
  std::optional<std::int64_t> bos_token_id;
  std::optional<std::int64_t> eos_token_id;
  std::optional<std::int64_t> pad_token_id;
  std::string tokenizer;
  std::vector<ManifestFile> tokenizer_files;
  std::vector<ManifestShard> shards;

  /// Reads and checks folder/manifest.json; looks at no other file. Errors: Data when it is
  /// missing, malformed, contradicts itself, names a file outside the folder or one file twice.
  static ShardManifest load(const std::filesystem::path& folder);

  std::filesystem::path path_of(const ManifestFile& file) const { return folder / file.name; }
  /// Tokens for each byte of text, inverted: UTF-8 bytes that one token stands for, on average.
  std::optional<double> bytes_per_token() const;
  /// Hash of what decides the rows: the shards' contents in order, the layout and the vocabulary.
  /// Equal after the folder is moved or its files are renamed.
  std::string fingerprint() const;
};

/// Compares a file with its entry by size and hash. Errors: Data naming the file and both values.
void verify_file(const ShardManifest& manifest, const ManifestFile& file);

/// Which files are read and hashed.
enum class Verification : std::uint8_t {
  kChanged,  ///< those that were not verified before, or have changed since
  kAll,
};
struct VerifyOptions {
  int threads = 0;  ///< 0: one a core, at most eight
  /// Remembers verified files (data/verified_files.h); empty: nothing is remembered.
  std::filesystem::path cache_folder;
  Verification verification = Verification::kChanged;
};

/// verify_file() for every shard and tokenizer file; first all sizes, then hashes, with a line now
/// and then when there is much to read. Errors: Data, of the first bad file in the manifest's
/// order.
void verify_files(const ShardManifest& manifest, const VerifyOptions& options = {});

}  // namespace jiboia
