#pragma once
#include <string>

namespace jiboia {

/// What this program was built from.
struct Version {
  const char* number;    ///< of the project, "0.1.0"
  const char* commit;    ///< abbreviated, "-modified" if the tree was; "unknown" without git
  const char* compiler;  ///< "g++ 12.2.0"
  bool cuda;             ///< whether the CUDA backend is in
};
const Version& version();

/// What `--version` prints, without the last line's end.
std::string version_text(const std::string& program);

}  // namespace jiboia
