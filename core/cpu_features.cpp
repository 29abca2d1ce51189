// Compiled for the oldest x86-64 (see CMakeLists.txt): it must run on a CPU that has nothing else.
#include "core/cpu_features.h"

#include <unistd.h>

#include <cstring>

namespace jiboia {
namespace {

bool cpu_supports(const char* feature) {
#ifdef __x86_64__
  // The builtin takes literals only.
  const auto is = [feature](const char* name) { return std::strcmp(feature, name) == 0; };
  if (is("sse4.2")) return __builtin_cpu_supports("sse4.2");
  if (is("avx")) return __builtin_cpu_supports("avx");
  if (is("avx2")) return __builtin_cpu_supports("avx2");
  if (is("fma")) return __builtin_cpu_supports("fma");
  if (is("bmi2")) return __builtin_cpu_supports("bmi2");
  if (is("avx512f")) return __builtin_cpu_supports("avx512f");
  if (is("avx512dq")) return __builtin_cpu_supports("avx512dq");
  if (is("avx512bw")) return __builtin_cpu_supports("avx512bw");
  if (is("avx512vl")) return __builtin_cpu_supports("avx512vl");
#endif
  return true;
}

void say(const char* text) { (void)!write(STDERR_FILENO, text, std::strlen(text)); }

}  // namespace

// The lowest priority number that programs may use: before every other initialiser.
__attribute__((constructor(101))) void require_cpu_features() {
#ifdef __x86_64__
  __builtin_cpu_init();
#endif
  for (const char* const* feature = detail::kCompiledFeatures; *feature; ++feature) {
    if (cpu_supports(*feature)) continue;
    say("unsupported: this program was built for a CPU with ");
    say(*feature);
    say(", which this one lacks; build it here, or anywhere with -DJIBOIA_NATIVE=OFF\n");
    _exit(2);
  }
}

}  // namespace jiboia
