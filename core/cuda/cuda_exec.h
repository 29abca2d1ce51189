#pragma once
#include <cstdint>
#include <memory>
#include <string>

struct CUstream_st;

namespace jiboia {

namespace cuda {
class Blas;
}

/// What a GPU is.
struct GpuInfo {
  int device = 0;
  std::string name;
  int compute_capability = 0;  ///< 90 for 9.0
  int multiprocessors = 0;
  std::int64_t memory_bytes = 0;
  int shared_bytes_per_block = 0;  ///< the most that a kernel can ask for, static and dynamic
  /// See peak_rates().
  double peak_bf16 = 0, peak_f32 = 0;
};

/// Runs ops on one NVIDIA GPU: in order, on one stream, asynchronously.
///
/// Determinism rule: a kernel's launch shape depends on shapes alone, sums are made in a fixed
/// order, no float atomics. Same input, same GPU model and same libraries: same bits.
class CudaExec {
 public:
  /// GPUs that this process can use; 0 also without a driver. Errors: Cuda when there is a driver
  /// that does not work, or is too old.
  static int device_count();

  /// Errors: Cuda when there is no such GPU or this build has no code for it.
  explicit CudaExec(int device = 0);
  ~CudaExec();
  CudaExec(CudaExec&&) noexcept;
  CudaExec& operator=(CudaExec&&) noexcept;

  const GpuInfo& gpu() const;
  /// The stream that all ops run on.
  CUstream_st* stream() const;
  cuda::Blas& blas() const;
  /// Errors: Cuda, when anything that ran before failed.
  void wait();
  /// Bytes that allocate() has taken for this exec and not given back; the libraries' and the
  /// driver's own memory is not in it.
  std::int64_t allocated_bytes() const;

  struct State;
  State& state() const { return *state_; }

 private:
  std::unique_ptr<State> state_;
};

}  // namespace jiboia
