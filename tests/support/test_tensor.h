#pragma once
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "core/half.h"
#include "core/rng.h"
#include "core/tensor.h"

namespace jiboia::test {

/// A tensor that owns its memory, with guard bytes around it and, for slices of columns, between
/// its rows.
class TestTensor {
 public:
  TestTensor() = default;
  explicit TestTensor(const Spec& spec, std::int64_t columns_before = 0,
                      std::int64_t columns_after = 0)
      : spec_(spec), before_(columns_before) {
    if (!spec) return;
    spec_.row_stride = spec.columns() + columns_before + columns_after;
    const std::int64_t elements = spec_.rows() * spec_.row_stride;
    bytes_.assign(static_cast<std::size_t>(elements * size_of(spec.dtype)) + 2 * kGuard, kPattern);
    visit_rows([&](std::byte* row, std::size_t size) { std::memset(row, 0, size); });
  }

  Tensor tensor() const {
    if (!spec_) return {};
    auto* data = const_cast<std::byte*>(bytes_.data()) + kGuard + before_ * size_of(spec_.dtype);
    return {spec_, data};
  }
  const Spec& spec() const { return spec_; }
  explicit operator bool() const { return spec_.present; }

  /// Element `i` in row-major order, as a double.
  double get(std::int64_t i) const {
    switch (spec_.dtype) {
      case Dtype::kF32: return *static_cast<const float*>(at(i));
      case Dtype::kF64: return *static_cast<const double*>(at(i));
      case Dtype::kBf16: return float_from_bf16(*static_cast<const std::uint16_t*>(at(i)));
      case Dtype::kI32: return *static_cast<const std::int32_t*>(at(i));
      default: return std::numeric_limits<double>::quiet_NaN();
    }
  }
  void set(std::int64_t i, double value) {
    switch (spec_.dtype) {
      case Dtype::kBf16:
        *static_cast<std::uint16_t*>(at(i)) = bf16_from_float(static_cast<float>(value));
        break;
      case Dtype::kF32: *static_cast<float*>(at(i)) = static_cast<float>(value); break;
      case Dtype::kF64: *static_cast<double*>(at(i)) = value; break;
      case Dtype::kI32:
        *static_cast<std::int32_t*>(at(i)) = static_cast<std::int32_t>(value);
        break;
      default: FAIL() << "no test values of this dtype";
    }
  }
  std::int64_t size() const { return spec_ ? spec_.size() : 0; }
  void fill(double value) {
    for (std::int64_t i = 0; i < size(); ++i) set(i, value);
  }
  void fill_bytes(std::byte value) {
    visit_rows([value](std::byte* row, std::size_t size) {
      std::memset(row, static_cast<int>(value), size);
    });
  }
  std::vector<double> values() const {
    std::vector<double> result(static_cast<std::size_t>(size()));
    for (std::int64_t i = 0; i < size(); ++i) result[static_cast<std::size_t>(i)] = get(i);
    return result;
  }
  double largest() const {
    double result = 0;
    for (std::int64_t i = 0; i < size(); ++i) result = std::max(result, std::abs(get(i)));
    return result;
  }

  /// Whether nobody wrote outside the elements.
  bool guards_intact() const {
    TestTensor copy = *this;
    copy.visit_rows([](std::byte* row, std::size_t size) { std::memset(row, 0, size); });
    if (!spec_) return true;
    TestTensor fresh(spec_, before_, spec_.row_stride - spec_.columns() - before_);
    return copy.bytes_ == fresh.bytes_;
  }
  bool same_bits(const TestTensor& other) const { return bytes_ == other.bytes_; }

  /// The elements with all that is around them: guard bytes, then what lies before the first row's
  /// elements.
  std::vector<std::byte>& bytes() { return bytes_; }
  /// Bytes in front of the first element.
  std::int64_t offset() const { return kGuard + before_ * size_of(spec_.dtype); }
  std::int64_t columns_before() const { return before_; }

 private:
  static constexpr std::int64_t kGuard = 256;
  static constexpr std::byte kPattern{0x5A};

  void* at(std::int64_t i) const {
    const std::int64_t row = i / spec_.columns(), column = i % spec_.columns();
    return static_cast<std::byte*>(tensor().data) +
           (row * spec_.row_stride + column) * size_of(spec_.dtype);
  }
  template <class Visit>
  void visit_rows(Visit visit) {
    if (!spec_) return;
    for (std::int64_t row = 0; row < spec_.rows(); ++row) {
      visit(static_cast<std::byte*>(at(row * spec_.columns())),
            static_cast<std::size_t>(spec_.columns() * size_of(spec_.dtype)));
    }
  }

  Spec spec_;
  std::int64_t before_ = 0;
  std::vector<std::byte> bytes_;
};

/// The largest |got - want|, "" when within `relative` * max|want| + `absolute`.
inline std::string difference(const std::string& what, const TestTensor& got,
                              const TestTensor& want, double relative, double absolute) {
  const double limit = relative * want.largest() + absolute;
  for (std::int64_t i = 0; i < want.size(); ++i) {
    const double error = std::abs(got.get(i) - want.get(i));
    if (!(error <= limit)) {
      return fmt::format("{}: element {} is {:.9g}, expected {:.9g} (limit {:.3g})", what, i,
                         got.get(i), want.get(i), limit);
    }
  }
  return "";
}

}  // namespace jiboia::test
