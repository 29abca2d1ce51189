#include "core/cuda/peak_rates.h"

#include <algorithm>
#include <array>

namespace jiboia {
namespace {

struct Gpu {
  std::string_view name;  ///< without "NVIDIA "
  PeakRates rates;
};
constexpr PeakRates kH100{989.4e12, 66.9e12}, kA100{312e12, 19.5e12};
constexpr std::array kGpus{
    Gpu{"B200", {2250e12, 75e12}},
    Gpu{"GH200 144G HBM3e", kH100},
    Gpu{"GH200 480GB", kH100},
    Gpu{"H200", kH100},
    Gpu{"H200 NVL", {835.5e12, 60e12}},
    Gpu{"H100 80GB HBM3", kH100},
    Gpu{"H100 NVL", {835.5e12, 60e12}},
    Gpu{"H100 PCIe", {756e12, 51e12}},
    Gpu{"A100-SXM4-40GB", kA100},
    Gpu{"A100-SXM4-80GB", kA100},
    Gpu{"A100-PCIE-40GB", kA100},
    Gpu{"A100 80GB PCIe", kA100},
    Gpu{"L40S", {362e12, 91.6e12}},
    Gpu{"L40", {181e12, 90.5e12}},
    Gpu{"L4", {121e12, 30.3e12}},
    Gpu{"A10G", {70e12, 31.5e12}},
    Gpu{"RTX A6000", {154.8e12, 38.7e12}},
    Gpu{"GeForce RTX 4090", {165.2e12, 82.6e12}},
    Gpu{"GeForce RTX 3090", {71e12, 35.6e12}},
};

}  // namespace

PeakRates peak_rates(std::string_view gpu_name) {
  constexpr std::string_view kVendor = "NVIDIA ";
  if (gpu_name.starts_with(kVendor)) gpu_name.remove_prefix(kVendor.size());
  const auto* gpu = std::ranges::find(kGpus, gpu_name, &Gpu::name);
  return gpu == kGpus.end() ? PeakRates{} : gpu->rates;
}

}  // namespace jiboia
