#include "tests/bench/measure.h"

#include <algorithm>

#include "core/event.h"
#include "kernels/linear/linear.h"
#include "tests/bench/op_launches.h"

namespace jiboia::bench {

Times times_of(std::vector<double> seconds) {
  std::sort(seconds.begin(), seconds.end());
  return {seconds[seconds.size() / 2], seconds.front(), seconds.back()};
}

Stopwatch::Stopwatch(Exec& exec, const Repetition& repetition)
    : exec_(exec), repetition_(repetition), flush_(exec, repetition.flushed_bytes) {}

Times Stopwatch::time(const std::function<void()>& run) {
  const auto repeats = static_cast<std::size_t>(repetition_.repeats);
  std::vector<Event> begins(repeats), ends(repeats);
  for (std::size_t i = 0; i < repeats; ++i) {  // here they are made, which takes the CPU's time
    begins[i].record(exec_);
    ends[i].record(exec_);
  }
  for (int i = 0; i < repetition_.warmup; ++i) run();
  for (std::size_t i = 0; i < repeats; ++i) {
    flush_.run();
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
