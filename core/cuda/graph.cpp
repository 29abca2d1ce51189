#include "core/graph.h"

#include "core/cuda/check.cuh"
#include "core/trace.h"

namespace jiboia {
namespace {

/// What a stream is asked for from its construction to end(), recorded instead of done.
class Capture {
 public:
  Capture(CUstream_st* stream, const char* name) : stream_(stream), name_(name) {
    // Other threads' calls are no concern of it.
    cuda::check(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), name_);
  }
  ~Capture() {
    if (!capturing_) return;
    // An error is on its way: the stream does what it is asked for again, and nothing is kept.
    cudaGraph_t graph = nullptr;
    cudaStreamEndCapture(stream_, &graph);
    if (graph) cudaGraphDestroy(graph);
    cudaGetLastError();
  }
  Capture(const Capture&) = delete;
  Capture& operator=(const Capture&) = delete;

  /// The caller destroys the graph.
  cudaGraph_t end() {
    cudaGraph_t graph = nullptr;
    capturing_ = false;
    cuda::check(cudaStreamEndCapture(stream_, &graph), name_);
    return graph;
  }

 private:
  CUstream_st* stream_;
  const char* name_;
  bool capturing_ = true;
};

class StreamGraph : public Graph::Recorded {
 public:
  StreamGraph(CUstream_st* stream, const char* name, const std::function<void()>& work)
      : stream_(stream), name_(name) {
    Capture capture(stream, name);
    work();
    cudaGraph_t graph = capture.end();
    const cudaError_t error = cudaGraphInstantiate(&executable_, graph, 0);
    cudaGraphDestroy(graph);
    cuda::check(error, name_);
  }
  ~StreamGraph() override {
    cudaStreamSynchronize(stream_);  // it may be running
    cudaGraphExecDestroy(executable_);
  }
  StreamGraph(const StreamGraph&) = delete;
  StreamGraph& operator=(const StreamGraph&) = delete;

  void launch() override { cuda::check(cudaGraphLaunch(executable_, stream_), name_); }

 private:
  CUstream_st* stream_;
  const char* name_;
  cudaGraphExec_t executable_ = nullptr;
};

}  // namespace

void Graph::run(CudaExec& gpu, const std::function<void()>& work) {
  const TraceRange range(gpu, name_);
  if (use_ == GraphUse::kNever || !has_run_) {
    work();
    has_run_ = true;
    return;
  }
  if (!recorded_) recorded_ = std::make_unique<StreamGraph>(gpu.stream(), name_, work);
  recorded_->launch();
}

}  // namespace jiboia
