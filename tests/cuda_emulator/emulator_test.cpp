#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <optional>
#include <string>
#include <vector>

#include "core/cuda/blas.h"
#include "core/cuda/kernel.cuh"
#include "core/cuda/sort.h"
#include "core/memory.h"

namespace jiboia {
namespace {

using testing::HasSubstr;

constexpr unsigned kAll = ~0U;

/// Sets an environment variable for the life of this.
class Setting {
 public:
  Setting(const char* name, const std::string& value) : name_(name) {
    if (const char* before = std::getenv(name)) before_ = before;
    setenv(name, value.c_str(), 1);
  }
  ~Setting() {
    if (before_) {
      setenv(name_, before_->c_str(), 1);
    } else {
      unsetenv(name_);
    }
  }
  Setting(const Setting&) = delete;
  Setting& operator=(const Setting&) = delete;

 private:
  const char* name_;
  std::optional<std::string> before_;
};

/// Numbers in GPU memory.
template <class T>
class Numbers {
 public:
  Numbers(CudaExec& gpu, const std::vector<T>& values)
      : gpu_(gpu),
        count_(values.size()),
        buffer_(allocate(gpu, static_cast<std::int64_t>(count_ * sizeof(T)), "a test")) {
    cuda::check(cudaMemcpyAsync(data(), values.data(), count_ * sizeof(T), cudaMemcpyHostToDevice,
                                gpu.stream()),
                "test");
  }
  Numbers(CudaExec& gpu, std::size_t count) : Numbers(gpu, std::vector<T>(count)) {}

  T* data() const { return reinterpret_cast<T*>(buffer_.data()); }
  std::vector<T> read() const {
    std::vector<T> values(count_);
    cuda::check(cudaMemcpyAsync(values.data(), data(), count_ * sizeof(T), cudaMemcpyDeviceToHost,
                                gpu_.stream()),
                "test");
    gpu_.wait();
    return values;
  }

