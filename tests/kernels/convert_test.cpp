#include "kernels/convert/convert.h"

#include <bit>
#include <cmath>
#include <limits>

#include "core/half.h"
#include "core/rng.h"
#include "tests/support/placed.h"

namespace jiboia::test {
namespace {

std::vector<std::uint16_t> converted(Exec& exec, const std::vector<float>& values,
                                     std::int64_t begin = 0) {
  Placed<float> from(exec, values);
  Placed<std::uint16_t> to(exec, std::vector<std::uint16_t>(values.size(), 0x1234), Dtype::kBf16);
  std::visit([&](auto& backend) { convert(backend, from.tensor(begin), to.tensor(begin)); }, exec);
  return to.values();
}

/// Bits of floats around every kind of rounding, and what becomes of them.
void expect_rounding(Exec& exec) {
  const std::vector<std::pair<std::uint32_t, std::uint16_t>> cases = {
      {0x00000000, 0x0000}, {0x80000000, 0x8000}, {0x3F800000, 0x3F80},
      {0x3F808000, 0x3F80},  // a tie, to even
      {0x3F818000, 0x3F82},  // a tie, to even
      {0x3F808001, 0x3F81}, {0x3F807FFF, 0x3F80}, {0xBF808001, 0xBF81},
      {0x00000001, 0x0000}, {0x00018000, 0x0002}, {0x7F7FFFFF, 0x7F80},  // beyond the largest
      {0x7F7F7FFF, 0x7F7F}, {0x7F800000, 0x7F80}, {0xFF800000, 0xFF80}};
  std::vector<float> values;
  for (const auto& [bits, want] : cases) values.push_back(std::bit_cast<float>(bits));
  const auto result = converted(exec, values);
  for (std::size_t i = 0; i < cases.size(); ++i) {
    EXPECT_EQ(result[i], cases[i].second) << fmt::format("{:#x}", cases[i].first);
  }
  const auto nan = converted(exec, {std::bit_cast<float>(0x7F800001U)});
  EXPECT_TRUE(std::isnan(float_from_bf16(nan[0])));
}

void expect_conversion_of_many_sizes(Exec& exec) {
  const Philox random(5, RandomPurpose::kTest);
  for (std::size_t n : {0, 1, 7, 8, 9, 2047, 2048, 2049, 40'000}) {
    for (std::size_t begin : {0, 1, 4}) {
      if (begin > n) continue;
      std::vector<float> values;
      for (std::size_t i = 0; i < n; ++i) {
        values.push_back(static_cast<float>(random.normal(i)));
      }
      const auto result = converted(exec, values, static_cast<std::int64_t>(begin));
      for (std::size_t i = 0; i < n; ++i) {
        ASSERT_EQ(result[i], i < begin ? 0x1234 : bf16_from_float(values[i])) << i << " of " << n;
      }
    }
  }
}

TEST(Convert, RoundsToNearestTiesToEven) {
  Exec cpu = CpuExec(1);
  expect_rounding(cpu);
}

TEST(Convert, TakesEverySize) {
  Exec cpu = CpuExec(2);
  expect_conversion_of_many_sizes(cpu);
}

TEST(ConvertCuda, RoundsToNearestTiesToEven) { run_on_gpu(expect_rounding); }
TEST(ConvertCuda, TakesEverySize) { run_on_gpu(expect_conversion_of_many_sizes); }

TEST(Convert, RefusesTensorsThatDoNotFit) {
  Exec exec = CpuExec(1);
  CpuExec& cpu = std::get<CpuExec>(exec);
  const Placed<float> from(exec, {1, 2});
  const Placed<std::uint16_t> to(exec, {0, 0}, Dtype::kBf16), more(exec, {0, 0, 0}, Dtype::kBf16);
  EXPECT_NO_THROW(convert(cpu, from.tensor(), to.tensor()));
  EXPECT_THROW(convert(cpu, from.tensor(), more.tensor()), Error);
  EXPECT_THROW(convert(cpu, from.tensor(), from.tensor()), Error);
  EXPECT_THROW(convert(cpu, to.tensor(), to.tensor()), Error);
  EXPECT_THROW(convert(cpu, {}, to.tensor()), Error);
}

}  // namespace
}  // namespace jiboia::test
