#include "core/arena.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

#include "core/buffer.h"
#include "core/error.h"

namespace jiboia {
namespace {

TEST(Arena, DryRunGivesTheExactPeak) {
  // The same sequence of calls, first measured, then in exactly the memory measured.
  const auto sequence = [](Arena& arena) {
    auto a = arena.allocate(1000, MemoryUse::kValue, "a");
    auto b = arena.allocate(1, MemoryUse::kValue, "b");
    auto scratch = arena.allocate(5000, MemoryUse::kScratch, "scratch");
    arena.free(scratch);
    arena.free(a);
    auto c = arena.allocate(600, MemoryUse::kValue, "c");  // fits where a was
    auto gradient = arena.allocate(3000, MemoryUse::kGradient, "gradient");
    const std::int64_t peak = arena.peak_bytes();
    for (auto* block : {&b, &c, &gradient}) arena.free(*block);
    return peak;
  };
  Arena measuring;
  const std::int64_t peak = sequence(measuring);
  EXPECT_EQ(peak, 1024 + 256 + 5120);
  EXPECT_THAT(measuring.blocks_at_peak(), testing::SizeIs(3));
  const Buffer memory = allocate_host(peak, "a test");
  Arena arena(memory.data(), peak);
  EXPECT_EQ(sequence(arena), peak);
  EXPECT_EQ(arena.live_blocks(), 0);

  Arena too_small(memory.data(), peak - 256);
  EXPECT_THROW(sequence(too_small), Error);
}

TEST(Arena, WhatFindsNoRoomTakesNone) {
  const Buffer memory = allocate_host(1024, "a test");
  Arena arena(memory.data(), memory.bytes());
  auto value = arena.allocate(512, MemoryUse::kValue, "value");
  for (MemoryUse use : {MemoryUse::kValue, MemoryUse::kScratch}) {
    EXPECT_THROW(arena.allocate(768, use, "too much"), Error);
    EXPECT_EQ(arena.live_blocks(), 1);
  }
  EXPECT_EQ(arena.peak_bytes(), 512);
  auto scratch = arena.allocate(512, MemoryUse::kScratch, "scratch");
  EXPECT_EQ(scratch.data, memory.data() + 512);
  for (auto* block : {&value, &scratch}) arena.free(*block);
  EXPECT_EQ(arena.live_blocks(), 0);
}

TEST(Arena, BlocksDoNotOverlap) {
  const Buffer memory = allocate_host(1 << 16, "a test");
  Arena arena(memory.data(), memory.bytes());
  std::vector<Arena::Block> blocks;
  for (int i = 0; i < 60; ++i) {
    const auto use = i % 3 == 0 ? MemoryUse::kGradient : MemoryUse::kValue;
    blocks.push_back(arena.allocate(100 + 37 * i % 500, use, "block"));
    if (i % 4 == 3) {
      arena.free(blocks[static_cast<std::size_t>(i - 2)]);
    }
  }
  std::vector<int> owners(static_cast<std::size_t>(memory.bytes()), 0);
  for (const Arena::Block& block : blocks) {
    if (!block) continue;
    const auto begin = static_cast<std::size_t>(block.data - memory.data());
    for (std::size_t i = begin; i < begin + static_cast<std::size_t>(block.bytes); ++i) ++owners[i];
  }
  EXPECT_LE(*std::max_element(owners.begin(), owners.end()), 1);
}

TEST(Arena, FreeingTwiceIsAnError) {
  Arena arena;
  auto block = arena.allocate(10, MemoryUse::kValue, "block");
  auto copy = block;
  arena.free(block);
  EXPECT_THROW(arena.free(copy), Error);
  EXPECT_NO_THROW(arena.free(block));  // null by now
}

}  // namespace
}  // namespace jiboia
