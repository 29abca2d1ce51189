#include "train/memory_plan.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <map>

#include "train/evaluator.h"
#include "train/generator.h"
#include "train/optim/optimizer.h"
#include "train/token_tensors.h"

namespace jiboia {

std::vector<Tensor> planned_parameters(const MambaLm& model, Dtype dtype, Activations activations) {
  std::vector<Tensor> result;
  for (const ParameterSpec& spec : model.parameters()) {
    result.emplace_back(compute_spec(spec, dtype, activations), nullptr);
  }
  return result;
}

MemoryPlan plan_memory(const RunConfig& config, const MambaLm& model, Exec& exec) {
  MemoryPlan plan;
  plan.rows = config.train.micro_batch_size;
  plan.recompute = config.train.recompute;
  const Activations activations = activations_for(exec, config.precision);
  plan.parameters = ParameterStore::plan(model.parameters(), Dtype::kF32,
                                         StoreContents::kValuesAndTraining, activations);
  const std::vector<Tensor> parameters = planned_parameters(model, Dtype::kF32, activations);
  const std::int64_t rows = config.train.micro_batch_size, seq_len = config.data.seq_len;
  const TokenTensors batch = planned_tokens(rows, seq_len, config.data.reset_at_document_starts);
  Arena arena;
  {
    Tape tape(exec, arena, parameters, nullptr, TapeMode::kTrain);
    model.loss(tape, batch, config.loss.z_loss, config.train.recompute);
    tape.backward();
  }
  plan.step_arena_bytes = arena.peak_bytes();
  plan.blocks_at_peak = arena.blocks_at_peak();
  plan.validation_arena_bytes = plan_evaluate(model, activations, rows, seq_len, exec);
  if (!config.data.validation.empty() && config.eval.every > 0 && config.eval.sample_tokens > 0) {
    plan.validation_arena_bytes =
        std::max(plan.validation_arena_bytes, Generator::planned_bytes(model, activations, exec));
  }
  plan.arena_bytes = std::max(plan.step_arena_bytes, plan.validation_arena_bytes);
  plan.other_bytes = gpu_bytes(exec) + TokenUploader::planned_bytes(exec, rows, seq_len) +
                     Optimizer::planned_bytes(exec, plan.parameters.values / size_of(Dtype::kF32));
  return plan;
}

namespace {

/// What can make a run fit in `available` bytes that takes more by `plan`.
std::string how_to_save(const MemoryPlan& plan, std::int64_t available) {
  if (plan.parameters.total() > available) {
    return fmt::format(
        "weights, gradients and moments alone are {}; choose a smaller model or a device with more "
        "memory",
        byte_text(plan.parameters.total()));
  }
  std::vector<const char*> ways;
  if (plan.rows > 1) ways.push_back("lower train.micro_batch_size");
  // A validation keeps nothing for a backward pass, and so has nothing to compute again.
  const bool validation_fits =
      plan.parameters.total() + plan.validation_arena_bytes + plan.other_bytes <= available;
  if (validation_fits && plan.recompute == Recompute::kNone) {
    ways.push_back("set train.recompute to selective or block");
  } else if (validation_fits && plan.recompute == Recompute::kSelective) {
    ways.push_back("set train.recompute to block");
  }
  if (ways.empty()) ways.push_back("lower data.seq_len or choose a smaller model");
  return fmt::format("{}", fmt::join(ways, " or "));
}

}  // namespace

void require_memory(const MemoryPlan& plan, const Exec& exec) {
  // What the exec holds already, workspaces of libraries, is in the plan too.
  const std::int64_t available = available_bytes(exec) + gpu_bytes(exec);
  const bool unknown = available == 0 && !is_cuda(exec);
  if (unknown || plan.total_bytes() <= available) return;
  fail(ErrorKind::kOutOfMemory, "the run needs {}, {} has {} to give; {}\n{}",
       byte_text(plan.total_bytes()), is_cuda(exec) ? "the GPU" : "this machine",
       byte_text(available), how_to_save(plan, available), to_text(plan));
}

std::string byte_text(std::int64_t bytes) {
  const double mebibytes = static_cast<double>(bytes) / (1 << 20);
  return mebibytes < 1024 ? fmt::format("{:.2f} MiB", mebibytes)
                          : fmt::format("{:.2f} GiB", mebibytes / 1024);
}

std::string to_text(const MemoryPlan& plan) {
  std::string text =
      fmt::format("parameters                    {:>16}\n", plan.parameters.parameter_count);
  std::map<MemoryUse, std::int64_t> by_use;
  // Equal blocks are one entry: label and size, and how many there are.
  std::map<std::pair<std::string, std::int64_t>, std::int64_t> counts;
  std::int64_t in_blocks = 0;
  for (const Arena::Usage& usage : plan.blocks_at_peak) {
    by_use[usage.use] += usage.bytes;
    ++counts[{fmt::format("{} of {}", to_string(usage.use), usage.label), usage.bytes}];
    in_blocks += usage.bytes;
  }
  const auto line = [&](const std::string& name, std::int64_t bytes) {
    text += fmt::format("{:<34}{:>12}\n", name, byte_text(bytes));
  };
  line("weights (fp32)", plan.parameters.values);
  if (plan.parameters.rounded) line("weights (bf16 copy)", plan.parameters.rounded);
  line("gradients of weights", plan.parameters.gradients);
  line("AdamW moments", plan.parameters.moments);
  for (const auto& [use, bytes] : by_use) {
    line(fmt::format("activations: {}", to_string(use)), bytes);
  }
  line("activations: gaps", plan.step_arena_bytes - in_blocks);
  if (plan.arena_bytes > plan.step_arena_bytes) {
    line("what validation needs beyond that", plan.arena_bytes - plan.step_arena_bytes);
  }
  line("batches, tables, workspaces", plan.other_bytes);
  line("total", plan.total_bytes());
  text.pop_back();
  text += fmt::format("  {} bytes\n", plan.total_bytes());

  std::vector<std::pair<std::pair<std::string, std::int64_t>, std::int64_t>> largest(counts.begin(),
                                                                                     counts.end());
  std::stable_sort(largest.begin(), largest.end(), [](const auto& a, const auto& b) {
    return a.first.second * a.second > b.first.second * b.second;
  });
  text += "largest at the peak of a micro-step:\n";
  for (std::size_t i = 0; i < std::min<std::size_t>(largest.size(), 10); ++i) {
    const auto& [block, count] = largest[i];
    text += fmt::format("  {:<42}{:>4} x {:>12}\n", block.first, count, byte_text(block.second));
  }
  return text;
}

}  // namespace jiboia
