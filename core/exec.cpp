#include "core/exec.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "core/error.h"

namespace jiboia {
namespace {

int available_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(1, CPU_COUNT(&set));
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

// How often a waiting thread looks before it sleeps. Ops follow each other within microseconds,
// and waking a sleeper costs more than that.
constexpr int kSpins = 4000;

void relax() {
#ifdef __x86_64__
  __builtin_ia32_pause();
#endif
}

template <class Condition>
bool spin_until(Condition condition) {
  for (int i = 0; i < kSpins; ++i) {
    if (condition()) return true;
    relax();
  }
  return false;
}

}  // namespace

struct CpuExec::Pool {
  explicit Pool(int thread_count) {
    workers.reserve(static_cast<std::size_t>(thread_count - 1));
    try {
      for (int i = 1; i < thread_count; ++i) workers.emplace_back([this] { work(); });
    } catch (const std::exception& cause) {
      const std::size_t started = workers.size() + 1;
      stop();
      fail(ErrorKind::kOutOfMemory,
           "the system starts only {} of {} CPU threads: {}; set threads to fewer", started,
           thread_count, cause.what());
    }
  }

  ~Pool() { stop(); }

  void stop() {
    stopping = true;
    publish();
    for (std::thread& worker : workers) worker.join();
  }

  void publish() {
    {
      std::lock_guard lock(mutex);
      generation.fetch_add(1, std::memory_order_release);
    }
    wake.notify_all();
  }

  void work() {
    std::uint64_t seen = 0;
    while (true) {
      const auto published = [&] { return generation.load(std::memory_order_acquire) != seen; };
      if (!spin_until(published)) {
        std::unique_lock lock(mutex);
        wake.wait(lock, published);
      }
      seen = generation.load(std::memory_order_acquire);
      if (stopping) return;
      take_tiles();
      {
        std::lock_guard lock(mutex);
        busy.fetch_sub(1, std::memory_order_release);
      }
      done.notify_one();
    }
  }

  void take_tiles() {
    for (std::int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < tiles;) {
      try {
        call(context, i);
      } catch (...) {
        std::lock_guard lock(mutex);
        if (!error) error = std::current_exception();
      }
    }
  }

  void run(std::int64_t tile_count, void (*function)(void*, std::int64_t), void* argument) {
    tiles = tile_count;
    call = function;
    context = argument;
    next.store(0, std::memory_order_relaxed);
    if (workers.empty() || tile_count <= 1) {
      take_tiles();
    } else {
      busy.store(static_cast<int>(workers.size()), std::memory_order_relaxed);
      publish();
      take_tiles();
      const auto finished = [&] { return busy.load(std::memory_order_acquire) == 0; };
      if (!spin_until(finished)) {
        std::unique_lock lock(mutex);
        done.wait(lock, finished);
      }
    }
    if (error) std::rethrow_exception(std::exchange(error, nullptr));
  }

  std::vector<std::thread> workers;
  std::mutex mutex;
  std::condition_variable wake, done;
  std::atomic<std::uint64_t> generation{0};
  std::atomic<int> busy{0};
  std::atomic<std::int64_t> next{0};
  std::atomic<bool> stopping{false};
  std::int64_t tiles = 0;
  void (*call)(void*, std::int64_t) = nullptr;
  void* context = nullptr;
  std::exception_ptr error;
};

CpuExec::CpuExec(int threads)
    : pool_(std::make_unique<Pool>(threads > 0 ? threads : available_cores())) {}
CpuExec::~CpuExec() = default;
CpuExec::CpuExec(CpuExec&&) noexcept = default;
CpuExec& CpuExec::operator=(CpuExec&&) noexcept = default;

int CpuExec::threads() const { return static_cast<int>(pool_->workers.size()) + 1; }

void CpuExec::run(std::int64_t tiles, void (*call)(void*, std::int64_t), void* context) {
  if (tiles > 0) pool_->run(tiles, call, context);
}

}  // namespace jiboia
