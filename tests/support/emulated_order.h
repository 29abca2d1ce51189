#pragma once
#include <cstdlib>
#include <string>

namespace jiboia::test {

/// While this lives, an emulated GPU runs the threads of a block in another order than before
/// (tests/cuda_emulator/README.md): results whose bits change lack a barrier. Nothing to a real
/// one.
class OtherEmulatedOrder {
 public:
  OtherEmulatedOrder() {
    const char* set = std::getenv(kVariable);
    if (set) before_ = set;
    setenv(kVariable, before_ == "backward" ? "random" : "backward", 1);
  }
  ~OtherEmulatedOrder() {
    if (before_.empty()) {
      unsetenv(kVariable);
    } else {
      setenv(kVariable, before_.c_str(), 1);
    }
  }
  OtherEmulatedOrder(const OtherEmulatedOrder&) = delete;
  OtherEmulatedOrder& operator=(const OtherEmulatedOrder&) = delete;

 private:
  static constexpr const char* kVariable = "JIBOIA_EMULATED_ORDER";
  std::string before_;
};

}  // namespace jiboia::test
