#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

#include "core/dtype.h"
#include "core/shape.h"

namespace jiboia {

/// What a tensor is, without its memory: dtype, shape and the distance between rows.
/// A "row" is a run of the last dimension; the last dimension is always contiguous and rows are
/// evenly spaced, so a slice of columns of a matrix is again a Spec. Default: absent (an optional
/// input that is not given).
struct Spec {
  Dtype dtype = Dtype::kF32;
  Shape shape{};
  std::int64_t row_stride = 0;  ///< elements from one row's start to the next one's
  bool present = false;

  Spec() = default;
  Spec(Dtype d, Shape s) : dtype(d), shape(s), row_stride(s.rank() ? s[-1] : 1), present(true) {}

  explicit operator bool() const { return present; }
  std::int64_t size() const { return shape.size(); }                     ///< elements
  std::int64_t columns() const { return shape.rank() ? shape[-1] : 1; }  ///< of one row
  std::int64_t rows() const { return columns() ? size() / columns() : 0; }
  bool contiguous() const { return row_stride == columns() || rows() <= 1; }
  /// Bytes of a contiguous tensor of this dtype and shape.
  std::int64_t bytes() const { return present ? size() * size_of(dtype) : 0; }
  /// Same dtype and shape, contiguous.
  Spec packed() const { return present ? Spec(dtype, shape) : Spec(); }
  /// "f32 (2, 64, 16)", or "absent".
  std::string to_string() const;
};

/// A Spec with memory that it does not own. Copies refer to the same elements.
struct Tensor : Spec {
  void* data = nullptr;

  Tensor() = default;
  Tensor(const Spec& spec, void* memory) : Spec(spec), data(memory) {}

  /// The elements as T. Errors: Internal when T is not the tensor's dtype.
  template <class T>
  T* as() const {
    require(dtype == kDtypeOf<T>, ErrorKind::kInternal, "a {} tensor was read as {}",
            jiboia::to_string(dtype), jiboia::to_string(kDtypeOf<T>));
    return static_cast<T*>(data);
  }
};

/// The target of a position that is not scored.
inline constexpr std::int32_t kIgnoredTarget = -100;

/// Columns [begin, begin + count) of every row. Errors: InvalidArgument when out of range.
Spec column_slice(const Spec& spec, std::int64_t begin, std::int64_t count);

}  // namespace jiboia
