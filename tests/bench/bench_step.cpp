// Times whole training steps of a model on random tokens: forward, backward, clip, AdamW.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>

#include "tests/bench/bare_parameters.h"
#include "tests/bench/measure.h"
#include "tests/support/tiny_model.h"
#include "train/tools/compute_options.h"
#include "train/tools/number_option.h"
#include "train/tools/program.h"
#include "train/training_step.h"

namespace jiboia::bench {
namespace {

struct ModelSize {
  std::int64_t hidden_size = 0, layers = 0, vocab_size = 0, seq_len = 2048;
};
const std::map<std::string, ModelSize> kModels = {{"small", {256, 12, 8192, 512}},
                                                  {"mambarim", {768, 12, 32000}},
                                                  {"24-layers", {768, 24, 32000}},
                                                  {"mamba7b", {4096, 64, 50432}}};

struct Arguments {
  std::string model = "small";
  std::optional<std::int64_t> hidden_size, layers, vocab_size, seq_len;  // in place of the model's
  std::int64_t rows = 8, document_length = 0;
  std::string recompute = "none", graphs = "auto", json;
  int steps = 10, warmup = 3;
  bool no_optimizer = false, profile = false;
  ComputeOptions compute{.precision = Precision::kBf16};
};

RunConfig run_config(const Arguments& arguments) {
  RunConfig run;
  const ModelSize& size = kModels.at(arguments.model);
  run.model = model_defaults(Initialisation::kMambaSsm);
  run.model.hidden_size = arguments.hidden_size.value_or(size.hidden_size);
  run.model.num_hidden_layers = arguments.layers.value_or(size.layers);
  run.model.vocab_size = arguments.vocab_size.value_or(size.vocab_size);
  run.model = resolved(run.model);
  run.precision = arguments.compute.precision;
  run.train.micro_batch_size = run.train.global_batch_size = arguments.rows;
  EnumRef(run.train.recompute).set(arguments.recompute);
  EnumRef(run.train.cuda_graphs).set(arguments.graphs);
  run.data.seq_len = arguments.seq_len.value_or(size.seq_len);
  run.data.reset_at_document_starts = arguments.document_length > 0;
  run.loss.z_loss = 1e-4;
  run.optim.lr = 1e-3;
  return run;
}

/// Documents begin after every `length` tokens of a row, none with 0.
TokenBatch batch_for(const RunConfig& run, std::int64_t length) {
  const std::int64_t rows = run.train.micro_batch_size, seq_len = run.data.seq_len;
  TokenBatch batch = test::random_batch(run.model, rows, seq_len);
  if (length == 0) return batch;
  for (std::int64_t i = 0; i < rows * seq_len; ++i) {
    const std::int64_t position = i % seq_len;
    batch.document_start.push_back(static_cast<std::int32_t>(position / length * length));
  }
  return batch;
}

/// What a training run does with a batch, in the memory that one takes.
class WholeStep {
 public:
  WholeStep(const RunConfig& run, const MambaLm& model, const MemoryPlan& plan, Exec& exec)
      : lr_(run.optim.lr),
        parameters_(exec, model.parameters(), Dtype::kF32, StoreContents::kValuesAndTraining,
                    activations_for(exec, run.precision)),
        optimizer_(run.optim, parameters_),
        workspace_(exec, plan.arena_bytes),
        step_(run, model, parameters_, optimizer_, workspace_.arena()) {
    initialise(parameters_, 1);
  }

  void operator()(const TokenTensors& batch) {
    step_.micro_step(batch, 0);
    step_.update(lr_, ++number_);
  }
  void measure_ops(OpTimer& timer) { step_.measure_ops(timer); }

 private:
  double lr_;
  ParameterStore parameters_;
  Optimizer optimizer_;
  Workspace workspace_;
  TrainingStep step_;
  std::int64_t number_ = 0;
};

/// Forward and backward alone, in the memory that these take.
class GradientStep {
 public:
  GradientStep(const RunConfig& run, const MambaLm& model, const MemoryPlan& plan, Exec& exec)
      : run_(run),
        model_(model),
        exec_(exec),
        parameters_(exec, model.parameters(), activations_for(exec, run.precision)),
        workspace_(exec, plan.arena_bytes),
        graph_("gradients", run.train.cuda_graphs) {}