 private:
  CudaExec& gpu_;
  std::size_t count_;
  Buffer buffer_;
};

std::vector<float> wave(std::size_t count) {
  std::vector<float> values(count);
  for (std::size_t i = 0; i < count; ++i) {
    values[i] = std::sin(static_cast<float>(i));
  }
  return values;
}

/// sums[block] = sum of a block's values: in warps by shuffles, then over warps in shared memory.
__global__ void __launch_bounds__(1024) block_sums(const float* values, int count, float* sums) {
  __shared__ float of_warps[32];
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  float sum = i < count ? __ldg(values + i) : 0.0F;
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(kAll, sum, step);
  if (lane == 0) of_warps[warp] = sum;
  __syncthreads();
  if (warp == 0) {
    sum = lane < blockDim.x / 32 ? of_warps[lane] : 0.0F;
    for (int step = 16; step > 0; step /= 2) sum += __shfl_down_sync(kAll, sum, step);
    if (lane == 0) sums[blockIdx.x] = sum;
  }
}

std::vector<float> sums_in(CudaExec& gpu, const char* order) {
  const Setting setting("JIBOIA_EMULATED_ORDER", order);
  const std::vector<float> values = wave(3000);
  const Numbers<float> input(gpu, values), sums(gpu, 6);
  cuda::launch(gpu, "test", block_sums, {.grid = dim3(6), .block = dim3(512)}, input.data(), 3000,
               sums.data());
  return sums.read();
}

TEST(EmulatorCuda, BarriersAndShufflesGiveTheSumsInAnyOrder) {
  CudaExec gpu;
  const std::vector<float> values = wave(3000);
  const std::vector<float> sums = sums_in(gpu, "forward");
  for (std::size_t block = 0; block < 6; ++block) {
    const auto end = std::min<std::size_t>(3000, 512 * (block + 1));
    const double expected =
        std::accumulate(values.begin() + static_cast<std::ptrdiff_t>(512 * block),
                        values.begin() + static_cast<std::ptrdiff_t>(end), 0.0);
    EXPECT_NEAR(sums[block], expected, 1e-4);
  }
  EXPECT_EQ(sums_in(gpu, "backward"), sums);
  EXPECT_EQ(sums_in(gpu, "random"), sums);
  const Setting seed("JIBOIA_EMULATED_SEED", "7");
  EXPECT_EQ(sums_in(gpu, "random"), sums);
}

/// Writes what thread i finds in its neighbour's place.
__global__ void read_neighbour(bool wait, int* found) {
  int* places = reinterpret_cast<int*>(cuda::dynamic_shared());
  places[threadIdx.x] = static_cast<int>(threadIdx.x);
  if (wait) __syncthreads();
  found[threadIdx.x] = places[(threadIdx.x + 1) % blockDim.x];
}

std::vector<int> neighbours_in(CudaExec& gpu, const char* order, bool wait) {
  const Setting setting("JIBOIA_EMULATED_ORDER", order);
  const Numbers<int> found(gpu, 64);
  cuda::launch(gpu, "test", read_neighbour,
               {.grid = dim3(1), .block = dim3(64), .shared_bytes = 64 * sizeof(int)}, wait,
               found.data());
  return found.read();
}

TEST(EmulatorCuda, AMissingBarrierShowsInTheOrderOfThreads) {
  CudaExec gpu;
  const std::vector<int> good = neighbours_in(gpu, "forward", true);
  EXPECT_EQ(good[5], 6);
  EXPECT_EQ(neighbours_in(gpu, "backward", true), good);
  EXPECT_EQ(neighbours_in(gpu, "random", true), good);
  const std::vector<int> forward = neighbours_in(gpu, "forward", false);
  EXPECT_EQ(forward[5], -1) << "shared memory that nobody wrote is all ones";
  EXPECT_NE(neighbours_in(gpu, "backward", false), forward);
  EXPECT_NE(neighbours_in(gpu, "random", false), forward);
}

__global__ void read_unwritten(float* found) {
  __shared__ float unwritten[4];
  found[threadIdx.x] = unwritten[threadIdx.x];
  unwritten[threadIdx.x] = 1.0F;
}

TEST(EmulatorCuda, EveryLaunchFindsSharedMemoryUnwritten) {
#if defined(__SANITIZE_ADDRESS__)
  GTEST_SKIP() << "not with AddressSanitizer, which wants the variables apart";
#endif
  CudaExec gpu;
  const Numbers<float> found(gpu, 4);
  for (int i = 0; i < 2; ++i) {
    cuda::launch(gpu, "test", read_unwritten, {.grid = dim3(1), .block = dim3(4)}, found.data());
    for (const float value : found.read()) EXPECT_TRUE(std::isnan(value));
  }
}

struct Seen {
  uint3 thread, block;
  unsigned block_size, grid_size;
};
__global__ void look_around(Seen* seen) {
  const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  const unsigned threads = blockDim.x * blockDim.y * blockDim.z;
  __syncthreads();
  seen[block * threads + thread] = {threadIdx, blockIdx, threads,
                                    gridDim.x * gridDim.y * gridDim.z};
}

TEST(EmulatorCuda, ThreadsKnowWhereTheyAre) {
  CudaExec gpu;
  const Numbers<Seen> seen(gpu, 24 * 30);
  cuda::launch(gpu, "test", look_around, {.grid = dim3(2, 3, 4), .block = dim3(5, 3, 2)},
               seen.data());
  const std::vector<Seen> all = seen.read();
  for (unsigned i = 0; i < all.size(); ++i) {
    const unsigned block = i / 30, thread = i % 30;
    ASSERT_EQ(all[i].block_size, 30);
    ASSERT_EQ(all[i].grid_size, 24);
    ASSERT_EQ(all[i].thread.x, thread % 5);
    ASSERT_EQ(all[i].thread.y, thread / 5 % 3);
    ASSERT_EQ(all[i].thread.z, thread / 15);
    ASSERT_EQ(all[i].block.x, block % 2);
    ASSERT_EQ(all[i].block.y, block / 2 % 3);
    ASSERT_EQ(all[i].block.z, block / 6);
  }
}

constexpr int kWarpResults = 12;
__global__ void warp_functions(int* results) {
  const int lane = static_cast<int>(threadIdx.x);
  int* mine = results + lane * kWarpResults;
  mine[0] = __shfl_sync(kAll, lane, 3);
  mine[1] = __shfl_sync(kAll, lane, 3, 8);
  mine[2] = __shfl_up_sync(kAll, lane, 2);
  mine[3] = __shfl_up_sync(kAll, lane, 2, 4);
  mine[4] = __shfl_down_sync(kAll, lane, 5);
  mine[5] = __shfl_down_sync(kAll, lane, 5, 16);
  mine[6] = __shfl_xor_sync(kAll, lane, 9, 8);
  mine[7] = static_cast<int>(__ballot_sync(kAll, lane % 3 == 0));
  mine[8] = __reduce_add_sync(kAll, lane - 20);
  mine[9] = __reduce_min_sync(kAll, lane - 20);
  mine[10] = static_cast<int>(__shfl_xor_sync(kAll, lane + 0.5, 1) * 2);
  // Halves of the warp on their own.
  if (lane < 16) {
    mine[11] = __any_sync(0xFFFF, lane == 3) + 2 * __all_sync(0xFFFF, lane == 3);
  } else {
    mine[11] = __shfl_xor_sync(0xFFFF0000, lane, 1);
  }
}

TEST(EmulatorCuda, WarpFunctionsFollowTheirDefinitions) {
  CudaExec gpu;
  for (const char* order : {"forward", "backward", "random"}) {
    const Setting setting("JIBOIA_EMULATED_ORDER", order);
    const Numbers<int> results(gpu, 32 * kWarpResults);
    cuda::launch(gpu, "test", warp_functions, {.grid = dim3(1), .block = dim3(32)}, results.data());
    const std::vector<int> all = results.read();
    for (int lane = 0; lane < 32; ++lane) {
      const int* mine = all.data() + lane * kWarpResults;
      EXPECT_EQ(mine[0], 3);
      EXPECT_EQ(mine[1], lane / 8 * 8 + 3);
      EXPECT_EQ(mine[2], lane < 2 ? lane : lane - 2);
      EXPECT_EQ(mine[3], lane % 4 < 2 ? lane : lane - 2);
      EXPECT_EQ(mine[4], lane + 5 > 31 ? lane : lane + 5);
      EXPECT_EQ(mine[5], lane % 16 + 5 > 15 ? lane : lane + 5);
      // Segments below may be read, those above may not.
      EXPECT_EQ(mine[6], (lane ^ 9) > (lane | 7) ? lane : lane ^ 9);
      EXPECT_EQ(mine[7], 0x49249249);
      EXPECT_EQ(mine[8], 31 * 16 - 20 * 32);
      EXPECT_EQ(mine[9], -20);
      EXPECT_EQ(mine[10], 2 * (lane ^ 1) + 1);
      EXPECT_EQ(mine[11], lane < 16 ? 1 : lane ^ 1);
    }
  }
}

__global__ void count_even(int* counts) {
  counts[threadIdx.x] = __syncthreads_count(threadIdx.x % 2 == 0) +
                        100 * __syncthreads_or(threadIdx.x == 40) +
                        1000 * __syncthreads_and(threadIdx.x == 40);
}

TEST(EmulatorCuda, BarriersCount) {
  CudaExec gpu;
  const Numbers<int> counts(gpu, 45);
  cuda::launch(gpu, "test", count_even, {.grid = dim3(1), .block = dim3(45)}, counts.data());
  EXPECT_THAT(counts.read(), testing::Each(123));
}

__global__ void leave_before_barrier() {
  if (threadIdx.x == 3) return;
  __syncthreads();
}
__global__ void part_of_the_mask() {
  if (threadIdx.x < 16) __shfl_sync(kAll, 1, 0);
}
__global__ void barriers_apart() {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}
__global__ void foreign_mask() { __shfl_sync(1, 1, 0); }
__global__ void write_past_shared() { cuda::dynamic_shared()[threadIdx.x] = std::byte{0}; }

TEST(EmulatorCudaDeathTest, ErrorsOfKernelsNameLaunchAndThread) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const Setting order("JIBOIA_EMULATED_ORDER", "forward");
  const cuda::Launch shape{.grid = dim3(2), .block = dim3(64), .shared_bytes = 60};
  const auto run = [&](void (*kernel)()) {
    CudaExec gpu;
    cuda::launch(gpu, "an_op", kernel, shape);
  };
  EXPECT_DEATH(run(leave_before_barrier),
               "an_op launches at .*emulator_test.cpp:.*waits in __syncthreads at "
               ".*emulator_test.cpp.*thread \\(3, 0, 0\\) has returned");
  EXPECT_DEATH(run(part_of_the_mask),
               "waits in a shuffle with mask 0xffffffff at .*thread \\(16, 0, 0\\) has returned");
  EXPECT_DEATH(run(barriers_apart),
               "thread \\(0, 0, 0\\) waits in __syncthreads.*"
               "thread \\(32, 0, 0\\) waits in __syncthreads");
  EXPECT_DEATH(run(foreign_mask), "thread \\(1, 0, 0\\): the mask of a shuffle lacks the thread");
#if !defined(__SANITIZE_ADDRESS__)
  EXPECT_DEATH(
      {
        const Setting protect("JIBOIA_EMULATED_PROTECTION", "1");
        CudaExec gpu;
        const Numbers<int> numbers(gpu, 1);
        *numbers.data() = 1;
      },
      "CPU code reads or writes GPU memory");
  EXPECT_DEATH(run(write_past_shared), "wrote past the 60 bytes of dynamic shared memory");
#endif
}

TEST(EmulatorCuda, RefusesLaunchesThatNoGpuTakes) {
  CudaExec gpu;
  const auto refused = [&](const cuda::Launch& shape) {
    try {
      cuda::launch(gpu, "an_op", write_past_shared, shape);
    } catch (const Error& error) {
      return error.kind() == ErrorKind::kCuda;
    }
    return false;
  };
  EXPECT_TRUE(refused({.grid = dim3(1), .block = dim3(1025)}));
  EXPECT_TRUE(refused({.grid = dim3(1, 65536), .block = dim3(32)}));
  EXPECT_TRUE(refused({.grid = dim3(1), .block = dim3(1), .shared_bytes = 227 * 1024 + 1}));
  EXPECT_FALSE(refused({.grid = dim3(0), .block = dim3(32)}));
  EXPECT_FALSE(refused({.grid = dim3(1), .block = dim3(1), .shared_bytes = 227 * 1024}));
}

TEST(EmulatorCuda, MemoryIsLimited) {
  const std::int64_t limit = (std::int64_t{64} << 20);
  const Setting setting("JIBOIA_EMULATED_MEMORY", std::to_string(limit));
  CudaExec gpu;
  EXPECT_EQ(gpu.gpu().name, "emulated GPU");
  EXPECT_EQ(gpu.gpu().memory_bytes, limit);
  const std::int64_t free = available_bytes(gpu);
  EXPECT_EQ(free, limit - gpu.allocated_bytes());
  {
    const Buffer all = allocate(gpu, free, "a test");
    EXPECT_EQ(available_bytes(gpu), 0);
    try {
      allocate(gpu, 1, "another test");
      ADD_FAILURE() << "there was memory";
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kOutOfMemory);
      EXPECT_THAT(error.what(), HasSubstr("another test needs 1 bytes of GPU memory, 0 of"));
    }
  }
  EXPECT_EQ(available_bytes(gpu), free);
}

