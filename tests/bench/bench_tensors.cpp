#include "tests/bench/bench_tensors.h"

#include <algorithm>
#include <cmath>

#include "core/half.h"
#include "core/rng.h"

namespace jiboia::bench {
namespace {

std::byte* address(const Tensor& tensor, std::int64_t element) {
  return static_cast<std::byte*>(tensor.data) + element * size_of(tensor.dtype);
}

/// Elements [first, first + count) of a contiguous tensor.
Tensor elements_of(const Tensor& tensor, std::int64_t first, std::int64_t count) {
  return {Spec(tensor.dtype, {count}), address(tensor, first)};
}

void store(void* to, Dtype dtype, std::int64_t i, double value) {
  switch (dtype) {
    case Dtype::kF64: static_cast<double*>(to)[i] = value; return;
    case Dtype::kF32: static_cast<float*>(to)[i] = static_cast<float>(value); return;
    case Dtype::kBf16:
      static_cast<std::uint16_t*>(to)[i] = bf16_from_float(static_cast<float>(value));
      return;
    case Dtype::kI32: static_cast<std::int32_t*>(to)[i] = static_cast<std::int32_t>(value); return;
    case Dtype::kU8: static_cast<std::uint8_t*>(to)[i] = static_cast<std::uint8_t>(value); return;
    default: fail(ErrorKind::kInternal, "benchmarks have no values of {}", to_string(dtype));
  }
}

}  // namespace

BenchTensors::BenchTensors(Exec& exec)
    : exec_(exec), staging_(allocate_staging(exec, kPeriod * 8, "values of benchmarks")) {
  const Philox random(1, RandomPurpose::kTest);
  for (std::int64_t i = 0; i < kPeriod; ++i) {
    normals_.push_back(random.normal(static_cast<std::uint64_t>(i)));
  }
}

const Tensor& BenchTensors::allocate_whole(const Spec& spec) {
  Buffer memory = allocate(exec_, spec.bytes(), "a tensor of a benchmark");
  const Tensor whole(spec, memory.data());
  allocations_.push_back({whole, std::move(memory)});
  return allocations_.back().whole;
}

Tensor BenchTensors::zeros(const Spec& spec) { return allocate_whole(spec); }

Tensor BenchTensors::filled(const Spec& spec, const std::function<double(std::int64_t)>& value) {
  const Tensor whole = allocate_whole(spec);
  const std::int64_t size = whole.size(), computed = std::min(size, kPeriod);
  for (std::int64_t i = 0; i < computed; ++i) store(staging_.data(), spec.dtype, i, value(i));
  copy(exec_, Tensor(Spec(spec.dtype, {computed}), staging_.data()),
       elements_of(whole, 0, computed));
  for (std::int64_t done = computed; done < size;) {
    const std::int64_t count = std::min(done, size - done);
    copy(exec_, elements_of(whole, 0, count), elements_of(whole, done, count));
    done += count;
  }
  wait(exec_);
  return whole;
}

Tensor BenchTensors::normal(const Spec& spec, double deviation) {
  const std::int64_t shift = drawn_++ * 7919;
  return filled(spec, [&](std::int64_t i) {
    return deviation * normals_[static_cast<std::size_t>((i + shift) % kPeriod)];
  });
}

Tensor BenchTensors::gradient_of(const Tensor& value, Dtype dtype) {
  const auto* begin = static_cast<const std::byte*>(value.data);
  const auto parent =
      std::find_if(allocations_.begin(), allocations_.end(), [&](const Allocation& allocation) {
        const std::byte* memory = allocation.memory.data();
        return begin >= memory && begin < memory + allocation.memory.bytes();
      });
  require(parent != allocations_.end(), ErrorKind::kInternal, "{} is no tensor of this benchmark",
          value.to_string());
  const Tensor whole = parent->whole;
  auto [twin, missing] = gradients_.try_emplace(whole.data);
  if (missing) twin->second = zeros(Spec(dtype, whole.shape));
  const std::int64_t first =
      (begin - static_cast<const std::byte*>(whole.data)) / size_of(whole.dtype);
  Spec spec = value;
  spec.dtype = dtype;
  return {spec, address(twin->second, first)};
}

void BenchTensors::clear() {
  wait(exec_);
  gradients_.clear();
  allocations_.clear();
  drawn_ = 0;
}

Tensor first_a_log(BenchTensors& tensors, const Spec& spec) {
  const std::int64_t states = spec.columns();
  return tensors.filled(
      spec, [&](std::int64_t i) { return std::log(static_cast<double>(i % states + 1)); });
}

Tensor first_dt_bias(BenchTensors& tensors, const Spec& spec) {
  const Philox random(3, RandomPurpose::kTest);
  return tensors.filled(spec, [&](std::int64_t i) {
    const double dt = std::pow(10, random.uniform(static_cast<std::uint64_t>(i)) * 2 - 3);
    return dt + std::log(-std::expm1(-dt));  // the inverse of softplus
  });
}

Tensor columns_of(const Tensor& tensor, std::int64_t begin, std::int64_t count) {
  return {column_slice(tensor, begin, count), address(tensor, begin)};
}

}  // namespace jiboia::bench