  void operator()(const TokenTensors& batch) {
    graph_.run(exec_, [&] {
      parameters_.begin_gradients();
      Tape tape(exec_, workspace_.arena(), parameters_.values(), &parameters_, TapeMode::kTrain);
      tape.set_timer(timer_);
      model_.loss(tape, batch, run_.loss.z_loss, run_.train.recompute);
      tape.backward();
    });
  }
  void measure_ops(OpTimer& timer) {
    timer_ = &timer;
    graph_.set_use(GraphUse::kNever);
  }

 private:
  const RunConfig& run_;
  const MambaLm& model_;
  Exec& exec_;
  BareParameters parameters_;
  Workspace workspace_;
  Graph graph_;
  OpTimer* timer_ = nullptr;
};

/// Steps follow each other without a pause, as in a run: marks between them are read at the end.
template <class Run>
Times time_steps(Exec& exec, int steps, const Run& run) {
  std::vector<Event> marks(static_cast<std::size_t>(steps) + 1);
  for (Event& mark : marks) {
    if (&mark != marks.data()) run();
    mark.record(exec);
  }
  wait(exec);
  std::vector<double> seconds;
  for (std::size_t i = 1; i < marks.size(); ++i) {
    seconds.push_back(marks[i].seconds_since(marks[i - 1]));
  }
  return times_of(std::move(seconds));
}

struct Figures {
  Times times;
  double tokens = 0;           ///< of a step
  double flops_per_s = 0;      ///< of the model's own work
  double peak = 0;             ///< FLOP/s, 0 when unknown
  std::int64_t allocated = 0;  ///< bytes that this program asked for
  std::int64_t taken = 0;      ///< bytes that the GPU has less free; 0 on a CPU
};

void print(const Arguments& arguments, const RunConfig& run, const MemoryPlan& plan,
           const Exec& exec, const Figures& figures) {
  const auto& [times, tokens, flops_per_s, peak, allocated, taken] = figures;
  fmt::print(
      "{}: {} layers x {}, vocabulary {}, {} parameters, {} rows of {}, {}, recompute {}{}\n",
      arguments.model, run.model.num_hidden_layers, run.model.hidden_size, run.model.vocab_size,
      plan.parameters.parameter_count, run.train.micro_batch_size, run.data.seq_len,
      arguments.no_optimizer ? "no optimizer" : "AdamW", arguments.recompute,
      arguments.document_length > 0 ? ", documents" : "");
  fmt::print("step {:.2f} ms (median of {}, {:.2f} to {:.2f}), {:.0f} tokens/s ({:.0f} to {:.0f})",
             times.median * 1e3, arguments.steps, times.min * 1e3, times.max * 1e3,
             tokens / times.median, tokens / times.max, tokens / times.min);
  fmt::print(", {:.1f} GFLOP/s{}\n", flops_per_s / 1e9,
             peak > 0 ? fmt::format(", {:.1f}% of peak", 100 * flops_per_s / peak) : "");
  fmt::print("{} allocated{}, {}\n", byte_text(allocated),
             taken > 0 ? ", " + byte_text(taken) + " less free" : "", describe(exec));
}

void write_json(const Arguments& arguments, const RunConfig& run, const Figures& figures) {
  const auto gib = [](std::int64_t bytes) { return static_cast<double>(bytes) / (1 << 30); };
  const Times& times = figures.times;
  std::ofstream file(arguments.json);
  file << nlohmann::json{{"model", arguments.model},
                         {"rows", run.train.micro_batch_size},
                         {"seq_len", run.data.seq_len},
                         {"recompute", arguments.recompute},
                         {"optimizer", !arguments.no_optimizer},
                         {"document_length", arguments.document_length},
                         {"ms", times.median * 1e3},
                         {"min_ms", times.min * 1e3},
                         {"max_ms", times.max * 1e3},
                         {"tokens_per_second", figures.tokens / times.median},
                         {"mfu", figures.peak > 0 ? figures.flops_per_s / figures.peak : 0},
                         {"allocated_gib", gib(figures.allocated)},
                         {"taken_gib", gib(figures.taken)}}
              .dump()
       << std::endl;
  require(file.good(), ErrorKind::kIo, "cannot write {}", arguments.json);
}

template <class Step>
int bench_steps(const Arguments& arguments, const RunConfig& run, const MambaLm& model,
                const MemoryPlan& plan, Exec& exec) {
  require_memory(plan, exec);
  const std::int64_t free_before = available_bytes(exec);
  Step step(run, model, plan, exec);
  const std::int64_t rows = run.train.micro_batch_size, seq_len = run.data.seq_len;
  TokenUploader uploader(exec, rows, seq_len);
  const TokenBatch batch = batch_for(run, arguments.document_length);
  const auto run_step = [&] { step(uploader.upload(batch)); };
  for (int i = 0; i < arguments.warmup; ++i) run_step();

  Figures figures{.times = time_steps(exec, arguments.steps, run_step),
                  .tokens = static_cast<double>(rows * seq_len),
                  .peak = peak_flops(exec, activations_for(exec, run.precision)),
                  .allocated = plan.total_bytes()};
  figures.flops_per_s =
      3 * forward_flops_per_token(run.model) * figures.tokens / figures.times.median;
  if (is_cuda(exec)) {
    figures.allocated = gpu_bytes(exec);
    figures.taken = free_before - available_bytes(exec);
  }
  print(arguments, run, plan, exec, figures);
  if (!arguments.json.empty()) write_json(arguments, run, figures);
  if (!arguments.profile) return 0;

  // Marks around every op cost time of their own, so these steps are others.
  OpTimer timer;
  step.measure_ops(timer);
  const Times measured = time_steps(exec, 1, [&] {
    for (int i = 0; i < arguments.steps; ++i) run_step();
  });
  timer.collect(timer.pending());
  fmt::print("time by op of {} steps:\n{}", arguments.steps, to_text(timer, measured.median));
  return 0;
}

int bench(const Arguments& arguments) {
  Exec exec = make_exec(arguments.compute.device, arguments.compute.threads);
  const RunConfig run = run_config(arguments);
  const MambaLm model(run.model);
  MemoryPlan plan = plan_memory(run, model, exec);
  if (!arguments.no_optimizer) return bench_steps<WholeStep>(arguments, run, model, plan, exec);
  plan.parameters = BareParameters::plan(model.parameters(), activations_for(exec, run.precision));
  plan.arena_bytes = plan.step_arena_bytes;
  return bench_steps<GradientStep>(arguments, run, model, plan, exec);
}

template <class Enum>
CLI::IsMember name_of() {
  return CLI::IsMember(std::set<std::string>(kEnumNames<Enum>.begin(), kEnumNames<Enum>.end()));
}

void add_options(CLI::App& app, Arguments& arguments) {
  std::set<std::string> models;
  for (const auto& [name, size] : kModels) models.insert(name);
  const CLI::Validator positive = number_in<std::int64_t>(1, std::int64_t{1} << 40);
  app.add_option("--model", arguments.model)
      ->capture_default_str()
      ->check(CLI::IsMember(std::move(models)));
  app.add_option("--hidden-size", arguments.hidden_size, "In place of the model's")
      ->transform(positive);
  app.add_option("--layers", arguments.layers, "In place of the model's")->transform(positive);
  app.add_option("--vocab-size", arguments.vocab_size, "In place of the model's")
      ->transform(positive);
  app.add_option("--rows", arguments.rows)->capture_default_str()->transform(positive);
  app.add_option("--seq-len", arguments.seq_len,
                 "Tokens of a row, in place of the model's 2048 (small: 512)")
      ->transform(positive);
  app.add_option("--document-length", arguments.document_length,
                 "Starts a document after every so many tokens of a row")
      ->transform(positive);
  app.add_option("--recompute", arguments.recompute, "As train.recompute")
      ->capture_default_str()
      ->check(name_of<Recompute>());
  app.add_option("--graphs", arguments.graphs, "As train.cuda_graphs")
      ->capture_default_str()
      ->check(name_of<GraphUse>());
  app.add_flag("--no-optimizer", arguments.no_optimizer,
               "Only forward and backward, without masters and moments");
  app.add_flag("--profile", arguments.profile, "Also prints the time by op, of further steps");
  app.add_option("--steps", arguments.steps)->capture_default_str()->check(CLI::PositiveNumber);
  app.add_option("--warmup", arguments.warmup, "Steps before; a GPU's graphs are made by the third")
      ->capture_default_str()
      ->check(CLI::NonNegativeNumber);
  app.add_option("--json", arguments.json, "File for the figures, as a JSON object");
  add_compute_options(app, arguments.compute);
  app.get_option("--precision")->option_text("[bf16]");
}

}  // namespace
}  // namespace jiboia::bench

int main(int argc, char** argv) {
  CLI::App app("Times whole training steps on random tokens.");
  jiboia::bench::Arguments arguments;
  jiboia::bench::add_options(app, arguments);
  return jiboia::run_program("bench_step", app, argc, argv,
                             [&] { return jiboia::bench::bench(arguments); });
}
