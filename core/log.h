#pragma once
#include <fmt/format.h>

#include <string_view>
#include <utility>

namespace jiboia::log {

/// Writes one line to stderr. `info` is for what a user wants to know, `warning` for what they
/// should act on, marked "warning: ". Thread-safe; a closed stderr is ignored.
void write(std::string_view prefix, std::string_view message);

/// What a line begins with: in a terminal the codes that wipe a progress line that was left there.
const char* line_start();

template <class... Args>
void info(fmt::format_string<Args...> format, Args&&... args) {
  write("", fmt::format(format, std::forward<Args>(args)...));
}
template <class... Args>
void warning(fmt::format_string<Args...> format, Args&&... args) {
  write("warning: ", fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace jiboia::log
