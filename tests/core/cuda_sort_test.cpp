#include <gmock/gmock.h>

#include <numeric>

#include "core/cuda/sort.h"
#include "tests/support/device_tensor.h"

namespace jiboia::test {
namespace {

void check_sort(std::int64_t count, std::int64_t key_limit) {
  SCOPED_TRACE(fmt::format("{} keys below {}", count, key_limit));
  const Spec spec(Dtype::kI32, {count});
  TestTensor keys(spec), values(spec), sorted_keys(spec), sorted_values(spec);
  const Philox random(9, RandomPurpose::kTest, 0);
  std::vector<std::int32_t> order(static_cast<std::size_t>(count));
  std::iota(order.begin(), order.end(), 0);
  for (std::int64_t i = 0; i < count; ++i) {
    keys.set(i, std::floor(static_cast<double>(key_limit) *
                           random.uniform(static_cast<std::uint64_t>(i))));
    values.set(i, static_cast<double>(3 * i + 1));
  }
  std::ranges::stable_sort(
      order, [&](std::int32_t a, std::int32_t b) { return keys.get(a) < keys.get(b); });

  TestTensor memory(Spec(Dtype::kU8, {cuda::sort_pairs_scratch_bytes(count, key_limit)}));
  {
    const DeviceTensor on_keys(keys), on_values(values);
    DeviceTensor on_sorted_keys(sorted_keys), on_sorted_values(sorted_values), scratch(memory);
    cuda::sort_pairs(
        gpu(), "test",
        {.keys = on_keys.tensor().as<std::int32_t>(),
         .sorted_keys = on_sorted_keys.tensor().as<std::int32_t>(),
         .values = on_values.tensor().as<std::int32_t>(),
         .sorted_values = on_sorted_values.tensor().as<std::int32_t>(),
         .count = count,
         .key_limit = key_limit},
        {static_cast<std::byte*>(scratch.tensor().data), static_cast<std::size_t>(memory.size())});
    on_sorted_keys.fetch();
    on_sorted_values.fetch();
    scratch.fetch();
  }
  EXPECT_TRUE(sorted_keys.guards_intact() && sorted_values.guards_intact());
  EXPECT_TRUE(memory.guards_intact());
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int32_t from = order[static_cast<std::size_t>(i)];
    ASSERT_EQ(sorted_keys.get(i), keys.get(from)) << i;
    ASSERT_EQ(sorted_values.get(i), values.get(from)) << i;
  }
}

TEST(SortCuda, KeepsEqualKeysInOrder) {
  JIBOIA_SKIP_WITHOUT_GPU();
  for (std::int64_t count : {1, 2, 33, 1000, 70001}) {
    for (std::int64_t key_limit : {1, 2, 3, 256, 257, 32000}) check_sort(count, key_limit);
  }
  check_sort(1000, std::int64_t{1} << 31);
}

TEST(SortCuda, RefusesTooLittleScratch) {
  JIBOIA_SKIP_WITHOUT_GPU();
  EXPECT_THROW(cuda::sort_pairs(gpu(), "test", {.count = 100, .key_limit = 10}, {}), Error);
}

}  // namespace
}  // namespace jiboia::test
