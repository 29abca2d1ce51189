#pragma once
#include <fmt/core.h>

#include <string>
#include <utility>

namespace jiboia::emulated {

/// Whether JIBOIA_EMULATED_TRACE names a file that this process writes its trace to.
bool is_traced();
/// Adds a line to the trace.
void write_trace(const std::string& line);

template <class... Args>
void trace(fmt::format_string<Args...> line, Args&&... args) {
  if (is_traced()) write_trace(fmt::format(line, std::forward<Args>(args)...));
}

}  // namespace jiboia::emulated