TEST(EmulatorCuda, RefusesCopiesOfMemoryThatIsNotTheGpus) {
  CudaExec gpu;
  const Numbers<int> numbers(gpu, 8);
  int here = 0;
  EXPECT_EQ(cudaMemcpyAsync(&here, &here, 4, cudaMemcpyHostToDevice, gpu.stream()),
            cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemcpyAsync(numbers.data() + 7, numbers.data(), 8, cudaMemcpyDefault, gpu.stream()),
            cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemsetAsync(&here, 0, 4, gpu.stream()), cudaErrorInvalidValue);
  EXPECT_EQ(cudaGetLastError(), cudaErrorInvalidValue);
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
}

TEST(EmulatorCuda, RefusesToCaptureWhatAGraphWouldNotDoAgain) {
  CudaExec gpu;
  cudaEvent_t event = nullptr;
  void* pinned = nullptr;
  ASSERT_EQ(cudaEventCreate(&event), cudaSuccess);
  ASSERT_EQ(cudaEventRecord(event, gpu.stream()), cudaSuccess);
  ASSERT_EQ(cudaMallocHost(&pinned, 8), cudaSuccess);
  const auto captured = [&](const auto& call) {
    cudaGraph_t graph = nullptr;
    EXPECT_EQ(cudaStreamBeginCapture(gpu.stream(), cudaStreamCaptureModeThreadLocal), cudaSuccess);
    const cudaError_t error = call();
    EXPECT_EQ(cudaStreamEndCapture(gpu.stream(), &graph),
              error == cudaSuccess ? cudaSuccess : cudaErrorStreamCaptureInvalidated);
    if (graph) cudaGraphDestroy(graph);
    return error;
  };
  EXPECT_EQ(captured([&] { return cudaStreamWaitEvent(gpu.stream(), event, 0); }),
            cudaErrorStreamCaptureIsolation);
  EXPECT_EQ(captured([&] { return cudaEventSynchronize(event); }),
            cudaErrorStreamCaptureUnsupported);
  EXPECT_EQ(captured([&] { return cudaFreeHost(pinned); }), cudaErrorStreamCaptureUnsupported);
  EXPECT_EQ(captured([&] { return cudaStreamWaitEvent(nullptr, event, 0); }), cudaSuccess);
  EXPECT_EQ(cudaGetLastError(), cudaErrorStreamCaptureUnsupported);
  EXPECT_EQ(cudaFreeHost(pinned), cudaSuccess);
  EXPECT_EQ(cudaEventDestroy(event), cudaSuccess);
}

