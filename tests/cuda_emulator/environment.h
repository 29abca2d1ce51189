#pragma once
#include <cstddef>
#include <cstdio>
#include <cstdlib>

namespace jiboia::emulated {

/// The number that an environment variable holds, or `otherwise`; ends the process at other text.
inline std::size_t from_environment(const char* name, std::size_t otherwise) {
  const char* text = std::getenv(name);
  if (!text || !*text) return otherwise;
  char* end = nullptr;
  const unsigned long long value = std::strtoull(text, &end, 10);
  if (*end != 0) {
    std::fprintf(stderr, "%s is %s, not a number\n", name, text);
    std::abort();
  }
  return value;
}

}  // namespace jiboia::emulated
