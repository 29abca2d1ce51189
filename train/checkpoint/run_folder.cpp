#include "train/checkpoint/run_folder.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <string>
#include <system_error>
#include <utility>

#include "core/error.h"
#include "core/log.h"
#include "data/file.h"

namespace jiboia {
namespace {

namespace fs = std::filesystem;

std::string process_name() {
  std::array<char, 256> host{};
  ::gethostname(host.data(), host.size() - 1);
  return fmt::format("process {} on {}", ::getpid(), host.data());
}

}  // namespace

RunFolder::RunFolder(fs::path path) : path_(std::move(path)) {
  std::error_code error;
  fs::create_directories(checkpoints(), error);
  require(!error && fs::is_directory(checkpoints(), error), ErrorKind::kIo,
          "cannot create folder '{}': {}", checkpoints().string(),
          error ? error.message() : "something else has its name");
  // Better to learn now than at the first checkpoint that nothing can be written here. Uncommitted,
  // the file goes away again.
  FileWriter(checkpoints() / "probe").write(bytes_of("probe"));
  lock();
}

RunFolder::~RunFolder() { ::close(lock_); }

void RunFolder::lock() {
  const fs::path file = path_ / ".lock";
  lock_ = ::open(file.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666);
  if (lock_ < 0) fail(ErrorKind::kIo, "cannot open '{}': {}", file.string(), std::strerror(errno));
  if (::flock(lock_, LOCK_EX | LOCK_NB) != 0) {
    const int reason = errno;
    ::close(lock_);
    require(reason == EWOULDBLOCK, ErrorKind::kIo, "cannot lock '{}': {}", file.string(),
            std::strerror(reason));
    fail(ErrorKind::kCheckpoint, "another run uses '{}': {}", path_.string(),
         read_text_file(file, 4096));
  }
  // For people and for the error above; the lock itself is the kernel's.
  const std::string owner = process_name();
  if (::ftruncate(lock_, 0) != 0 || ::pwrite(lock_, owner.data(), owner.size(), 0) < 0)
    log::warning("cannot write to '{}': {}", file.string(), std::strerror(errno));
}

void RunFolder::warn_if_space_is_short(std::int64_t checkpoint_bytes,
                                       std::int64_t more_checkpoints) const {
  std::error_code error;
  const fs::space_info space = fs::space(path_, error);
  const double wanted =
      (static_cast<double>(more_checkpoints) + 0.2) * static_cast<double>(checkpoint_bytes);
  if (!error && static_cast<double>(space.available) < wanted)
    log::warning(
        "'{}' has {:.2f} GB free; a checkpoint takes {:.2f} GB, and with {} more of them at a time "
        "(checkpoint.keep and .every) {:.2f} GB should be free",
        path_.string(), static_cast<double>(space.available) / 1e9,
        static_cast<double>(checkpoint_bytes) / 1e9, more_checkpoints, wanted / 1e9);
}

}  // namespace jiboia
