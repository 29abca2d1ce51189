#include "tests/cuda_emulator/block.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <vector>

#include "tests/cuda_emulator/environment.h"
#include "tests/cuda_emulator/fiber.h"
#include "tests/cuda_emulator/gpu_memory.h"
#include "tests/cuda_emulator/static_shared.h"
#include "tests/cuda_emulator/trace.h"

namespace jiboia::emulated {

uint3 thread_index, block_index;
dim3 block_size, grid_size;
std::byte* dynamic_shared_memory = nullptr;

namespace {

constexpr unsigned kWarp = 32;
constexpr std::size_t kMostThreads = 1024, kMostSharedBytes = 227 * 1024;
/// What a kernel must not take for data: NaN as a float, -1 as an integer.
constexpr int kGarbage = 0xFF;
#if defined(__SANITIZE_ADDRESS__)
constexpr std::size_t kTailBytes = 0;  // the sanitizer sees writes past the end
#else
constexpr std::size_t kTailBytes = 64;
#endif

/// What a thread of a warp waits for.
struct Arrival {
  Collective kind = Collective::kSync;
  unsigned mask = 0, source = 0;
  std::uint64_t value = 0;  ///< the thread's own, then the result
  Site site;
};

struct Warp {
  // One bit a lane.
  unsigned existing = 0, ready = 0, in_collective = 0, at_barrier = 0, returned = 0;
  std::array<Arrival, kWarp> arrivals;
  std::array<Site, kWarp> barrier_sites;
};

enum class Order { kForward, kBackward, kRandom };

Order order_of_environment() {
  const char* text = std::getenv("JIBOIA_EMULATED_ORDER");
  const std::string name = text ? text : "forward";
  if (name == "forward" || name.empty()) return Order::kForward;
  if (name == "backward") return Order::kBackward;
  if (name == "random") return Order::kRandom;
  std::fprintf(stderr, "JIBOIA_EMULATED_ORDER is %s, not forward, backward or random\n", text);
  std::abort();
}

bool same(const Site& a, const Site& b) {
  return a.line == b.line && (a.file == b.file || std::strcmp(a.file, b.file) == 0);
}

const char* name_of(Collective kind) {
  switch (kind) {
    case Collective::kSync: return "__syncwarp";
    case Collective::kShuffle: return "a shuffle";
    case Collective::kBallot: return "a vote";
    case Collective::kAdd:
    case Collective::kMin:
    case Collective::kMax: return "a reduction";
  }
  return "";
}

/// What the lanes of `mask` get from all their values.
std::uint64_t reduce(Collective kind, unsigned mask,
                     const std::array<std::uint64_t, kWarp>& values) {
  std::int64_t result = 0;
  bool first = true;
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    if ((mask >> lane & 1) == 0) continue;
    const auto value = static_cast<std::int64_t>(values[lane]);
    if (kind == Collective::kBallot) {
      result |= std::int64_t{value != 0} << lane;
    } else if (kind == Collective::kAdd) {
      result += value;
    } else if (first || (kind == Collective::kMin ? value < result : value > result)) {
      result = value;
    }
    first = false;
  }
  return static_cast<std::uint64_t>(result);
}

/// Runs the blocks of launches.
class Multiprocessor {
 public:
  void run(const KernelLaunch& launch);
  std::uint64_t collective(Collective kind, unsigned mask, std::uint64_t value, unsigned source,
                           Site site);
  int sync_block(bool predicate, Site site);
  unsigned lane() const { return lane_; }

 private:
  /// A fiber runs threads to their end, one after another: a kernel that never waits needs one.
  struct Worker {
    explicit Worker(Multiprocessor& owner) : multiprocessor(&owner), fiber(run_threads, this) {}
    static void run_threads(void* worker);
    Multiprocessor* multiprocessor;
    Fiber fiber;
    bool returned = false;  ///< the thread it ran last has
  };

  void run_block();
  void run_warp(unsigned warp);
  void run_thread(unsigned warp, unsigned lane);
  unsigned choose(unsigned lanes);
  void wait();
  bool complete(Warp& warp, const Arrival& arrival);
  void fill_shared();
  void check_shared() const;
  uint3 index_of(unsigned thread) const;
  std::string text_of(unsigned thread) const;
  [[noreturn]] void die(const std::string& what) const;
  [[noreturn]] void die_of_deadlock() const;

