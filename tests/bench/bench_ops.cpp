// Times every op by itself, forward and backward, at the shapes of the recipes.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <regex>

#include "tests/bench/measure.h"
#include "tests/bench/op_cases.h"

namespace jiboia::bench {
namespace {

constexpr ModelShape kCpuShape{.B = 4, .L = 256, .E = 256, .V = 8192};

struct Arguments {
  std::string device = "auto", precision = "bf16", filter, json;
  int threads = 0, warmup = 5, repeats = 20;
  std::int64_t document_length = 0;
  std::optional<std::int64_t> flush_mib;
  std::vector<std::vector<std::int64_t>> shapes;
  bool list = false, no_ceilings = false;
};

Exec exec_for(const std::string& device, int threads) {
#if JIBOIA_WITH_CUDA
  if (device == "cuda" || (device == "auto" && CudaExec::device_count() > 0)) return CudaExec(0);
#endif
  require(device != "cuda", ErrorKind::kUnsupported, "this build has no CUDA backend");
  return CpuExec(threads);
}

std::string name_of(const CpuExec& cpu) { return fmt::format("CPU, {} threads", cpu.threads()); }
[[maybe_unused]] std::string name_of(const CudaExec& gpu) { return gpu.gpu().name; }
std::string device_name(const Exec& exec) {
  return std::visit([](const auto& backend) { return name_of(backend); }, exec);
}

/// Names hold parentheses, so a part of a name as it stands is taken as well as an expression.
bool is_wanted(const std::string& name, const std::string& filter) {
  return name.find(filter) != std::string::npos || std::regex_search(name, std::regex(filter));
}

/// The table, on stdout and as JSON lines.
class Report {
 public:
  Report(const std::string& path, const std::string& device,
         const std::optional<Ceilings>& ceilings)
      : ceilings_(ceilings) {
    if (!path.empty()) {
      file_.open(path);
      require(file_.good(), ErrorKind::kIo, "cannot write {}", path);
    }
    if (ceilings) {
      fmt::print("{}: copy {:.2f} TB/s, product {:.1f} TFLOP/s\n", device,
                 ceilings->bytes_per_s / 1e12, ceilings->flops_per_s / 1e12);
      line({{"name", "ceilings"},
            {"device", device},
            {"gb_per_s", ceilings->bytes_per_s / 1e9},
            {"tflop_per_s", ceilings->flops_per_s / 1e12}});
    }
    fmt::print("{:<50}{:>10}{:>10}{:>10}{:>9}{:>7}{:>10}{:>9}\n", "op, pass, shape", "ms", "min",
               "max", "GB/s", "copy", "TFLOP/s", "product");
  }

  void add(const std::string& name, const Times& times, const Work& work) {
    const double bytes = work.bytes / times.median, flops = work.flops / times.median;
    const auto share = [](double reached, double ceiling) {
      return fmt::format("{:.1f}%", 100 * reached / ceiling);
    };
    fmt::print("{:<50}{:>10.4f}{:>10.4f}{:>10.4f}{:>9.1f}{:>7}", name, times.median * 1e3,
               times.min * 1e3, times.max * 1e3, bytes / 1e9,
               ceilings_ ? share(bytes, ceilings_->bytes_per_s) : "-");
    if (work.flops > 0) {
      fmt::print("{:>10.2f}{:>9}", flops / 1e12,
                 ceilings_ ? share(flops, ceilings_->flops_per_s) : "-");
    }
    fmt::print("\n");
    std::fflush(stdout);
    line({{"name", name},
          {"ms", times.median * 1e3},
          {"min_ms", times.min * 1e3},
          {"max_ms", times.max * 1e3},
          {"gb_per_s", bytes / 1e9},
          {"tflop_per_s", flops / 1e12}});
  }

 private:
  void line(const nlohmann::json& values) {
    if (file_.is_open()) file_ << values.dump() << std::endl;
  }

