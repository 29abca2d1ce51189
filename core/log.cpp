#include "core/log.h"

#include <cstdio>
#include <string>

namespace jiboia::log {

void write(std::string_view prefix, std::string_view message) {
  // One call writes the whole line, so that lines of several threads do not mix.
  const std::string line = fmt::format("{}{}\n", prefix, message);
  std::fwrite(line.data(), 1, line.size(), stderr);
  std::fflush(stderr);
}

}  // namespace jiboia::log
