#include "core/cuda/peak_rates.h"

#include <gtest/gtest.h>

namespace jiboia::test {
namespace {

TEST(PeakRates, AreThoseOfTheNamedGpu) {
  EXPECT_EQ(peak_rates("NVIDIA H200").bf16, 989.4e12);
  EXPECT_EQ(peak_rates("NVIDIA H100 80GB HBM3").f32, 66.9e12);
  EXPECT_EQ(peak_rates("NVIDIA H100 PCIe").bf16, 756e12);
  EXPECT_EQ(peak_rates("NVIDIA A100-SXM4-80GB").bf16, 312e12);
  EXPECT_EQ(peak_rates("NVIDIA L40S").bf16, 362e12);
  EXPECT_EQ(peak_rates("NVIDIA L40").bf16, 181e12);
  EXPECT_EQ(peak_rates("NVIDIA L4").bf16, 121e12);
  EXPECT_EQ(peak_rates("NVIDIA GeForce RTX 3090").bf16, 71e12);
}

TEST(PeakRates, AreZeroForGpusThatOnlyHaveSuchANameInTheirs) {
  for (const char* name : {"NVIDIA GeForce RTX 3090 Ti", "NVIDIA GeForce RTX 4090 Laptop GPU",
                           "NVIDIA GeForce RTX 4090 D", "NVIDIA H200 MIG 1g.18gb", "NVIDIA H100",
                           "NVIDIA L400", "NVIDIA ", "emulated GPU", ""}) {
    EXPECT_EQ(peak_rates(name).bf16, 0) << name;
    EXPECT_EQ(peak_rates(name).f32, 0) << name;
  }
}

}  // namespace
}  // namespace jiboia::test
