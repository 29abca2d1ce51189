#pragma once
#include "core/exec.h"

namespace jiboia {

/// Names what an exec does from its construction to its end to NVIDIA's profilers (an NVTX range on
/// the calling thread). Costs nothing on the CPU.
class TraceRange {
 public:
  TraceRange(CpuExec&, const char*) {}
  TraceRange(CudaExec& gpu, const char* name);
  ~TraceRange() {
    if (end_) end_();
  }
  TraceRange(const TraceRange&) = delete;
  TraceRange& operator=(const TraceRange&) = delete;

 private:
  void (*end_)() = nullptr;
};

}  // namespace jiboia