TEST(EmulatorCuda, CountsGpus) {
  EXPECT_EQ(CudaExec::device_count(), 1);
  {
    const Setting two("JIBOIA_EMULATED_GPUS", "2");
    EXPECT_EQ(CudaExec::device_count(), 2);
  }
  const Setting none("JIBOIA_EMULATED_GPUS", "0");
  EXPECT_EQ(CudaExec::device_count(), 0);
  EXPECT_THROW(CudaExec(0), Error);
}

/// A product of f32 or bf16 against sums in double.
template <class T>
void check_product(std::int64_t rows, std::int64_t depth, std::int64_t columns,
                   bool left_transposed, bool right_transposed, bool add) {
  CudaExec gpu;
  const std::int64_t gap = 3;
  const auto matrix = [&](std::int64_t r, std::int64_t c, bool transposed) {
    return cuda::DeviceMatrix{.dtype = kDtypeOf<T>,
                              .rows = r,
                              .columns = c,
                              .row_stride = (transposed ? r : c) + gap,
                              .transposed = transposed};
  };
  const auto at = [](const cuda::DeviceMatrix& m, std::int64_t r, std::int64_t c) {
    return static_cast<std::size_t>(m.transposed ? c * m.row_stride + r : r * m.row_stride + c);
  };
  cuda::MatrixProduct product{.to = matrix(rows, columns, false),
                              .left = matrix(rows, depth, left_transposed),
                              .right = matrix(depth, columns, right_transposed),
                              .mode = add ? GradMode::kAdd : GradMode::kOverwrite};
  const auto values = [](const cuda::DeviceMatrix& m) {
    std::vector<T> all;
    for (const float x :
         wave(static_cast<std::size_t>((m.transposed ? m.columns : m.rows) * m.row_stride))) {
      all.push_back(cuda::from_float<T>(x));
    }
    return all;
  };
  const std::vector<T> to = values(product.to), left = values(product.left),
                       right = values(product.right);
  const Numbers<T> gpu_to(gpu, to), gpu_left(gpu, left), gpu_right(gpu, right);
  product.to.data = gpu_to.data();
  product.left.data = gpu_left.data();
  product.right.data = gpu_right.data();
  gpu.blas().multiply("test", product);
  const std::vector<T> result = gpu_to.read();
  const double epsilon = std::is_same_v<T, float> ? 1e-5 : 1e-2;
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t c = 0; c < columns; ++c) {
      double expected = add ? cuda::to_float(to[at(product.to, r, c)]) : 0;
      for (std::int64_t k = 0; k < depth; ++k) {
        expected += static_cast<double>(cuda::to_float(left[at(product.left, r, k)])) *
                    cuda::to_float(right[at(product.right, k, c)]);
      }
      ASSERT_NEAR(cuda::to_float(result[at(product.to, r, c)]), expected,
                  epsilon * (1 + std::abs(expected)))
          << r << ", " << c;
    }
    for (std::int64_t c = columns; c < columns + gap; ++c) {
      const auto i = static_cast<std::size_t>(r * product.to.row_stride + c);
      ASSERT_EQ(std::memcmp(&result[i], &to[i], sizeof(T)), 0) << "wrote past row " << r;
    }
  }
}

