#pragma once
#include <fmt/format.h>

#include <stdexcept>
#include <string>
#include <utility>

namespace jiboia {

/// What went wrong, for the caller to act on and for the process to choose its exit code.
enum class ErrorKind {
  kInvalidArgument,  ///< an op, a function or a command line got something it cannot take
  kUnsupported,      ///< well formed, but this build or this version does not do it
  kConfig,           ///< a configuration file or an override
  kData,             ///< token shards, tokenizers, text
  kCheckpoint,       ///< model folders and training checkpoints
  kNumerics,         ///< a loss or a gradient that is not finite
  kIo,               ///< files, disks, permissions
  kOutOfMemory,
  kCuda,  ///< the GPU, its driver or a CUDA library
  kInternal,
};

/// The kind's name as users see it, e.g. "config".
const char* to_string(ErrorKind kind);

/// The process exit code of an error that ends a program: 2 usage or config, 3 data, 4 checkpoint,
/// 5 numerics, 6 GPU, 7 disk, 1 anything else.
int exit_code(ErrorKind kind);

/// The one exception type of the project. `what()` says what happened, what was found, what was
/// expected, and where to look.
class Error : public std::runtime_error {
 public:
  Error(ErrorKind kind, const std::string& message) : std::runtime_error(message), kind_(kind) {}
  ErrorKind kind() const { return kind_; }

 private:
  ErrorKind kind_;
};

/// Throws Error{kind} with a message formatted by fmt.
template <class... Args>
[[noreturn]] void fail(ErrorKind kind, fmt::format_string<Args...> format, Args&&... args) {
  throw Error(kind, fmt::format(format, std::forward<Args>(args)...));
}

/// fail() unless `condition` holds. The arguments are computed even so: where they are texts and
/// the way is a busy one, `if (!condition) fail(...)` is for it.
template <class... Args>
void require(bool condition, ErrorKind kind, fmt::format_string<Args...> format, Args&&... args) {
  if (!condition) throw Error(kind, fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace jiboia
