#pragma once
#include <cstdint>
#include <variant>

#include "core/buffer.h"
#include "core/exec.h"
#include "core/tensor.h"

/// Memory where an Exec computes, and what moves values into it and out of it.
namespace jiboia {

/// Zero-filled memory where `exec` computes, 256-byte aligned. `purpose` names it in the error.
/// Errors: OutOfMemory, with the bytes asked for and those that are free.
Buffer allocate(CpuExec&, std::int64_t bytes, const char* purpose);
Buffer allocate(CudaExec& gpu, std::int64_t bytes, const char* purpose);

/// Host memory that the exec reads and writes at full speed, beside its other work. Its values are
/// not defined.
Buffer allocate_staging(CpuExec&, std::int64_t bytes, const char* purpose);
Buffer allocate_staging(CudaExec& gpu, std::int64_t bytes, const char* purpose);

/// Bytes that allocate() could still give; 0 when unknown.
std::int64_t available_bytes(const CpuExec&);
std::int64_t available_bytes(const CudaExec& gpu);

/// Copies a whole tensor; both contiguous, of one dtype and size, in host memory or the exec's, in
/// any combination. In order with the exec's other work: host memory that it may still be reading
/// or writing is the caller's again after wait() or an Event.
void copy(CpuExec&, const Tensor& from, const Tensor& to);
void copy(CudaExec& gpu, const Tensor& from, const Tensor& to);

/// Errors: Internal unless copy() takes these.
void require_copyable(const Tensor& from, const Tensor& to);

/// Makes every element of a contiguous tensor zero.
void fill_zero(CpuExec& cpu, const Tensor& tensor);
void fill_zero(CudaExec& gpu, const Tensor& tensor);

/// The one element of an f32 or f64 tensor where `exec` computes. Waits for it.
/// Errors: Internal, Unsupported.
double read_scalar(Exec& exec, const Tensor& tensor);

/// The same for an Exec, whichever it is.
inline Buffer allocate(Exec& exec, std::int64_t bytes, const char* purpose) {
  return std::visit([&](auto& backend) { return allocate(backend, bytes, purpose); }, exec);
}
inline Buffer allocate_staging(Exec& exec, std::int64_t bytes, const char* purpose) {
  return std::visit([&](auto& backend) { return allocate_staging(backend, bytes, purpose); }, exec);
}
inline std::int64_t available_bytes(const Exec& exec) {
  return std::visit([](const auto& backend) { return available_bytes(backend); }, exec);
}
inline void copy(Exec& exec, const Tensor& from, const Tensor& to) {
  std::visit([&](auto& backend) { copy(backend, from, to); }, exec);
}
inline void fill_zero(Exec& exec, const Tensor& tensor) {
  std::visit([&](auto& backend) { fill_zero(backend, tensor); }, exec);
}

}  // namespace jiboia
