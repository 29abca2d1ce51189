#pragma once
#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>

namespace jiboia {

/// metrics.jsonl: one JSON object a step, in full precision, the record of a run.
/// Keys of every line: "step" (updates done) and
///   train/loss            mean over the step's micro-batches of what is minimised
///   train/z_loss          the part of it that the z-loss makes
///   train/grad_norm       global L2 norm of the gradient before clipping
///   train/lr, train/tokens (positions, over all steps so far), train/epoch
///   perf/*                 timings, which differ from run to run; nothing else does
///   mem/max_allocated_gib  parameters, optimizer and activations, as planned; recompute changes it
/// and after a validation eval/loss (nats per token, cross entropy alone), eval/ppl,
/// eval/bits_per_byte (when the data knows its bytes).
class MetricsLog {
 public:
  /// Opens the file for a run that has done `step` steps: lines of later steps, which the run will
  /// write again, and a torn last one are dropped, damaged ones with a warning. Errors: Io.
  MetricsLog(const std::filesystem::path& path, std::int64_t step);
  ~MetricsLog();
  MetricsLog(const MetricsLog&) = delete;
  MetricsLog& operator=(const MetricsLog&) = delete;

  /// Appends one line. Errors: Io.
  void append(const nlohmann::ordered_json& line);
  /// Makes all lines durable. Errors: Io.
  void sync();

 private:
  std::filesystem::path path_;
  int descriptor_ = -1;
};

}  // namespace jiboia
