#pragma once
#include <cuda_runtime_api.h>

#include <functional>

/// Stream capture: what a stream is asked for between cudaStreamBeginCapture() and
/// cudaStreamEndCapture() is kept, with the addresses and numbers that it has then, and done by
/// cudaGraphLaunch().
namespace jiboia::emulated {

/// Does `work`, or keeps it when this thread captures `stream`.
cudaError_t ask(CUstream_st* stream, std::function<cudaError_t()> work);

/// Whether this thread captures a stream. What must not be then, refuse_captured() refuses.
bool is_capturing();
bool is_capturing(CUstream_st* stream);
/// Makes the graph that is being captured worthless; the error of the call that did it.
cudaError_t refuse_captured(cudaError_t error = cudaErrorStreamCaptureUnsupported);

}  // namespace jiboia::emulated
