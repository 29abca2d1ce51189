#pragma once
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <map>
#include <mutex>
#include <optional>
#include <string>

namespace jiboia {

/// What tells, without reading a file, that it is the one that was read before.
struct FileStamp {
  std::int64_t bytes = 0;
  std::int64_t modified_ns = 0, changed_ns = 0;  ///< of contents, and of anything, since 1970
  std::int64_t inode = 0;
  bool operator==(const FileStamp&) const = default;
};
/// Of the file that a path leads to. Errors: Io.
FileStamp stamp_of(const std::filesystem::path& path);

/// $XDG_CACHE_HOME/jiboia, else ~/.cache/jiboia; empty where neither is known.
std::filesystem::path user_cache_folder();

/// Remembers which files of one folder had the hash that was expected of them, so that they need
/// not be read again to know it: in a file of the user's cache, never in the folder itself. A file
/// whose stamp or expected hash is another one is not remembered, nor is one that was changed so
/// lately before it was read that a clock of coarse grain would not show a change while it was.
///
/// What is in the cache may be missing, damaged or another version's: then nothing is remembered.
/// Several processes may save at once: the last one wins. Safe to use from several threads.
class VerifiedFiles {
 public:
  /// Remembers nothing, ever.
  VerifiedFiles() = default;
  /// Of `folder`, which exists, in `cache_folder`, which need not. Says so when what is there
  /// cannot be read.
  VerifiedFiles(const std::filesystem::path& folder, const std::filesystem::path& cache_folder);

  /// Whether the file of that name and stamp had the hash `xxh3`, 16 hexadecimal digits.
  bool contains(const std::string& name, const FileStamp& stamp, const std::string& xxh3) const;
  /// From now on it had. `stamp` is that of both before and after it was read, and `began` a time
  /// before the first of both was taken.
  void add(const std::string& name, const FileStamp& stamp, const std::string& xxh3,
           std::chrono::system_clock::time_point began);
  void remove(const std::string& name);
  /// Writes what has changed, all or nothing, and forgets files that are not there any more. Where
  /// that is not possible a line says so.
  void save();

  /// How long a file must have been without a change when it is read, to be remembered.
  static constexpr std::chrono::seconds kSettled{2};

 private:
  struct Entry {
    FileStamp stamp;
    std::string xxh3;
  };
  void load();

  std::filesystem::path folder_, file_;  // file_: empty when nothing is remembered
  mutable std::mutex mutex_;
  std::map<std::string, Entry> entries_;
  bool changed_ = false;
};

}  // namespace jiboia
