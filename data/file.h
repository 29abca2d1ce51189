#pragma once
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace jiboia {

/// Views text as the bytes it is made of.
inline std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

/// Running XXH3 hash, 64 bits, seed 0: the checksum of all manifests. Detects damage, not attacks.
class Hasher {
 public:
  Hasher();
  ~Hasher();
  Hasher(Hasher&&) noexcept;
  Hasher& operator=(Hasher&&) noexcept;

  void update(std::span<const std::byte> bytes);
  /// The hash of everything given so far.
  std::uint64_t digest() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// A hash as manifests spell it: 16 lowercase hexadecimal digits.
std::string hash_text(std::uint64_t hash);

/// What a manifest says of a file's contents.
struct FileDigest {
  std::int64_t bytes = 0;
  std::uint64_t xxh3 = 0;
  bool operator==(const FileDigest&) const = default;
};

/// Size and hash of a file, read once in pieces. Errors: Io when `path` is not a readable regular
/// file (a directory, a device or a FIFO is refused without waiting for it).
FileDigest digest_file(const std::filesystem::path& path);

/// The contents of a regular file of at most `max_bytes` bytes. Errors: Io when it is larger,
/// not a regular file, or not readable.
std::string read_text_file(const std::filesystem::path& path, std::int64_t max_bytes);

/// A whole regular file, mapped read-only. The bytes live as long as the object. Files of this
/// project are replaced by rename, never rewritten in place, so a mapping stays valid while a new
/// version is saved over its name. Errors: Io, as read_text_file().
class MappedFile {
 public:
  explicit MappedFile(std::filesystem::path path);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;

  const std::filesystem::path& path() const { return path_; }
  std::span<const std::byte> bytes() const { return bytes_; }

 private:
  std::filesystem::path path_;
  std::span<const std::byte> bytes_;
};

/// Writes a file so that its name shows the old contents or all of the new ones, never a part, even
/// if the process or the machine dies: everything goes to `<path>.tmp`; commit() syncs it and
/// renames it into place. Without commit() the temporary file is removed and `path` is untouched.
/// Errors: Io naming the file; when the disk is full or a size limit is hit also the bytes wanted
/// and the bytes free. After an error only destruction is allowed (a failed fsync is never tried
/// again: the kernel may have dropped the pages and would then report success).
class FileWriter {
 public:
  explicit FileWriter(std::filesystem::path path);
  ~FileWriter();
  FileWriter(const FileWriter&) = delete;
  FileWriter& operator=(const FileWriter&) = delete;

  const std::filesystem::path& path() const { return path_; }
  /// Appends, going on after interrupted and short writes.
  void write(std::span<const std::byte> bytes);
  /// Bytes written so far.
  std::int64_t bytes() const { return bytes_; }
  /// Syncs the file, renames it into place, syncs its folder. To be called once, last.
  FileDigest commit();

 private:
  std::filesystem::path path_;
  std::filesystem::path temporary_;
  Hasher hasher_;
  std::int64_t bytes_ = 0;
  int descriptor_ = -1;
};

/// Replaces `path` by `bytes`, all or nothing; see FileWriter.
FileDigest write_file_atomically(const std::filesystem::path& path,
                                 std::span<const std::byte> bytes);
FileDigest write_file_atomically(const std::filesystem::path& path, std::string_view text);

/// Makes earlier creations, renames and removals in `folder` durable. Errors: Io.
void fsync_directory(const std::filesystem::path& folder);

/// rename(2): replaces a file `to`, or an empty folder `to` by a folder. Errors: Io naming both.
void rename_path(const std::filesystem::path& from, const std::filesystem::path& to);

/// Removes a file; false when there was none. Errors: Io.
bool remove_file(const std::filesystem::path& path);

}  // namespace jiboia
