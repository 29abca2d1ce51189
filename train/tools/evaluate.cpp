#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>

#include "core/host_access.h"
#include "core/log.h"
#include "data/json.h"
#include "data/safetensors.h"
#include "data/verified_files.h"
#include "train/checkpoint/manifest.h"
#include "train/checkpoint/model_folder.h"
#include "train/checkpoint/trainer_state.h"
#include "train/config/yaml_reader.h"
#include "train/evaluator.h"
#include "train/loaded_model.h"
#include "train/memory_plan.h"
#include "train/tools/compute_options.h"
#include "train/tools/number_option.h"
#include "train/tools/program.h"
#include "train/workspace.h"

namespace jiboia {
namespace {

namespace fs = std::filesystem;

struct Arguments {
  std::string model, data, ids, logits;
  std::int64_t seq_len = 0, max_rows = 0;
  ComputeOptions compute;
  bool json = false;
};

/// data.seq_len of the run that made a checkpoint; nothing for other models. Errors: Io,
/// Checkpoint.
std::optional<std::int64_t> trained_seq_len(const std::filesystem::path& model) {
  if (!std::filesystem::exists(model / TrainerState::kFileName)) return std::nullopt;
  const auto config = read_trainer_state(model).inputs.config;
  const auto found = config.find("data.seq_len");
  if (found == config.end()) return std::nullopt;
  const std::string& text = found->second;
  std::int64_t seq_len = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), seq_len);
  require(error == std::errc() && end == text.data() + text.size() && seq_len > 0,
          ErrorKind::kCheckpoint, "{}: data.seq_len is {}, expected a number above 0",
          (model / TrainerState::kFileName).string(), display(text));
  return seq_len;
}

/// Row length for `data` when the user names none: what the model was trained on if that fits, else
/// the data's own rows, or 2048 of a stream.
std::int64_t choose_seq_len(const ShardManifest& data, const std::filesystem::path& model) {
  const auto trained = read_while_there(model, [&] { return trained_seq_len(model); });
  // A stream that is too short for any row is refused where rows are cut.
  if (data.layout == ShardLayout::kStream)
    return std::clamp<std::int64_t>(data.tokens - 1, 1, trained.value_or(2048));
  return trained == data.row_length - 1 ? *trained : data.row_length;
}

/// Says every 10 seconds how many rows are done of `all`.
std::function<void(std::int64_t)> say_progress(std::int64_t all) {
  using Clock = std::chrono::steady_clock;
  static constexpr std::chrono::seconds kInterval(10);
  return [all, next = Clock::now() + kInterval](std::int64_t rows) mutable {
    if (Clock::now() < next) return;
    log::info("{} of {} rows", rows, all);
    next = Clock::now() + kInterval;
  };
}

int evaluate_data(const Arguments& arguments, LoadedModel& loaded, Exec& exec) {
  const ShardManifest manifest = ShardManifest::load(arguments.data);
  const std::int64_t seq_len =
      arguments.seq_len ? arguments.seq_len : choose_seq_len(manifest, loaded.folder);
  const TokenDataset data =
      TokenDataset::open(arguments.data, {.seq_len = seq_len,
                                          .vocab_size = loaded.model.config().vocab_size,
                                          .verify = {.cache_folder = user_cache_folder()}});
  log::info("{}", data.summary());
  const std::int64_t rows = std::max<std::int64_t>(1, 4096 / seq_len);
  Workspace workspace(
      exec, plan_evaluate(loaded.model, loaded.parameters.activations(), rows, seq_len, exec));
  TokenUploader uploader(exec, rows, seq_len);
  const std::int64_t all =
      arguments.max_rows ? std::min(arguments.max_rows, data.rows()) : data.rows();
  const Evaluation result = evaluate(
      loaded.model, loaded.parameters, data,
      {.rows_per_batch = rows, .max_rows = arguments.max_rows, .on_rows = say_progress(all)},
      uploader, workspace.arena());
  if (arguments.json) {
    nlohmann::ordered_json json = {{"loss", result.loss},
                                   {"perplexity", result.perplexity()},
                                   {"bits_per_byte", nullptr},
                                   {"targets", result.targets},
                                   {"rows", result.rows},
                                   {"seq_len", seq_len},
                                   {"model", loaded.folder.string()},
                                   {"data", arguments.data}};
    if (result.bits_per_byte) json["bits_per_byte"] = *result.bits_per_byte;
    fmt::print("{}\n", json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace));
  } else {
    fmt::print("loss        {:.6f} nats per token\nperplexity  {:.4f}\n", result.loss,
               result.perplexity());
    if (result.bits_per_byte)
      fmt::print("            {:.6f} bits per byte of text\n", *result.bits_per_byte);
    fmt::print("targets     {} in {} rows of {}\n", result.targets, result.rows, seq_len);
  }
  return 0;
}

/// Refuses to write over what is no earlier result. Errors: InvalidArgument.
void require_result_file(const fs::path& file, const fs::path& ids) {
  require(!fs::exists(file) || fs::is_regular_file(file), ErrorKind::kInvalidArgument,
          "--logits '{}' exists and is not a regular file", file.string());
  require(!fs::exists(file) || !fs::equivalent(file, ids), ErrorKind::kInvalidArgument,
          "--logits is the file of the --ids, '{}'", file.string());
  const fs::path folder = fs::absolute(file).parent_path();
  for (const char* name : {"config.json", Manifest::kFileName}) {
    require(!fs::exists(folder / name), ErrorKind::kInvalidArgument,
            "--logits '{}' is in the folder of a model, among its weights", file.string());
  }
}

