#pragma once
#include <cuda_runtime_api.h>

#include <source_location>

namespace jiboia::cuda {

/// Who makes a call, for errors: an op's or a component's name, and the line.
struct Where {
  // NOLINTNEXTLINE(google-explicit-constructor): a plain name stands for itself and its line
  Where(const char* who, std::source_location line = std::source_location::current())
      : name(who), location(line) {}
  const char* name;
  std::source_location location;
};

/// Throws what a failed call means: Error{Cuda}, or OutOfMemory, with name, file, line, the
/// runtime's words and what to do.
[[noreturn]] void fail_call(cudaError_t error, const Where& where);

/// fail_call() unless the call went well.
inline void check(cudaError_t error, const Where& where) {
  if (error != cudaSuccess) fail_call(error, where);
}

}  // namespace jiboia::cuda
