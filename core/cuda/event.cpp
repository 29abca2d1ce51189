#include "core/event.h"

#include "core/cuda/check.cuh"
#include "core/cuda/cuda_exec.h"

namespace jiboia {
namespace {

constexpr const char* kWho = "event";

class StreamEvent : public Event::Recorded {
 public:
  explicit StreamEvent(CudaExec& gpu) {
    cuda::check(cudaEventCreate(&event_), kWho);
    record(gpu);
  }
  StreamEvent(const StreamEvent&) = delete;
  StreamEvent& operator=(const StreamEvent&) = delete;
  ~StreamEvent() override { cudaEventDestroy(event_); }

  void record(CudaExec& gpu) { cuda::check(cudaEventRecord(event_, gpu.stream()), kWho); }
  void wait() const override { cuda::check(cudaEventSynchronize(event_), kWho); }
  double seconds_since(const Recorded& earlier) const override {
    wait();
    earlier.wait();
    float milliseconds = 0;
    cuda::check(cudaEventElapsedTime(&milliseconds, static_cast<const StreamEvent&>(earlier).event_,
                                     event_),
                kWho);
    return 1e-3 * static_cast<double>(milliseconds);
  }

 private:
  cudaEvent_t event_ = nullptr;
};

}  // namespace

void Event::record(CudaExec& gpu) {
  if (recorded_) {
    static_cast<StreamEvent&>(*recorded_).record(gpu);
  } else {
    recorded_ = std::make_unique<StreamEvent>(gpu);
  }
}

}  // namespace jiboia
