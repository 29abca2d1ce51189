#pragma once
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace jiboia {

/// What tells a file from what it was before somebody wrote to it.
struct ShardVersion {
  std::int64_t bytes = 0;
  std::int64_t modified_ns = 0;
  bool operator==(const ShardVersion&) const = default;
};

/// One HDF5 file of token ids, open for reading (data/FORMAT.md). HDF5 can crash on damaged files
/// and reads many kinds of damage as data, so the file's hash is to be verified first; what is
/// checked here holds off files that are whole, but not what they should be.
///
/// Safe to use from several threads: HDF5's serial library is called under one lock.
class TokenShard {
 public:
  static constexpr std::size_t kMaxCacheBytes = std::size_t{8} << 20;
  /// Opens the file and checks its structure; reads no token. Keeps up to `cache_bytes`, or
  /// kMaxCacheBytes if that is less, of the tokens' chunks that were decoded last. Errors: Io when
  /// the system does not open it; Data, naming the file and listing its contents where the expected
  /// ones are not there.
  explicit TokenShard(std::filesystem::path path, std::size_t cache_bytes = kMaxCacheBytes);
  ~TokenShard();
  TokenShard(TokenShard&&) noexcept;
  TokenShard& operator=(TokenShard&&) noexcept;

  const std::filesystem::path& path() const { return path_; }
  std::int64_t tokens() const { return tokens_; }
  /// The file's size and time as it was opened.
  const ShardVersion& version() const { return version_; }
  /// Fails unless the file has version `expected`. Errors: Data.
  void require_version(const ShardVersion& expected) const;
  /// Tokens of a row, or 0 when the shard is a part of a stream.
  std::int64_t row_length() const { return row_length_; }
  /// Number of document starts; absent when the shard does not list them.
  std::optional<std::int64_t> documents() const { return documents_; }
  /// An integer attribute of the file. Errors: Data when it is there, but not an integer.
  std::optional<std::int64_t> attribute(const std::string& name) const;

  /// Reads `values.size()` tokens from `first` on, counted row after row. In a shard with rows both
  /// are multiples of the row's length. Values are as stored, in no way checked. Errors: Data, also
  /// when the file is not version() any more: HDF5 reads zeros where a file was cut off.
  void read_tokens(std::int64_t first, std::span<std::int64_t> values) const;
  /// The offsets at which documents begin, strictly increasing and below tokens(). Errors: Data.
  std::vector<std::int64_t> read_document_starts() const;

 private:
  struct Handles;
  std::filesystem::path path_;
  std::unique_ptr<Handles> handles_;
  ShardVersion version_;
  std::int64_t tokens_ = 0;
  std::int64_t row_length_ = 0;
  std::optional<std::int64_t> documents_;
};

}  // namespace jiboia
