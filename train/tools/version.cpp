#include "train/tools/version.h"

#include <fmt/format.h>

#include "jiboia_commit.h"  // written by scripts/cmake/commit.cmake

namespace jiboia {

const Version& version() {
#ifdef __clang__
  static constexpr const char* kCompiler = __VERSION__;
#else
  static constexpr const char* kCompiler = "g++ " __VERSION__;
#endif
  static constexpr Version kVersion{
      .number = JIBOIA_VERSION,
      .commit = JIBOIA_COMMIT,
      .compiler = kCompiler,
      .cuda = JIBOIA_WITH_CUDA,
  };
  return kVersion;
}

std::string version_text(const std::string& program) {
  const Version& built = version();
  return fmt::format("{} (Jiboia) {}\ncommit {}\ncompiler {}\nCUDA {}", program, built.number,
                     built.commit, built.compiler, built.cuda ? "yes" : "no");
}

}  // namespace jiboia
