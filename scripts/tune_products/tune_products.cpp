// Measures which of cuBLASLt's algorithms is fastest for each matrix product of a training step,
// and writes the table that core/cuda/blas.cpp reads.
#include <cublasLt.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <map>

#include "data/file.h"
#include "scripts/tune_products/search.h"
#include "train/config/config.h"
#include "train/memory_plan.h"
#include "train/model/mamba_lm.h"
#include "train/token_tensors.h"
#include "train/tools/program.h"
#include "train/workspace.h"

namespace jiboia {
namespace {

using cuda::MatrixProduct;

// Ceilings measured on an NVIDIA H200: large bf16 products, copies of large arrays.
constexpr double kFlopsPerSecond = 744e12, kBytesPerSecond = 4.25e12;

struct Arguments {
  std::vector<std::string> models{"configs/mambarim110m.yaml:32", "configs/mambarim110m.yaml:16",
                                  "configs/mambarim110m.yaml:4", "configs/mamba7b-rw.yaml:4"};
  double seconds = 90;
  bool only_missing = false;
  std::string output;
};

/// The products of a model's training step, by name: asked for by a step itself.
std::map<std::string, MatrixProduct> products_of_step(const std::string& model_and_rows) {
  const std::size_t colon = model_and_rows.rfind(':');
  require(colon != std::string::npos, ErrorKind::kConfig,
          "a model is given as CONFIG:ROWS, such as configs/mambarim110m.yaml:32, not as '{}'",
          model_and_rows);
  const std::string rows = model_and_rows.substr(colon + 1);
  const RunConfig run =
      load_config(model_and_rows.substr(0, colon),
                  {"train.micro_batch_size=" + rows, "train.global_batch_size=" + rows,
                   "train.recompute=none", "model.num_hidden_layers=2"});  // layers are alike

  Exec exec = make_exec(DeviceChoice::kCuda, 0);
  const Activations activations = activations_for(exec, run.precision);
  const MambaLm model(run.model);
  const MemoryPlan plan = plan_memory(run, model, exec);
  require_memory(plan, exec);
  ParameterStore parameters(exec, model.parameters(), Dtype::kF32,
                            StoreContents::kValuesAndTraining, activations);
  Workspace workspace(exec, plan.arena_bytes);
  const std::int64_t batch_rows = run.train.micro_batch_size, seq_len = run.data.seq_len;
  TokenUploader uploader(exec, batch_rows, seq_len);
  TokenBatch batch;
  batch.rows = batch.data_rows = batch_rows;
  batch.seq_len = seq_len;
  for (std::int64_t i = 0; i < batch_rows * seq_len; ++i) {
    batch.tokens.push_back(static_cast<std::int32_t>(i % run.model.vocab_size));
  }
  batch.targets = batch.tokens;

  parameters.begin_gradients();
  {
    Tape tape(exec, workspace.arena(), parameters.values(), &parameters, TapeMode::kTrain);
    model.loss(tape, uploader.upload(batch), run.loss.z_loss, Recompute::kNone);
    tape.backward();
  }
  parameters.end_gradients();
  wait(exec);
  std::map<std::string, MatrixProduct> products;
  for (MatrixProduct product : std::get<CudaExec>(exec).blas().products()) {
    // All chunks and micro-batches but the first are added to gradients of weights.
    if (product.to.dtype == Dtype::kF32) product.mode = GradMode::kAdd;
    products.emplace(product_name(product), product);
  }
  return products;
}

struct Entry {
  std::string gpu;
  std::uint64_t library;
  std::string product;
  auto operator<=>(const Entry&) const = default;
};
struct Measured {
  cuda::ProductAlgorithm algorithm;
  double microseconds, first_microseconds;
};
using Table = std::map<Entry, Measured>;

std::string attributes_text(const cuda::ProductAlgorithm& a) {
  return fmt::format("{{{}, {}, {}, {}, {}, {}, {}, {}, {}}}", a.id, a.tile, a.split_k, a.reduction,
                     a.swizzling, a.custom_option, a.stages, a.inner_shape, a.cluster_shape);
}

void write_table(const std::string& path, const Table& table) {
  std::string text =
      "// Written by tune_products; the members of a line are those of TunedProduct.\n";
  for (const auto& [entry, measured] : table) {
    text += fmt::format("{{\"{}\", {}, \"{}\", {}, {:.1f}, {:.1f}}},\n", entry.gpu, entry.library,
                        entry.product, attributes_text(measured.algorithm), measured.microseconds,
                        measured.first_microseconds);
  }
  write_file_atomically(path, text);  // whoever stops the program keeps the table
}

void print_line(const MatrixProduct& product, const FoundProduct& found) {
  const double flops = flops_of(product), bytes = bytes_of(product);
  const double floor = std::max(flops / kFlopsPerSecond, bytes / kBytesPerSecond);
  fmt::print("{:<58} {:>8.1f} {:>8.1f} {:>5.1f}% {:>7.0f} {:>6.2f} {:>4.0f}%  {:<34} {}/{}",
             product_name(product) + (product.mode == GradMode::kAdd ? " +=" : ""),
             1e6 * found.first_seconds, 1e6 * found.seconds,
             100 * (found.first_seconds / found.seconds - 1), 1e-12 * flops / found.seconds,
             1e-12 * bytes / found.seconds, 100 * floor / found.seconds,
             attributes_text(found.algorithm), found.timed, found.suggestions);
  if (found.lost > 0) {
    fmt::print(", {} lost, at best {:.1f}", found.lost, 1e6 * found.lost_seconds);
  }
  if (found.unrepeatable > 0) fmt::print(", {} not repeatable", found.unrepeatable);
  fmt::print("\n");
  std::fflush(stdout);
}

int tune(const Arguments& arguments) {
  using Clock = std::chrono::steady_clock;
  const auto begin = Clock::now();
  const auto elapsed = [&] { return std::chrono::duration<double>(Clock::now() - begin).count(); };
  std::vector<MatrixProduct> products;
  std::map<std::string, MatrixProduct> known;
  for (const std::string& model : arguments.models) {
    for (const auto& [name, product] : products_of_step(model)) {
      if (known.emplace(name, product).second) products.push_back(product);
    }
  }
  CudaExec gpu;
  Table table;
  for (const cuda::TunedProduct& entry : cuda::tuned_products()) {
    table[{std::string(entry.gpu), entry.library, std::string(entry.product)}] = {
        entry.algorithm, entry.microseconds, entry.first_microseconds};
  }
  const std::string name = gpu.gpu().name;
  const std::uint64_t library = cublasLtGetVersion();
  if (arguments.only_missing) {
    std::erase_if(products, [&](const MatrixProduct& product) {
      return table.contains({name, library, product_name(product)});
    });
  }
  fmt::print("{}, cuBLASLt {}: {} products, after {:.1f} s\n", name, library, products.size(),
             elapsed());
  fmt::print("{:<58} {:>8} {:>8} {:>6} {:>7} {:>6} {:>5}  {:<34} {}\n", "product", "first us",
             "best us", "gain", "TFLOP/s", "TB/s", "floor",
             "id tile splits reduction swizzle custom stages inner cluster", "timed/suggested");
  ProductSearch search(gpu);
  for (std::size_t i = 0; i < products.size(); ++i) {
    const double left = arguments.seconds - elapsed();
    const auto found = search.search(products[i], left / static_cast<double>(products.size() - i));
    if (!found) {
      fmt::print("{:<58} no algorithm that can be named and repeats its results\n",
                 product_name(products[i]));
      continue;
    }
    print_line(products[i], *found);
    table[{name, library, product_name(products[i])}] = {found->algorithm, 1e6 * found->seconds,
                                                         1e6 * found->first_seconds};
    if (!arguments.output.empty()) write_table(arguments.output, table);
  }
  fmt::print("{:.1f} s\n", elapsed());
  return 0;
}

}  // namespace
}  // namespace jiboia

int main(int argc, char** argv) {
  using namespace jiboia;
  CLI::App app(
      "Measures which of cuBLASLt's algorithms is fastest for each matrix product of a training "
      "step on this GPU, and writes the table that the next build reads.");
  Arguments arguments;
  app.add_option("--model", arguments.models,
                 "Configuration and rows of a micro-batch, CONFIG:ROWS")
      ->capture_default_str();
  app.add_option("--seconds", arguments.seconds, "For all of it, shared by the products")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  app.add_flag("--only-missing", arguments.only_missing,
               "Leave out products that the table has for this GPU and library");
  app.add_option("--output", arguments.output,
                 "File for the table, core/cuda/blas_table.inc; entries of other GPUs, libraries "
                 "and products stay");
  return run_program("tune_products", app, argc, argv, [&] { return tune(arguments); });
}
