#include <array>
#include <cmath>

#include "core/memory.h"
#include "kernels/vectors.cuh"
#include "scripts/tune_products/measure.h"

namespace jiboia {
namespace {

using Bits = unsigned long long;

constexpr const char* kWho = "tune_products";
constexpr int kThreads = 256, kBlocks = 1024;
constexpr std::int64_t kMuchBytes = std::int64_t{256} << 20;

const cuda::Launch kLaunch{.grid = dim3(kBlocks), .block = dim3(kThreads)};

__device__ std::int64_t first_index() {
  return std::int64_t{blockIdx.x} * kThreads + static_cast<int>(threadIdx.x);
}
constexpr std::int64_t kStep = std::int64_t{kBlocks} * kThreads;

/// Bits of `x` spread over all others (the finaliser of MurmurHash3).
__device__ Bits scrambled(Bits x) {
  x = (x ^ x >> 33) * 0xFF51AFD7ED558CCDULL;
  x = (x ^ x >> 33) * 0xC4CEB9FE1A85EC53ULL;
  return x ^ x >> 33;
}

/// Grid 1024, block 256, as of all kernels here; limited by memory.
template <class T>
__global__ void __launch_bounds__(kThreads)
    fill_random_kernel(T* to, std::int64_t count, std::uint32_t seed) {
  for (std::int64_t i = first_index(); i < count; i += kStep) {
    const Bits bits = scrambled(Bits{seed} << 40 | static_cast<Bits>(i)) >> 40;
    to[i] = cuda::from_float<T>(static_cast<float>(bits) * 0x1p-23f - 1.f);
  }
}

/// Integers may be added in any order.
__global__ void __launch_bounds__(kThreads)
    checksum_kernel(const std::uint16_t* words, std::int64_t count, Bits* sum) {
  Bits mine = 0;
  for (std::int64_t i = first_index(); i < count; i += kStep) {
    mine += scrambled(static_cast<Bits>(i) << 16 | words[i]);
  }
  atomicAdd(sum, mine);
}

__global__ void __launch_bounds__(kThreads)
    read_kernel(const uint4* words, std::int64_t count, Bits* sum) {
  unsigned mine = 0;
  for (std::int64_t i = first_index(); i < count; i += kStep) mine |= words[i].x | words[i].w;
  if (mine != 0) *sum = mine;  // never: the memory is zero
}

/// Squares summed by each block: of differences, then of references.
struct Squares {
  double difference, reference;
};
template <class T>
__global__ void __launch_bounds__(kThreads)
    difference_kernel(const T* a, const T* b, std::int64_t count, Squares* sums) {
  __shared__ double partials[2][kThreads / 32];
  double difference = 0, reference = 0;
  for (std::int64_t i = first_index(); i < count; i += kStep) {
    const double x = cuda::to_float(a[i]), y = cuda::to_float(b[i]);
    difference += (x - y) * (x - y);
    reference += y * y;
  }
  difference = cuda::over_row(difference, cuda::Sum(), partials[0]);
  reference = cuda::over_row(reference, cuda::Sum(), partials[1]);
  if (threadIdx.x == 0) sums[blockIdx.x] = {difference, reference};
}

}  // namespace

Measure::Measure(CudaExec& gpu)
    : gpu_(&gpu),
      sums_(allocate(gpu, kBlocks * static_cast<std::int64_t>(sizeof(Squares)), kWho)),
      much_(allocate(gpu, kMuchBytes, kWho)) {}

void Measure::fill_random(const Tensor& to, std::uint32_t seed) {
  cuda::visit_stored(to.dtype, [&]<class T>() {
    cuda::launch(*gpu_, kWho, fill_random_kernel<T>, kLaunch, static_cast<T*>(to.data), to.size(),
                 seed);
  });
}

void Measure::spoil(const Buffer& buffer) {
  cuda::check(cudaMemsetAsync(buffer.data(), 0xFF, static_cast<std::size_t>(buffer.bytes()),
                              gpu_->stream()),
              kWho);
}

std::uint64_t Measure::checksum(const Tensor& of) {
  auto* sum = reinterpret_cast<Bits*>(sums_.data());
  cuda::check(cudaMemsetAsync(sum, 0, sizeof(Bits), gpu_->stream()), kWho);
  cuda::launch(*gpu_, kWho, checksum_kernel, kLaunch, static_cast<const std::uint16_t*>(of.data),
               of.bytes() / 2, sum);
  Bits result = 0;
  cuda::check(cudaMemcpyAsync(&result, sum, sizeof(Bits), cudaMemcpyDeviceToHost, gpu_->stream()),
              kWho);
  gpu_->wait();
  return result;
}

double Measure::relative_difference(const Tensor& a, const Tensor& b) {
  auto* sums = reinterpret_cast<Squares*>(sums_.data());
  cuda::visit_stored(a.dtype, [&]<class T>() {
    cuda::launch(*gpu_, kWho, difference_kernel<T>, kLaunch, static_cast<const T*>(a.data),
                 static_cast<const T*>(b.data), a.size(), sums);
  });
  std::array<Squares, kBlocks> blocks;
  cuda::check(
      cudaMemcpyAsync(blocks.data(), sums, sizeof(blocks), cudaMemcpyDeviceToHost, gpu_->stream()),
      kWho);
  gpu_->wait();
  Squares total{};
  for (const Squares& block : blocks) {
    total.difference += block.difference;
    total.reference += block.reference;
  }
  return std::sqrt(total.difference / total.reference);
}

void Measure::flush_cache() {
  cuda::launch(*gpu_, kWho, read_kernel, kLaunch, reinterpret_cast<const uint4*>(much_.data()),
               much_.bytes() / 16, reinterpret_cast<Bits*>(sums_.data()));
}

}  // namespace jiboia
