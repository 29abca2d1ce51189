#include "core/tensor.h"

namespace jiboia {

std::string Spec::to_string() const {
  if (!present) return "absent";
  return fmt::format("{} {}", jiboia::to_string(dtype), shape.to_string());
}

Spec column_slice(const Spec& spec, std::int64_t begin, std::int64_t count) {
  require(begin >= 0 && count > 0 && begin + count <= spec.columns(), ErrorKind::kInvalidArgument,
          "columns [{}, {}) of a tensor with {} columns", begin, begin + count, spec.columns());
  Spec slice = spec;
  slice.shape = spec.shape.with(-1, count);
  return slice;
}

}  // namespace jiboia
