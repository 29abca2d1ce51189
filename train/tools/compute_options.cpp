#include "train/tools/compute_options.h"

#include "train/tools/number_option.h"

namespace jiboia {
namespace {

/// Takes the names of an enumeration's values and nothing else: CLI11's own transformer takes
/// their numbers too.
template <class Enum>
CLI::Validator name_of() {
  const auto take = [](std::string& text) -> std::string {
    for (std::size_t i = 0; i < kEnumNames<Enum>.size(); ++i) {
      if (text != kEnumNames<Enum>[i]) continue;
      text = std::to_string(i);
      return "";
    }
    return fmt::format("'{}' is not one of {}", text, fmt::join(kEnumNames<Enum>, ", "));
  };
  return CLI::Validator(take, "");
}

}  // namespace

void add_compute_options(CLI::App& app, ComputeOptions& options) {
  app.add_option("--device", options.device, "auto (a GPU when there is one), cpu or cuda")
      ->transform(name_of<DeviceChoice>())
      ->option_text("[auto]");
  app.add_option("--precision", options.precision, "What a GPU computes in: fp32 or bf16")
      ->transform(name_of<Precision>())
      ->option_text("[fp32]");
  app.add_option("--threads", options.threads, "CPU threads; 0: all cores")
      ->capture_default_str()
      ->transform(number_in<int>(0, 4096));
}

}  // namespace jiboia
