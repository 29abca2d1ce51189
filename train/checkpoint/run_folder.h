#pragma once
#include <cstdint>
#include <filesystem>

namespace jiboia {

/// The folder that a run writes to, held for this process alone until the object goes away or the
/// process ends in whatever way. Created with its parents when it is not there.
class RunFolder {
 public:
  /// Errors: Io when the folder cannot be made or written to; Checkpoint, with the other process's
  /// id and host, when another run holds it.
  explicit RunFolder(std::filesystem::path path);
  ~RunFolder();
  RunFolder(const RunFolder&) = delete;
  RunFolder& operator=(const RunFolder&) = delete;

  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path checkpoints() const { return path_ / "checkpoints"; }

  /// Warns when the disk has less room than so many more checkpoints take, and a fifth of one for
  /// the rest of a run's files.
  void warn_if_space_is_short(std::int64_t checkpoint_bytes, std::int64_t more_checkpoints) const;

 private:
  void lock();

  std::filesystem::path path_;
  int lock_ = -1;
};

}  // namespace jiboia
