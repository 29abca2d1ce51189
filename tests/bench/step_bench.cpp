// Times whole training steps (forward, backward, clip, AdamW) of a model on random tokens and
// prints the median and the time by op.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "tests/support/tiny_model.h"
#include "train/optim/optimizer.h"
#include "train/tools/compute_options.h"
#include "train/tools/program.h"

namespace jiboia {
namespace {

struct Arguments {
  std::int64_t hidden_size = 256, layers = 12, vocab_size = 8192, rows = 8, seq_len = 512;
  int steps = 10, warmup = 2;
  bool recompute = false;
  std::string json;  ///< name under which the figures are printed as JSON lines
  ComputeOptions compute;
};

/// Prints what scripts/bench_gpu_peer.py --ours reads.
void print_json(const std::string& name, const char* what, double value) {
  fmt::print("{}\n", nlohmann::json{{"name", name + "/" + what}, {"value", value}}.dump());
}

int bench(const Arguments& arguments) {
  RunConfig run;
  run.model = model_defaults(Initialisation::kMambaSsm);
  run.model.hidden_size = arguments.hidden_size;
  run.model.num_hidden_layers = arguments.layers;
  run.model.vocab_size = arguments.vocab_size;
  run.model = resolved(run.model);
  run.precision = arguments.compute.precision;
  run.train.micro_batch_size = arguments.rows;
  run.train.recompute = arguments.recompute ? Recompute::kBlock : Recompute::kNone;
  run.data.seq_len = arguments.seq_len;

  Exec exec = make_exec(arguments.compute.device, arguments.compute.threads);
  const Activations activations = activations_for(exec, run.precision);
  const MambaLm model(run.model);
  const MemoryPlan plan = plan_memory(run, model, exec);
  require_memory(plan, exec);
  ParameterStore parameters(exec, model.parameters(), Dtype::kF32,
                            StoreContents::kValuesAndTraining, activations);
  initialise(parameters, 1);
  Optimizer optimizer({.lr = 1e-3}, parameters);
  Workspace workspace(exec, plan.arena_bytes);
  TokenUploader uploader(exec, arguments.rows, arguments.seq_len);
  const TokenBatch batch = test::random_batch(run.model, arguments.rows, arguments.seq_len);

  const auto step = [&](int number, OpTimer* timer) {
    parameters.begin_gradients();
    {
      Tape tape(exec, workspace.arena(), parameters.values(), &parameters, TapeMode::kTrain);
      tape.set_timer(timer);
      model.loss(tape, uploader.upload(batch), 1e-4, run.train.recompute);
      tape.backward();
    }
    parameters.end_gradients();
    const OpTimer::Scope scope(timer, exec, "optimizer", Pass::kForward);
    optimizer.step(1e-3, number, 1);
  };

  // Steps follow each other without a pause, as in a run: marks between them are read at the end.
  int number = 0;
  for (int i = 0; i < arguments.warmup; ++i) step(++number, nullptr);
  std::vector<Event> marks(static_cast<std::size_t>(arguments.steps) + 1);
  marks[0].record(exec);
  for (std::size_t i = 1; i < marks.size(); ++i) {
    step(++number, nullptr);
    marks[i].record(exec);
  }
  wait(exec);
  std::vector<double> seconds;
  for (std::size_t i = 1; i < marks.size(); ++i) {
    seconds.push_back(marks[i].seconds_since(marks[i - 1]));
  }
  std::sort(seconds.begin(), seconds.end());
  const double median = seconds[seconds.size() / 2];
  const auto tokens = static_cast<double>(arguments.rows * arguments.seq_len);
  const double flops = 3 * forward_flops_per_token(run.model) * tokens / median;
  const double peak = peak_flops(exec, activations);
  if (!arguments.json.empty()) {
    print_json(arguments.json, "tokens_per_second", tokens / median);
    print_json(arguments.json, "ms", median * 1e3);
    print_json(arguments.json, "peak_gib", static_cast<double>(plan.total_bytes()) / (1 << 30));
  }
  fmt::print("{} layers x {}, vocabulary {}, {} rows of {}: {} parameters, {}, {}\n",
             arguments.layers, arguments.hidden_size, arguments.vocab_size, arguments.rows,
             arguments.seq_len, parameters.parameter_count(), byte_text(plan.total_bytes()),
             describe(exec));
  fmt::print("step {:.2f} ms (median of {}, {:.2f} to {:.2f}), {:.0f} tokens/s, {:.1f} GFLOP/s{}\n",
             median * 1e3, seconds.size(), seconds.front() * 1e3, seconds.back() * 1e3,
             tokens / median, flops / 1e9,
             peak > 0 ? fmt::format(", {:.1f}% of peak", 100 * flops / peak) : "");

  // Marks around every op cost time of their own, so these steps are others.
  OpTimer timer;
  Event begin, end;
  begin.record(exec);
  for (int i = 0; i < arguments.steps; ++i) step(++number, &timer);
  end.record(exec);
  wait(exec);
  timer.collect(timer.pending());
  fmt::print("time by op of {} steps:\n{}", arguments.steps,
             to_text(timer, end.seconds_since(begin)));
  return 0;
}

}  // namespace
}  // namespace jiboia

int main(int argc, char** argv) {
  using namespace jiboia;
  CLI::App app("Times whole training steps on random tokens.");
  Arguments arguments;
  app.add_option("--hidden-size", arguments.hidden_size)->capture_default_str();
  app.add_option("--layers", arguments.layers)->capture_default_str();
  app.add_option("--vocab-size", arguments.vocab_size)->capture_default_str();
  app.add_option("--rows", arguments.rows)->capture_default_str();
  app.add_option("--seq-len", arguments.seq_len)->capture_default_str();
  app.add_option("--steps", arguments.steps)->capture_default_str()->check(CLI::PositiveNumber);
  app.add_option("--warmup", arguments.warmup)
      ->capture_default_str()
      ->check(CLI::NonNegativeNumber);
  app.add_flag("--recompute", arguments.recompute, "Block recompute");
  app.add_option("--json", arguments.json, "Prints the figures as JSON lines too, under this name");
  add_compute_options(app, arguments.compute);
  return run_program("step_bench", app, argc, argv, [&] { return bench(arguments); });
}
