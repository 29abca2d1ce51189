#include "train/tools/compute_options.h"

#include "train/tools/number_option.h"

namespace jiboia {
namespace {

/// The names of an enumeration's values, as CLI11 wants them.
template <class Enum>
std::map<std::string, Enum> names_of() {
  std::map<std::string, Enum> result;
  for (std::size_t i = 0; i < kEnumNames<Enum>.size(); ++i) {
    result[kEnumNames<Enum>[i]] = static_cast<Enum>(i);
  }
  return result;
}

}  // namespace

void add_compute_options(CLI::App& app, ComputeOptions& options) {
  app.add_option("--device", options.device, "auto (a GPU when there is one), cpu or cuda")
      ->transform(CLI::CheckedTransformer(names_of<DeviceChoice>()).description(""))
      ->option_text("[auto]");
  app.add_option("--precision", options.precision, "What a GPU computes in: fp32 or bf16")
      ->transform(CLI::CheckedTransformer(names_of<Precision>()).description(""))
      ->option_text("[fp32]");
  app.add_option("--threads", options.threads, "CPU threads; 0: all cores")
      ->capture_default_str()
      ->transform(number_in<int>(0, 4096));
}

}  // namespace jiboia
