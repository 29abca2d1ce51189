#include "core/memory.h"

#include <algorithm>
#include <cstring>

namespace jiboia {

Buffer allocate(CpuExec&, std::int64_t bytes, const char* purpose) {
  return allocate_host(bytes, purpose);
}

Buffer allocate_staging(CpuExec&, std::int64_t bytes, const char* purpose) {
  return allocate_host(bytes, purpose);
}

std::int64_t available_bytes(const CpuExec&) { return available_host_bytes(); }

void copy(CpuExec&, const Tensor& from, const Tensor& to) {
  require_copyable(from, to);
  if (from.bytes() > 0) std::memmove(to.data, from.data, static_cast<std::size_t>(from.bytes()));
}

void fill_zero(CpuExec&, const Tensor& tensor) {
  require_copyable(tensor, tensor);
  if (tensor.bytes() > 0) std::memset(tensor.data, 0, static_cast<std::size_t>(tensor.bytes()));
}

double read_scalar(Exec& exec, const Tensor& tensor) {
  require(tensor.size() == 1, ErrorKind::kInternal, "{} was read as a scalar", tensor.to_string());
  return visit_float(tensor.dtype, [&]<class T>() {
    T value{};
    copy(exec, tensor, Tensor(tensor.packed(), &value));
    wait(exec);
    return static_cast<double>(value);
  });
}

void require_copyable(const Tensor& from, const Tensor& to) {
  require(
      from.dtype == to.dtype && from.size() == to.size() && from.contiguous() && to.contiguous(),
      ErrorKind::kInternal, "copy of {} to {}", from.to_string(), to.to_string());
}

}  // namespace jiboia