TEST(EmulatorCuda, ProductsAreRight) {
  check_product<float>(5, 7, 130, false, false, false);
  check_product<float>(5, 7, 70, true, false, true);
  check_product<float>(66, 33, 1, false, true, false);
  check_product<cuda::bf16>(3, 17, 65, true, true, true);
  check_product<cuda::bf16>(1, 1, 1, false, false, false);
  check_product<float>(2, 0, 3, false, false, false);
}

TEST(EmulatorCuda, SortKeepsEqualKeysInOrder) {
  CudaExec gpu;
  const std::vector<std::int32_t> keys{3, 1, 3, 0, 1, 3}, values{0, 1, 2, 3, 4, 5};
  const Numbers<std::int32_t> gpu_keys(gpu, keys), gpu_values(gpu, values), sorted_keys(gpu, 6),
      sorted_values(gpu, 6);
  const cuda::SortPairs pairs{
      gpu_keys.data(), sorted_keys.data(), gpu_values.data(), sorted_values.data(), 6, 4};
  const Buffer scratch = allocate(gpu, cuda::sort_pairs_scratch_bytes(6, 4), "scratch");
  cuda::sort_pairs(gpu, "test", pairs, {scratch.data(), static_cast<std::size_t>(scratch.bytes())});
  EXPECT_THAT(sorted_keys.read(), testing::ElementsAre(0, 1, 1, 3, 3, 3));
  EXPECT_THAT(sorted_values.read(), testing::ElementsAre(3, 1, 4, 0, 2, 5));
  EXPECT_THROW(cuda::sort_pairs(gpu, "test", pairs, {scratch.data(), 8}), Error);
}

}  // namespace
}  // namespace jiboia
