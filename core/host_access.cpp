#include "core/host_access.h"

#include "core/half.h"

namespace jiboia {

void HostAccess::read_as_float(const Tensor& from, std::span<float> out) {
  require(std::cmp_equal(from.size(), out.size()), ErrorKind::kInternal, "{} read as {} floats",
          from.to_string(), out.size());
  auto to = out.begin();
  if (from.dtype == Dtype::kBf16) {
    const Tensor bits(Spec(Dtype::kU16, from.shape), from.data);
    read<std::uint16_t>(bits, [&](std::span<const std::uint16_t> piece) {
      to = std::ranges::transform(piece, to, float_from_bf16).out;
    });
    return;
  }
  require(from.dtype == Dtype::kF32, ErrorKind::kUnsupported, "{} read as floats",
          from.to_string());
  read<float>(from, [&](std::span<const float> piece) { to = std::ranges::copy(piece, to).out; });
}

}  // namespace jiboia
