#include "train/tools/child_process.h"

#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <exception>

#include "core/error.h"

namespace jiboia {
namespace {

constexpr int kSystemFailed = 2;  ///< exit status of a task that threw an error of kind Io

}  // namespace

std::string run_in_child(const std::function<void()>& task) {
  int ends[2];
  require(::pipe(ends) == 0, ErrorKind::kIo, "cannot make a pipe: {}", std::strerror(errno));
  std::fflush(stdout);  // or the child would write the buffer again
  const pid_t child = ::fork();
  require(child >= 0, ErrorKind::kIo, "cannot start a process: {}", std::strerror(errno));
  if (child == 0) {
    ::close(ends[0]);
    std::string message;
    int status = 0;
    try {
      task();
    } catch (const Error& error) {
      message = error.what();
      status = error.kind() == ErrorKind::kIo ? kSystemFailed : 0;
    } catch (const std::exception& error) {
      message = error.what();
    }
    const bool told = ::write(ends[1], message.data(), message.size()) == std::ssize(message);
    ::_exit(told ? status : 1);
  }
  ::close(ends[1]);
  std::string message;
  char buffer[4096];
  for (ssize_t got = 0; (got = ::read(ends[0], buffer, sizeof buffer)) != 0;) {
    if (got > 0) message.append(buffer, static_cast<std::size_t>(got));
    if (got < 0 && errno != EINTR) break;
  }
  ::close(ends[0]);
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  if (WIFSIGNALED(status))
    return fmt::format("reading it crashed: {}", ::strsignal(WTERMSIG(status)));
  if (WEXITSTATUS(status) == kSystemFailed) fail(ErrorKind::kIo, "{}", message);
  if (WEXITSTATUS(status) != 0) return "reading it failed";
  return message;
}

}  // namespace jiboia
