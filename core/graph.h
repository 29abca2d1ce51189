#pragma once
#include <cstdint>
#include <functional>
#include <memory>

#include "core/exec.h"

namespace jiboia {

/// Whether a Graph records: where that makes work faster, or never.
enum class GraphUse : std::uint8_t { kAuto, kNever };

/// Work that an exec is asked for again and again, always the same.
///
/// A GPU is asked for it call by call the first time, which loads kernels and chooses algorithms.
/// The second time the same calls are recorded as a CUDA graph, by stream capture, and from then on
/// the GPU is given that graph as a whole, with the same bits and without the host's time for each
/// launch and the gaps between them.
///
/// So whatever a launch has in it, addresses, sizes and numbers, stays as it was the second time:
/// what changes from run to run lies in memory, at addresses that stay. While it is recorded, work
/// must not wait, take memory or give it back, record events, or copy to or from host memory that
/// is not pinned.
class Graph {
 public:
  /// `name` is for errors and profilers and must outlive the graph.
  Graph(const char* name, GraphUse use) : name_(name), use_(use) {}

  /// Asks `exec`, always the same, for `work`; calls it until it is recorded, a CPU and
  /// GraphUse::kNever each time. Errors: what `work` throws; Cuda, when it does what must not be.
  void run(Exec& exec, const std::function<void()>& work) {
    std::visit([&](auto& backend) { run(backend, work); }, exec);
  }
  void run(CpuExec&, const std::function<void()>& work) { work(); }
  void run(CudaExec& gpu, const std::function<void()>& work);

  void set_use(GraphUse use) { use_ = use; }
  /// Something that was recorded has changed: the next run is a first one. Waits for the exec when
  /// something was.
  void forget() {
    recorded_.reset();
    has_run_ = false;
  }

  /// What a backend keeps of it.
  struct Recorded {
    virtual ~Recorded() = default;
    virtual void launch() = 0;
  };

 private:
  const char* name_;
  GraphUse use_;
  bool has_run_ = false;
  std::unique_ptr<Recorded> recorded_;
};

}  // namespace jiboia
