// Times whole training steps (forward, backward, clip, AdamW) of a model on random tokens and
// prints the median and the time by op.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>

#include "tests/support/tiny_model.h"
#include "train/optim/optimizer.h"
#include "train/tools/program.h"

namespace jiboia {
namespace {

struct Arguments {
  std::int64_t hidden_size = 256, layers = 12, vocab_size = 8192, rows = 8, seq_len = 512;
  int steps = 10, warmup = 2, threads = 0;
};

int bench(const Arguments& arguments) {
  ModelConfig config = model_defaults(Initialisation::kMambaSsm);
  config.hidden_size = arguments.hidden_size;
  config.num_hidden_layers = arguments.layers;
  config.vocab_size = arguments.vocab_size;
  config = resolved(config);
  Exec exec = CpuExec(arguments.threads);
  const MambaLm model(config);
  ParameterStore parameters(exec, model.parameters(), Dtype::kF32,
                            StoreContents::kValuesAndTraining);
  initialise(parameters, 1);
  Optimizer optimizer({.lr = 1e-3}, parameters);
  RunConfig run;
  run.model = config;
  run.train.micro_batch_size = arguments.rows;
  run.data.seq_len = arguments.seq_len;
  const MemoryPlan plan = plan_memory(run, model, exec);
  Workspace workspace(exec, plan.arena_bytes);
  TokenUploader uploader(exec, arguments.rows, arguments.seq_len);
  TokenBatch batch = test::random_batch(config, arguments.rows, arguments.seq_len);

  OpTimer timer;
  std::vector<double> seconds;
  for (int step = 0; step < arguments.warmup + arguments.steps; ++step) {
    const auto begin = std::chrono::steady_clock::now();
    parameters.begin_gradients();
    {
      Tape tape(exec, workspace.arena(), parameters.values(), &parameters, TapeMode::kTrain);
      if (step >= arguments.warmup) tape.set_timer(&timer);
      model.loss(tape, uploader.upload(batch), 1e-4, Recompute::kNone);
      tape.backward();
    }
    parameters.end_gradients();
    {
      const OpTimer::Scope scope(step >= arguments.warmup ? &timer : nullptr, exec, "optimizer",
                                 Pass::kForward);
      optimizer.step(1e-3, step + 1, 1);
    }
    if (step < arguments.warmup) continue;
    seconds.push_back(
        std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  }
  std::sort(seconds.begin(), seconds.end());
  double total = 0;
  for (double s : seconds) total += s;
  const double median = seconds[seconds.size() / 2];
  const auto tokens = static_cast<double>(arguments.rows * arguments.seq_len);
  const double flops = 3 * forward_flops_per_token(config) * tokens;
  fmt::print("{} layers x {}, vocabulary {}, {} rows of {}: {} parameters, {}, {} threads\n",
             arguments.layers, arguments.hidden_size, arguments.vocab_size, arguments.rows,
             arguments.seq_len, parameters.parameter_count(), byte_text(plan.total_bytes()),
             std::get<CpuExec>(exec).threads());
  fmt::print("step {:.1f} ms (median of {}, {:.1f} to {:.1f}), {:.0f} tokens/s, {:.1f} GFLOP/s\n",
             median * 1e3, seconds.size(), seconds.front() * 1e3, seconds.back() * 1e3,
             tokens / median, flops / median / 1e9);
  fmt::print("{}", to_text(timer, total));
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
  app.add_option("--threads", arguments.threads)->capture_default_str();
  return run_program("step_bench", app, argc, argv, [&] { return bench(arguments); });
}
