#include "tests/bench/measure.h"

#include <algorithm>

#include "core/event.h"
#include "kernels/global_norm/global_norm.h"
#include "kernels/linear/linear.h"
#include "tests/bench/op_launches.h"

namespace jiboia::bench {

Times times_of(std::vector<double> seconds) {
  std::sort(seconds.begin(), seconds.end());
  return {seconds[seconds.size() / 2], seconds.front(), seconds.back()};
}

Stopwatch::Stopwatch(Exec& exec, const Repetition& repetition)
    : exec_(exec), repetition_(repetition) {
  if (repetition.flushed_bytes == 0) return;
  flushed_ = allocate(exec, repetition.flushed_bytes, "what flushes the caches");
  results_ = allocate(exec, 16, "what flushes the caches");
  scratch_ = allocate(exec, global_norm_scratch_bytes(repetition.flushed_bytes / 4),
                      "what flushes the caches");
}

void Stopwatch::flush_caches() {
  if (flushed_.bytes() == 0) return;
  const GlobalNorm norm{.flat = Tensor(Spec(Dtype::kF32, {flushed_.bytes() / 4}), flushed_.data()),
                        .norm = Tensor(Spec(Dtype::kF64, {1}), results_.data()),
                        .first_not_finite = Tensor(Spec(Dtype::kI64, {1}), results_.data() + 8)};
  const std::span<std::byte> scratch(scratch_.data(), static_cast<std::size_t>(scratch_.bytes()));
  std::visit([&](auto& backend) { global_norm(backend, norm, scratch); }, exec_);
}

Times Stopwatch::time(const std::function<void()>& run) {
  const auto repeats = static_cast<std::size_t>(repetition_.repeats);
  std::vector<Event> begins(repeats), ends(repeats);
  for (std::size_t i = 0; i < repeats; ++i) {  // here they are made, which takes the CPU's time
    begins[i].record(exec_);
    ends[i].record(exec_);
  }
  for (int i = 0; i < repetition_.warmup; ++i) run();
  for (std::size_t i = 0; i < repeats; ++i) {
    flush_caches();
    begins[i].record(exec_);
    run();
    ends[i].record(exec_);
  }
  wait(exec_);
  std::vector<double> seconds;
  for (std::size_t i = 0; i < repeats; ++i) seconds.push_back(ends[i].seconds_since(begins[i]));
  return times_of(std::move(seconds));
}

Ceilings measure_ceilings(Exec& exec, Stopwatch& stopwatch, std::int64_t bytes, Dtype matrices,
                          std::int64_t rows) {
  BenchTensors tensors(exec);
  Ceilings ceilings;
  const Spec flat(Dtype::kU8, {bytes});
  const Tensor from = tensors.zeros(flat), to = tensors.zeros(flat);
  ceilings.bytes_per_s =
      2 * static_cast<double>(bytes) / stopwatch.time([&] { copy(exec, from, to); }).median;
  tensors.clear();

  const Spec square(matrices, {rows, rows});
  const Launches product = launches_of<Linear>(
      tensors, {.in = {.x = tensors.normal(square), .weight = tensors.normal(square)}});
  const Times times = stopwatch.time(product.forward);
  const auto n = static_cast<double>(rows);
  ceilings.flops_per_s = 2 * n * n * n / times.median;
  tensors.clear();
  return ceilings;
}

}  // namespace jiboia::bench
