#include "tests/cuda_emulator/capture.h"

#include <utility>
#include <vector>

#include "tests/cuda_emulator/trace.h"

using namespace jiboia::emulated;

struct CUgraph_st {
  std::vector<std::function<cudaError_t()>> work;
};
struct CUgraphExec_st : CUgraph_st {};

namespace {

struct Capture {
  CUstream_st* stream;
  CUgraph_st* graph;
  bool valid = true;
};
thread_local Capture* capture = nullptr;

}  // namespace

namespace jiboia::emulated {

bool is_capturing() { return capture != nullptr; }
bool is_capturing(CUstream_st* stream) { return capture && capture->stream == stream; }

cudaError_t refuse_captured(cudaError_t error) {
  capture->valid = false;
  return error;
}

cudaError_t ask(CUstream_st* stream, std::function<cudaError_t()> work) {
  if (!is_capturing(stream)) return work();
  capture->graph->work.push_back(std::move(work));
  return cudaSuccess;
}

}  // namespace jiboia::emulated

extern "C" {

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  if (capture) return cudaErrorIllegalState;
  trace("capture begins");
  capture = new Capture{stream, new CUgraph_st};
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  *graph = nullptr;
  if (!is_capturing(stream)) return cudaErrorIllegalState;
  trace("capture ends");
  const Capture captured = *capture;
  delete std::exchange(capture, nullptr);
  if (!captured.valid) {
    delete captured.graph;
    return cudaErrorStreamCaptureInvalidated;
  }
  *graph = captured.graph;
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph,
                                 unsigned long long) {
  *executable = new CUgraphExec_st{*graph};
  return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t) {
  trace("graph begins");
  for (const auto& work : executable->work) {
    const cudaError_t error = work();
    if (error != cudaSuccess) return error;
  }
  trace("graph ends");
  return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  delete executable;
  return cudaSuccess;
}

}  // extern "C"
