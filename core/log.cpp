#include "core/log.h"

#include <unistd.h>

#include <cstdio>
#include <string>

namespace jiboia::log {

const char* line_start() {
  static const bool terminal = isatty(STDERR_FILENO) != 0;
  return terminal ? "\r\033[K" : "";
}

void write(std::string_view prefix, std::string_view message) {
  // One call writes the whole line, so that lines of several threads do not mix.
  const std::string line = fmt::format("{}{}{}\n", line_start(), prefix, message);
  std::fwrite(line.data(), 1, line.size(), stderr);
  std::fflush(stderr);
}

}  // namespace jiboia::log
