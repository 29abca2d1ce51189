#include "tests/cuda_emulator/trace.h"

#include <cstdio>
#include <cstdlib>

namespace jiboia::emulated {
namespace {

/// Lines are there even when the process is killed: the file is flushed after each.
std::FILE* open_trace() {
  const char* path = std::getenv("JIBOIA_EMULATED_TRACE");
  if (!path || !*path) return nullptr;
  std::FILE* file = std::fopen(path, "w");
  if (!file) {
    std::fprintf(stderr, "JIBOIA_EMULATED_TRACE is %s, which cannot be written\n", path);
    std::abort();
  }
  std::setvbuf(file, nullptr, _IOLBF, 0);
  return file;
}

std::FILE* trace_file() {
  static std::FILE* const file = open_trace();
  return file;
}

}  // namespace

bool is_traced() { return trace_file() != nullptr; }

void write_trace(const std::string& line) { std::fputs((line + "\n").c_str(), trace_file()); }

}  // namespace jiboia::emulated