/// Reads a list of equally long lists of ids.
std::vector<std::vector<std::int32_t>> read_ids(const std::string& path, std::int64_t vocab_size) {
  const JsonLimits limits{.depth = 2, .nodes = 100'000'000, .file_bytes = std::int64_t{1} << 30};
  const nlohmann::json json = read_json_file(path, ErrorKind::kData, limits);
  require(json.is_array() && !json.empty(), ErrorKind::kData,
          "{}: expected a list of lists of token ids", path);
  std::vector<std::vector<std::int32_t>> rows;
  for (const auto& list : json) {
    require(!list.is_array() || !list.empty(), ErrorKind::kData, "{}: list {} is empty", path,
            rows.size());
    require(list.is_array() && list.size() == json[0].size(), ErrorKind::kData,
            "{}: list {} is not a list of {} ids as the first", path, rows.size(), json[0].size());
    auto& row = rows.emplace_back();
    for (const auto& id : list) {
      require(id.is_number_unsigned() &&
                  id.get<std::uint64_t>() < static_cast<std::uint64_t>(vocab_size),
              ErrorKind::kData, "{}: list {}, element {} is {}, expected an id from 0 to {}", path,
              rows.size() - 1, row.size(), id.is_primitive() ? id.dump() : "no number",
              vocab_size - 1);
      row.push_back(id.get<std::int32_t>());
    }
  }
  return rows;
}

int write_logits(const Arguments& arguments, LoadedModel& loaded, Exec& exec) {
  const std::int64_t V = loaded.model.config().vocab_size;
  auto rows = read_ids(arguments.ids, V);
  const auto B = static_cast<std::int64_t>(rows.size());
  const auto L = static_cast<std::int64_t>(rows[0].size());
  const auto run = [&](Tape& tape, std::byte* ids) {
    const Tensor tokens(Spec(Dtype::kI32, {1, L}), ids);
    return loaded.model.logits(tape, loaded.model.hidden(tape, tokens));
  };
  Workspace workspace(exec, plan_evaluation(loaded.model, loaded.parameters.activations(), exec,
                                            [&](Tape& tape) { run(tape, nullptr); }));
  const Buffer ids = allocate(exec, L * size_of(Dtype::kI32), "token ids");
  HostAccess host(exec);
  std::vector<float> values(static_cast<std::size_t>(L * V));
  SafetensorsWriter writer(arguments.logits, {{"logits", Dtype::kF32, {B, L, V}}}, {});
  for (auto& row : rows) {
    Tape tape(exec, workspace.arena(), loaded.parameters.values(), nullptr, TapeMode::kEvaluate);
    copy(exec, Tensor(Spec(Dtype::kI32, {1, L}), row.data()),
         Tensor(Spec(Dtype::kI32, {1, L}), ids.data()));
    host.read_as_float(tape.value(run(tape, ids.data())), values);
    require(std::ranges::all_of(values, [](float logit) { return std::isfinite(logit); }),
            ErrorKind::kNumerics, "the logits of list {} of {} are not finite", &row - rows.data(),
            arguments.ids);
    writer.write("logits", std::span<const float>(values));
  }
  writer.commit();
  return 0;
}

int evaluate_model(const Arguments& arguments) {
  const bool for_data = !arguments.data.empty();
  require(for_data != !arguments.ids.empty(), ErrorKind::kInvalidArgument,
          "either --data, or --ids and --logits");
  require(arguments.ids.empty() == arguments.logits.empty(), ErrorKind::kInvalidArgument,
          "--ids and --logits go together");
  if (!for_data) {
    require(fs::exists(arguments.ids), ErrorKind::kData, "{}: no such file", arguments.ids);
    require_result_file(arguments.logits, arguments.ids);
  }
  Exec exec = make_exec(arguments.compute.device, arguments.compute.threads);
  say_what_precision_means(exec, arguments.compute.precision);
  LoadedModel loaded =
      load_model(arguments.model, exec, activations_for(exec, arguments.compute.precision));
  return for_data ? evaluate_data(arguments, loaded, exec) : write_logits(arguments, loaded, exec);
}

}  // namespace
}  // namespace jiboia

int main(int argc, char** argv) {
  using namespace jiboia;
  CLI::App app(
      "Scores a Mamba language model on token shards, or writes its logits for given ids.");
  Arguments arguments;
  app.add_option("-m,--model", arguments.model,
                 "Hugging Face Mamba folder, a checkpoint, or a run's output_dir")
      ->required();
  app.add_option("-d,--data", arguments.data,
                 "Folder of token shards: prints loss, perplexity and bits per byte");
  app.add_option(
         "--seq-len", arguments.seq_len,
         "Tokens of a row cut from a stream (default: what the model was trained on, else 2048)")
      ->transform(number_in<std::int64_t>(1, 1 << 30));
  app.add_option("--max-rows", arguments.max_rows, "Rows to score at most; 0: all")
      ->transform(number_in<std::int64_t>(0));
  app.add_flag("--json", arguments.json, "Prints one JSON object");
  app.add_option("--ids", arguments.ids, "JSON file: a list of equally long lists of token ids");
  app.add_option("--logits", arguments.logits,
                 "safetensors file to write: tensor `logits` (B, L, V), fp32, for --ids");
  add_compute_options(app, arguments.compute);
  app.footer(
      "The loss is the mean cross entropy in nats per token, without any z-loss.\n"
      "Exit codes: 0 done, 2 usage, 3 data, 4 model, 5 numerics, 6 GPU, 7 disk,\n"
      "1 anything else.");
  return run_program("evaluate", app, argc, argv, [&] { return evaluate_model(arguments); });
}
