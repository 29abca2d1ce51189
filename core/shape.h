#pragma once
#include <array>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>

#include "core/error.h"

namespace jiboia {

/// n / d, rounded up, of n >= 0 and d > 0.
constexpr std::int64_t ceil_div(std::int64_t n, std::int64_t d) { return (n + d - 1) / d; }

/// Up to four 64-bit extents, outermost first. Trivially copyable.
class Shape {
 public:
  static constexpr int kMaxRank = 4;

  constexpr Shape() = default;
  Shape(std::initializer_list<std::int64_t> extents)
      : Shape(std::span<const std::int64_t>(extents.begin(), extents.size())) {}
  explicit Shape(std::span<const std::int64_t> extents) {
    require(extents.size() <= kMaxRank, ErrorKind::kInvalidArgument,
            "a shape has {} dimensions, at most {} are supported", extents.size(), kMaxRank);
    for (std::int64_t extent : extents) extents_[static_cast<std::size_t>(rank_++)] = extent;
  }

  constexpr int rank() const { return rank_; }
  /// Extent of dimension `i`; a negative `i` counts from the last.
  constexpr std::int64_t operator[](int i) const {
    return extents_[static_cast<std::size_t>(i < 0 ? rank_ + i : i)];
  }
  /// Number of elements; 1 for rank 0.
  constexpr std::int64_t size() const {
    std::int64_t n = 1;
    for (int i = 0; i < rank_; ++i) n *= (*this)[i];
    return n;
  }
  /// Same shape with dimension `i` (negative counts from the last) replaced.
  constexpr Shape with(int i, std::int64_t extent) const {
    Shape result = *this;
    result.extents_[static_cast<std::size_t>(i < 0 ? rank_ + i : i)] = extent;
    return result;
  }
  constexpr bool operator==(const Shape&) const = default;

  /// "(2, 64, 16)"
  std::string to_string() const;

 private:
  std::array<std::int64_t, kMaxRank> extents_{};
  int rank_ = 0;
};

}  // namespace jiboia
