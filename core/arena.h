#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

namespace jiboia {

/// What a block holds. Values grow from the low end while the forward pass runs and shrink while
/// the backward pass does; gradients and scratch come and go at the high end meanwhile.
enum class MemoryUse : std::uint8_t { kValue, kGradient, kScratch };
const char* to_string(MemoryUse use);

/// Memory for one step's activations, gradients and scratch: one allocation, two ends that grow
/// towards each other, first fit at each end. Blocks are 256-byte aligned.
///
/// Without memory an arena only measures: it hands out blocks with null addresses and remembers
/// the peak. Placement depends on the sequence of calls alone, so a dry run of the same code
/// gives exactly the bytes that the real run needs. Not thread-safe.
class Arena {
 public:
  struct Block {
    std::byte* data = nullptr;
    std::int64_t offset = -1;  ///< distance from its end of the arena
    std::int64_t bytes = 0;
    MemoryUse use = MemoryUse::kValue;
    explicit operator bool() const { return offset >= 0; }
  };
  /// A live block, as reported by blocks_at_peak().
  struct Usage {
    const char* label;
    MemoryUse use;
    std::int64_t bytes;
  };

  /// Measures only.
  Arena() = default;
  /// Serves from [memory, memory + capacity), which must outlive the arena.
  /// Errors: Internal unless memory and capacity are multiples of 256 and there is some.
  Arena(std::byte* memory, std::int64_t capacity);

  bool measuring() const { return memory_ == nullptr; }

  /// `label` names the block in plans and must outlive the arena.
  /// Errors: OutOfMemory when the two ends would meet (never after a correct dry run).
  Block allocate(std::int64_t bytes, MemoryUse use, const char* label);
  /// `block` becomes null. Freeing a null block does nothing.
  void free(Block& block);

  /// The most bytes that both ends spanned at once, gaps included.
  std::int64_t peak_bytes() const { return peak_; }
  /// Blocks alive now.
  std::int64_t live_blocks() const;
  /// What was alive at the peak; recorded while measuring only.
  const std::vector<Usage>& blocks_at_peak() const { return at_peak_; }

 private:
  struct Range {
    std::int64_t begin, end;
    MemoryUse use;
    const char* label;
  };
  using End = std::vector<Range>;  // ordered by offset
  static std::int64_t extent(const End& end) { return end.empty() ? 0 : end.back().end; }
  End& end_of(MemoryUse use) { return use == MemoryUse::kValue ? low_ : high_; }

  std::byte* memory_ = nullptr;
  std::int64_t capacity_ = 0;
  End low_, high_;
  std::int64_t peak_ = 0;
  std::vector<Usage> at_peak_;
};

}  // namespace jiboia
