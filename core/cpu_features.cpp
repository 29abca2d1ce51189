// Compiled for the oldest x86-64 (see CMakeLists.txt): it must run on a CPU that has nothing else.
#include "core/cpu_features.h"

#include <unistd.h>

#include <cstring>

namespace jiboia {
namespace {

bool cpu_supports(const char* feature) {
#ifdef __x86_64__
  // The builtin takes literals only.
#define JIBOIA_ASK(macro, name) \
  if (std::strcmp(feature, name) == 0) return __builtin_cpu_supports(name);
  JIBOIA_CPU_FEATURES(JIBOIA_ASK)
#endif
  (void)feature;
  return true;
}

void say(const char* text) { (void)!write(STDERR_FILENO, text, std::strlen(text)); }

}  // namespace

const char* detail::missing_feature(const CpuFeature* features, bool (*supports)(const char*)) {
  for (; features->name; ++features) {
    if (features->compiled && !supports(features->name)) return features->name;
  }
  return nullptr;
}

// The lowest priority number that programs may use: before every other initialiser.
__attribute__((constructor(101))) void require_cpu_features() {
#ifdef __x86_64__
  __builtin_cpu_init();
#endif
  const char* missing = detail::missing_feature(detail::kCpuFeatures, cpu_supports);
  if (!missing) return;
  say("unsupported: this program was built for a CPU with ");
  say(missing);
  say(", which this one lacks; build it here, or anywhere with -DJIBOIA_NATIVE=OFF\n");
  _exit(2);
}

}  // namespace jiboia