  std::optional<Ceilings> ceilings_;
  std::ofstream file_;
};

int run(const Arguments& arguments) {
  Exec exec = exec_for(arguments.device, arguments.threads);
  const bool gpu = is_cuda(exec);
  const Dtype activation = gpu && arguments.precision == "bf16" ? Dtype::kBf16 : Dtype::kF32;
  std::vector<ModelShape> shapes;
  for (const auto& s : arguments.shapes) shapes.push_back({s[0], s[1], s[2], s[3]});
  if (shapes.empty()) shapes = gpu ? recipe_shapes() : std::vector<ModelShape>{kCpuShape};

  std::optional<Stopwatch> stopwatch;
  std::optional<Report> report;
  if (!arguments.list) {
    const std::int64_t flush_mib = arguments.flush_mib.value_or(gpu ? 256 : 64);
    stopwatch.emplace(exec, Repetition{.warmup = arguments.warmup,
                                       .repeats = arguments.repeats,
                                       .flushed_bytes = flush_mib << 20});
    // Large enough for what a GPU reaches at its best; a CPU gets there sooner.
    const bool large = gpu && arguments.shapes.empty();
    std::optional<Ceilings> ceilings;
    if (!arguments.no_ceilings) {
      ceilings = measure_ceilings(exec, *stopwatch, std::int64_t{large ? 2048 : 64} << 20,
                                  activation, large ? 8192 : 512);
    }
    report.emplace(arguments.json, device_name(exec), ceilings);
  }

  BenchTensors tensors(exec);
  for (const OpCase& one : op_cases(shapes, activation, arguments.document_length)) {
    const std::string forward = one.name(Pass::kForward), backward = one.name(Pass::kBackward);
    const bool wants_forward = is_wanted(forward, arguments.filter);
    const bool wants_backward = one.backward && is_wanted(backward, arguments.filter);
    if (arguments.list) {
      if (wants_forward) fmt::print("{}\n", forward);
      if (wants_backward) fmt::print("{}\n", backward);
    } else if (wants_forward || wants_backward) {
      const Launches launches = one.prepare(tensors);
      launches.forward();  // backward passes read what it saves
      if (wants_forward) report->add(forward, stopwatch->time(launches.forward), one.forward);
      if (wants_backward) report->add(backward, stopwatch->time(launches.backward), *one.backward);
      tensors.clear();
    }
  }
  return 0;
}

}  // namespace
}  // namespace jiboia::bench

int main(int argc, char** argv) {
  using namespace jiboia;
  CLI::App app("Times every op by itself, on random values laid out as in the model.");
  bench::Arguments arguments;
  app.add_option("--filter", arguments.filter,
                 "Only cases whose name contains this or matches it as a regular expression");
  app.add_flag("--list", arguments.list, "Only prints the names of the cases");
  app.add_flag("--no-ceilings", arguments.no_ceilings,
               "Leaves out what shares refer to: large products, behind which a GPU is hot");
  app.add_option("--shape", arguments.shapes,
                 "Rows, tokens of a row, width and vocabulary of a model in place of the recipes'; "
                 "may be given several times")
      ->type_size(4);
  app.add_option("--document-length", arguments.document_length,
                 "Marks a document's start after every so many tokens")
      ->check(CLI::NonNegativeNumber);
  app.add_option("--repeats", arguments.repeats)->capture_default_str()->check(CLI::PositiveNumber);
  app.add_option("--warmup", arguments.warmup)
      ->capture_default_str()
      ->check(CLI::NonNegativeNumber);
  app.add_option("--flush-mib", arguments.flush_mib,
                 "Read before each run, so that caches hold nothing of use (default: 256, CPU 64)")
      ->check(CLI::NonNegativeNumber);
  app.add_option("--json", arguments.json, "File for the figures, a JSON object a line");
  app.add_option("--device", arguments.device)
      ->capture_default_str()
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}));
  app.add_option("--precision", arguments.precision, "Of a GPU's activations")
      ->capture_default_str()
      ->check(CLI::IsMember({"bf16", "fp32"}));
  app.add_option("--threads", arguments.threads, "Of the CPU, 0 for all")->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  try {
    return bench::run(arguments);
  } catch (const Error& error) {
    fmt::print(stderr, "bench_ops: {}: {}\n", to_string(error.kind()), error.what());
    return exit_code(error.kind());
  } catch (const std::regex_error& error) {
    fmt::print(stderr, "bench_ops: --filter {}: {}\n", arguments.filter, error.what());
    return exit_code(ErrorKind::kInvalidArgument);
  }
}
