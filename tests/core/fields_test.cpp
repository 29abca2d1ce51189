#include "core/fields.h"

#include <gmock/gmock.h>

#include <cstdint>
#include <string>

namespace jiboia {
namespace {

template <class T>
struct Three {
  T a, b, c;
};
struct Mixed {
  std::int32_t a;
  float b;
};
struct Padded {
  std::int64_t a;
  bool b;
};
struct alignas(16) Aligned {
  std::int64_t a;
};

static_assert(kIsMadeOf<Three<bool>, bool>);
static_assert(kIsMadeOf<Three<std::string>, std::string>);
static_assert(!kIsMadeOf<Three<std::int32_t>, float>);
static_assert(!kIsMadeOf<Three<std::int64_t>, std::int32_t>);
static_assert(!kIsMadeOf<Mixed, std::int32_t>);
static_assert(!kIsMadeOf<Mixed, float>);
static_assert(!kIsMadeOf<Padded, std::int64_t>);
static_assert(!kIsMadeOf<Aligned, std::int64_t>);

TEST(Fields, AreTheMembersInTheirOrder) {
  Three<std::string> texts{"a", "b", "c"};
  EXPECT_THAT(fields<std::string>(texts), testing::ElementsAre("a", "b", "c"));
  fields<std::string>(texts)[1] = "other";
  EXPECT_EQ(texts.b, "other");
  const auto lengths = map_fields<std::size_t, Three<std::size_t>, std::string>(
      texts, [](const std::string& text) { return text.size(); });
  EXPECT_EQ(lengths.a, 1U);
  EXPECT_EQ(lengths.b, 5U);
}

}  // namespace
}  // namespace jiboia
