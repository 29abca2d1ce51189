#include "core/arena.h"

#include <algorithm>

#include "core/error.h"

namespace jiboia {
namespace {
constexpr std::int64_t kAlignment = 256;
}

const char* to_string(MemoryUse use) {
  switch (use) {
    case MemoryUse::kValue: return "values";
    case MemoryUse::kGradient: return "gradients";
    case MemoryUse::kScratch: return "scratch";
  }
  return "?";
}

Arena::Arena(std::byte* memory, std::int64_t capacity) : memory_(memory), capacity_(capacity) {
  require(memory && capacity > 0 && capacity % kAlignment == 0 &&
              reinterpret_cast<std::uintptr_t>(memory) % kAlignment == 0,
          ErrorKind::kInternal, "arena: {} bytes, expected a positive multiple of {} and aligned",
          capacity, kAlignment);
}

std::int64_t Arena::live_blocks() const {
  return static_cast<std::int64_t>(low_.size() + high_.size());
}

Arena::Block Arena::allocate(std::int64_t bytes, MemoryUse use, const char* label) {
  require(bytes >= 0, ErrorKind::kInternal, "arena: {} bytes asked for {}", bytes, label);
  // An empty tensor takes a place too, so that every block has its own offset.
  const std::int64_t units = std::max((bytes + kAlignment - 1) / kAlignment, std::int64_t{1});
  const std::int64_t size = units * kAlignment;

  End& live = end_of(use);
  std::int64_t offset = 0;
  auto position = live.begin();
  for (; position != live.end() && position->begin - offset < size; ++position) {
    offset = position->end;
  }

  const std::int64_t other_extent = extent(&live == &low_ ? high_ : low_);
  const std::int64_t span = other_extent + std::max(extent(live), offset + size);
  if (!measuring() && span > capacity_) {
    fail(ErrorKind::kOutOfMemory, "arena: {} of {} needs {} bytes; that makes {}, there are {}",
         to_string(use), label, size, span, capacity_);
  }
  live.insert(position, {offset, offset + size, use, label});
  if (span > peak_) {
    peak_ = span;
    if (measuring()) {
      at_peak_.clear();
      for (const End* end : {&low_, &high_}) {
        for (const Range& r : *end) at_peak_.push_back({r.label, r.use, r.end - r.begin});
      }
    }
  }
  Block block{nullptr, offset, size, use};
  if (!measuring()) {
    block.data = memory_ + (&live == &low_ ? offset : capacity_ - offset - size);
  }
  return block;
}

void Arena::free(Block& block) {
  if (!block) return;
  End& live = end_of(block.use);
  const auto found = std::lower_bound(live.begin(), live.end(), block.offset,
                                      [](const Range& r, std::int64_t o) { return r.begin < o; });
  require(found != live.end() && found->begin == block.offset, ErrorKind::kInternal,
          "arena: a block was freed twice");
  live.erase(found);
  block = {};
}

}  // namespace jiboia