  KernelLaunch launch_;
  Order order_ = Order::kForward;
  std::mt19937 random_;
  unsigned threads_ = 0, waiting_at_barrier_ = 0, returned_ = 0;
  int predicates_ = 0, predicate_count_ = 0;
  std::vector<Warp> warps_;
  std::vector<uint3> indices_;  ///< of the block's threads
  std::vector<Worker*> workers_of_threads_;
  std::vector<std::unique_ptr<Worker>> workers_;
  std::vector<Worker*> idle_;
  Worker* worker_ = nullptr;  ///< of the thread that runs now, as are warp_ and lane_
  unsigned warp_ = 0, lane_ = 0;
  std::unique_ptr<std::byte[]> shared_;
};

void Multiprocessor::Worker::run_threads(void* context) {
  Worker& worker = *static_cast<Worker*>(context);
  for (;;) {
    worker.multiprocessor->launch_.call(worker.multiprocessor->launch_.context);
    worker.returned = true;
    worker.fiber.suspend();
  }
}

void Multiprocessor::run(const KernelLaunch& launch) {
  launch_ = launch;
  order_ = order_of_environment();
  if (order_ == Order::kRandom) {
    random_.seed(static_cast<unsigned>(from_environment("JIBOIA_EMULATED_SEED", 1)));
  }
  grid_size = launch.grid;
  block_size = launch.block;
  threads_ = launch.block.x * launch.block.y * launch.block.z;
  warps_.resize((threads_ + kWarp - 1) / kWarp);
  workers_of_threads_.resize(threads_);
  indices_.resize(threads_);
  for (unsigned thread = 0; thread < threads_; ++thread) indices_[thread] = index_of(thread);
  shared_ = std::make_unique_for_overwrite<std::byte[]>(launch.shared_bytes + kTailBytes);
  dynamic_shared_memory = shared_.get();

  const std::uint64_t blocks = std::uint64_t{launch.grid.x} * launch.grid.y * launch.grid.z;
  std::vector<std::uint32_t> shuffled;
  if (order_ == Order::kRandom) {
    shuffled.resize(blocks);
    for (std::uint32_t i = 0; i < blocks; ++i) shuffled[i] = i;
    std::shuffle(shuffled.begin(), shuffled.end(), random_);
  }
  for (std::uint64_t i = 0; i < blocks; ++i) {
    const std::uint64_t block = order_ == Order::kForward    ? i
                                : order_ == Order::kBackward ? blocks - 1 - i
                                                             : shuffled[i];
    block_index = {static_cast<unsigned>(block % launch.grid.x),
                   static_cast<unsigned>(block / launch.grid.x % launch.grid.y),
                   static_cast<unsigned>(block / launch.grid.x / launch.grid.y)};
    run_block();
  }
}

void Multiprocessor::run_block() {
  fill_shared();
  for (unsigned w = 0; w < warps_.size(); ++w) {
    const unsigned lanes = std::min(kWarp, threads_ - w * kWarp);
    warps_[w].existing = lanes == kWarp ? ~0U : (1U << lanes) - 1;
    warps_[w].ready = warps_[w].existing;
    warps_[w].in_collective = warps_[w].at_barrier = warps_[w].returned = 0;
  }
  std::fill(workers_of_threads_.begin(), workers_of_threads_.end(), nullptr);
  waiting_at_barrier_ = returned_ = 0;
  predicates_ = 0;
  const auto count = static_cast<unsigned>(warps_.size());
  while (returned_ < threads_) {
    bool ran = false;
    const unsigned first = order_ == Order::kRandom ? static_cast<unsigned>(random_() % count) : 0;
    for (unsigned i = 0; i < count; ++i) {
      const unsigned warp = order_ == Order::kBackward ? count - 1 - i : (first + i) % count;
      if (warps_[warp].ready == 0) continue;
      ran = true;
      run_warp(warp);
    }
    if (!ran) die_of_deadlock();
  }
  check_shared();
}

void Multiprocessor::run_warp(unsigned warp) {
  while (warps_[warp].ready != 0) {
    run_thread(warp, choose(warps_[warp].ready));
    // A random order goes to another warp now and then.
    if (order_ == Order::kRandom && random_() % 16 == 0) return;
  }
}

void Multiprocessor::run_thread(unsigned warp, unsigned lane) {
  Warp& of = warps_[warp];
  of.ready &= ~(1U << lane);
  const unsigned thread = warp * kWarp + lane;
  Worker*& worker = workers_of_threads_[thread];
  if (!worker) {
    if (idle_.empty()) {
      workers_.push_back(std::make_unique<Worker>(*this));
      idle_.push_back(workers_.back().get());
    }
    worker = idle_.back();
    idle_.pop_back();
    worker->returned = false;
  }
  warp_ = warp;
  lane_ = lane;
  worker_ = worker;
  thread_index = indices_[thread];
  worker->fiber.resume();
  if (!worker->returned) return;
  of.returned |= 1U << lane;
  ++returned_;
  idle_.push_back(worker);
}

unsigned Multiprocessor::choose(unsigned lanes) {
  if (order_ == Order::kForward) return static_cast<unsigned>(std::countr_zero(lanes));
  if (order_ == Order::kBackward) return kWarp - 1 - static_cast<unsigned>(std::countl_zero(lanes));
  const auto turn = static_cast<int>(random_() % kWarp);
  return (static_cast<unsigned>(std::countr_zero(std::rotr(lanes, turn))) + turn) % kWarp;
}

void Multiprocessor::wait() { worker_->fiber.suspend(); }

int Multiprocessor::sync_block(bool predicate, Site site) {
  Warp& warp = warps_[warp_];
  warp.at_barrier |= 1U << lane_;
  warp.barrier_sites[lane_] = site;
  predicates_ += predicate;
  if (++waiting_at_barrier_ < threads_) {
    wait();
    return predicate_count_;
  }
  for (Warp& other : warps_) {
    for (unsigned lane = 0; lane < kWarp && other.existing >> lane; ++lane) {
      if (!same(other.barrier_sites[lane], site)) die_of_deadlock();
    }
  }
  for (Warp& other : warps_) {
    other.ready = other.existing;
    other.at_barrier = 0;
  }
  warp.ready &= ~(1U << lane_);  // this thread just goes on
  waiting_at_barrier_ = 0;
  predicate_count_ = predicates_;
  predicates_ = 0;
  return predicate_count_;
}

std::uint64_t Multiprocessor::collective(Collective kind, unsigned mask, std::uint64_t value,
                                         unsigned source, Site site) {
  Warp& warp = warps_[warp_];
  const unsigned lane = lane_;
  mask &= warp.existing;  // a block's last warp may lack lanes
  Arrival& arrival = warp.arrivals[lane];
  arrival = {.kind = kind, .mask = mask, .source = source, .value = value, .site = site};
  if ((mask >> lane & 1) == 0) {
    die("the mask of " + std::string(name_of(kind)) + " lacks the thread that calls it");
  }
  warp.in_collective |= 1U << lane;
  if ((warp.in_collective & mask) != mask || !complete(warp, arrival)) {
    wait();
  } else {
    warp.ready |= mask & ~(1U << lane);
  }
  return arrival.value;
}

/// Gives each lane of the arrival's mask its result, unless some are elsewhere.
bool Multiprocessor::complete(Warp& warp, const Arrival& arrival) {
  const Collective kind = arrival.kind;
  const unsigned mask = arrival.mask;
  std::array<std::uint64_t, kWarp> values;
  std::memset(values.data(), kGarbage, sizeof values);
  for (unsigned lanes = mask; lanes != 0; lanes &= lanes - 1) {
    const auto lane = static_cast<unsigned>(std::countr_zero(lanes));
    const Arrival& other = warp.arrivals[lane];
    if (other.kind != kind || other.mask != mask || !same(other.site, arrival.site)) return false;
    values[lane] = other.value;
  }
  std::uint64_t common = arrival.value;  // what all lanes get but in a shuffle
  if (kind != Collective::kShuffle && kind != Collective::kSync)
    common = reduce(kind, mask, values);
  for (unsigned lanes = mask; lanes != 0; lanes &= lanes - 1) {
    Arrival& other = warp.arrivals[static_cast<unsigned>(std::countr_zero(lanes))];
    other.value = kind == Collective::kShuffle ? values[other.source % kWarp] : common;
  }
  warp.in_collective &= ~mask;
  return true;
}

void Multiprocessor::fill_shared() {
  std::memset(shared_.get(), kGarbage, launch_.shared_bytes + kTailBytes);
}

void Multiprocessor::check_shared() const {
  for (std::size_t i = 0; i < kTailBytes; ++i) {
    if (shared_[launch_.shared_bytes + i] == std::byte{kGarbage}) continue;
    die("a thread wrote past the " + std::to_string(launch_.shared_bytes) +
        " bytes of dynamic shared memory");
  }
}

uint3 Multiprocessor::index_of(unsigned thread) const {
  return {thread % launch_.block.x, thread / launch_.block.x % launch_.block.y,
          thread / launch_.block.x / launch_.block.y};
}

std::string Multiprocessor::text_of(unsigned thread) const {
  const uint3 index = index_of(thread);
  return "thread (" + std::to_string(index.x) + ", " + std::to_string(index.y) + ", " +
         std::to_string(index.z) + ")";
}

void Multiprocessor::die(const std::string& what) const {
  std::fprintf(stderr, "emulated GPU: the kernel that %s launches at %s:%u, block (%u, %u, %u), ",
               launch_.name, launch_.file, launch_.line, block_index.x, block_index.y,
               block_index.z);
  std::fprintf(stderr, "%s: %s\n", text_of(warp_ * kWarp + lane_).c_str(), what.c_str());
  std::abort();
}

void Multiprocessor::die_of_deadlock() const {
  // The first thread of each kind of place.
  std::vector<std::string> places;
  std::string text = "threads wait for each other for ever";
  for (unsigned thread = 0; thread < threads_; ++thread) {
    const Warp& warp = warps_[thread / kWarp];
    const unsigned lane = thread % kWarp;
    std::string place = "is ready";
    if (warp.returned >> lane & 1) {
      place = "has returned";
    } else if (warp.at_barrier >> lane & 1) {
      const Site& site = warp.barrier_sites[lane];
      place =
          "waits in __syncthreads at " + std::string(site.file) + ":" + std::to_string(site.line);
    } else if (warp.in_collective >> lane & 1) {
      const Arrival& arrival = warp.arrivals[lane];
      std::array<char, 16> mask;
      std::snprintf(mask.data(), mask.size(), "0x%08x", arrival.mask);
      place = "waits in " + std::string(name_of(arrival.kind)) + " with mask " + mask.data() +
              " at " + arrival.site.file + ":" + std::to_string(arrival.site.line);
    }
    if (std::find(places.begin(), places.end(), place) != places.end()) continue;
    places.push_back(place);
    if (places.size() <= 6) text += "; " + text_of(thread) + " " + place;
  }
  die(text);
}

/// Made by the first launch and never destroyed: kernels may run until the process ends.
Multiprocessor* multiprocessor = nullptr;

bool fits(const KernelLaunch& launch) {
  const dim3& grid = launch.grid;
  const dim3& block = launch.block;
  const std::uint64_t threads = std::uint64_t{block.x} * block.y * block.z;
  return threads >= 1 && threads <= kMostThreads && block.z <= 64 && grid.x < (1U << 31) &&
         grid.y < (1U << 16) && grid.z < (1U << 16);
}

}  // namespace

cudaError_t run_kernel(const KernelLaunch& launch) {
  if (!fits(launch)) return cudaErrorInvalidConfiguration;
  if (launch.shared_bytes > kMostSharedBytes) return cudaErrorInvalidValue;
  static std::mutex mutex;
  const std::lock_guard<std::mutex> lock(mutex);
  trace("launch {}", launch.name);
  const GpuMemoryAccess access;
  const StaticSharedMemory shared;
  if (!multiprocessor) multiprocessor = new Multiprocessor;
  multiprocessor->run(launch);
  return cudaSuccess;
}

std::uint64_t collective(Collective kind, unsigned mask, std::uint64_t value, unsigned source,
                         Site site) {
  return multiprocessor->collective(kind, mask, value, source, site);
}

int sync_block(bool predicate, Site site) { return multiprocessor->sync_block(predicate, site); }

unsigned lane_index() { return multiprocessor->lane(); }

}  // namespace jiboia::emulated
