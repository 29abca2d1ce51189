#include "tests/cuda_emulator/kernel_thread.h"

#include <link.h>
#include <unistd.h>

#include <condition_variable>
#include <cstddef>
#include <cstring>
#include <mutex>
#include <thread>

namespace jiboia::emulated {
namespace {

class KernelThread {
 public:
  KernelThread() : process_(getpid()) {
    // Detached, and this is never destroyed: kernels may run until the process ends.
    std::thread([this] { serve(); }).detach();
  }
  KernelThread(const KernelThread&) = delete;
  KernelThread& operator=(const KernelThread&) = delete;

  bool of_this_process() const { return process_ == getpid(); }

  void run(void (*call)(void*, bool), void* context) {
    const std::lock_guard<std::mutex> turn(turn_);
    std::unique_lock<std::mutex> lock(mutex_);
    call_ = call;
    context_ = context;
    changed_.notify_all();
    changed_.wait(lock, [this] { return call_ == nullptr; });
  }

 private:
  void serve() {
    bool fresh = true;
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      changed_.wait(lock, [this] { return call_ != nullptr; });
      call_(context_, fresh);
      fresh = false;
      call_ = nullptr;
      changed_.notify_all();
    }
  }

  const pid_t process_;
  std::mutex turn_;   ///< held by the caller that is served
  std::mutex mutex_;  ///< guards the rest
  std::condition_variable changed_;
  void (*call_)(void*, bool) = nullptr;
  void* context_ = nullptr;
};

}  // namespace

void on_kernel_thread(void (*call)(void*, bool), void* context) {
  static std::mutex mutex;
  static KernelThread* thread = nullptr;
  KernelThread* serving = nullptr;
  {
    const std::lock_guard<std::mutex> lock(mutex);
    if (!thread || !thread->of_this_process()) thread = new KernelThread;
    serving = thread;
  }
  serving->run(call, context);
}

void fill_static_shared_memory([[maybe_unused]] int value) {
#if !defined(__SANITIZE_ADDRESS__)
  // With the sanitizer they are static, for the sake of the red zones that it puts between them.
  dl_iterate_phdr(
      [](dl_phdr_info* info, std::size_t, void* data) {
        for (int i = 0; i < info->dlpi_phnum; ++i) {
          if (info->dlpi_phdr[i].p_type != PT_TLS || !info->dlpi_tls_data) continue;
          std::memset(info->dlpi_tls_data, *static_cast<const int*>(data),
                      info->dlpi_phdr[i].p_memsz);
        }
        return 1;  // the first object is the program: no other holds kernels
      },
      &value);
#endif
}

}  // namespace jiboia::emulated
