#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <optional>
#include <string>

#include "core/error.h"
#include "data/file.h"
#include "data/weights_folder.h"
#include "train/checkpoint/manifest.h"
#include "train/checkpoint/model_folder.h"
#include "train/checkpoint/model_weights.h"
#include "train/checkpoint/trainer_state.h"
#include "train/loaded_model.h"
#include "train/model/hf_config.h"
#include "train/model/mamba_lm.h"
#include "train/tools/program.h"

namespace jiboia {
namespace {

namespace fs = std::filesystem;

constexpr const char* kDescription =
    "Writes a Hugging Face model folder: config.json, generation_config.json, weights as\n"
    "safetensors, the tokenizer's files and a model card. transformers opens it with\n"
    "AutoModelForCausalLM and AutoTokenizer. Files are replaced one by one, each all or nothing;\n"
    "files of an earlier export that do not belong to the new one are removed. A folder in\n"
    "which others wrote such files is refused.";
constexpr const char* kFooter =
    "Exit codes: 0 done, 2 usage, 4 the model is damaged or not a Mamba-1 model, 7 disk.";

constexpr const char* kModelCard = "README.md";
constexpr std::int64_t kMaxConfigBytes = 16 << 20;

struct Request {
  fs::path checkpoint;
  fs::path output;
  std::string dtype = "float32";
  std::string max_shard_size = "5GB";
  fs::path model_card;
};

/// A model that is exported. Its weights are open: they stay readable when the folder goes away.
struct Source {
  ModelConfig config;
  ModelWeights weights;
  std::vector<CompanionFile> tokenizer;
  std::optional<TrainerState> state;
};

Source read_source(const fs::path& folder) {
  const ModelConfig config = read_model_config(folder);
  Source source{
      config, ModelWeights(folder, MambaLm(config).parameters()), read_tokenizer_files(folder), {}};
  if (fs::exists(folder / TrainerState::kFileName)) source.state = read_trainer_state(folder);
  return source;
}

/// What a generated model card says.
struct CardFacts {
  std::string name;
  ModelConfig config;
  std::int64_t parameter_count = 0;
  std::optional<TrainerState> state;
};

std::string model_card(const CardFacts& facts) {
  const ModelConfig& config = facts.config;
  std::string card = fmt::format(
      "---\n"
      "library_name: transformers\n"
      "pipeline_tag: text-generation\n"
      "tags:\n"
      "- mamba\n"
      "---\n\n"
      "# {}\n\n"
      "A Mamba-1 language model of {} parameters, trained with Jiboia.\n\n"
      "| | |\n|---|---|\n"
      "| Layers | {} |\n| Hidden size | {} |\n| State size | {} |\n| Convolution | {} |\n"
      "| Expansion | {} |\n| Time step rank | {} |\n| Vocabulary | {} |\n"
      "| Head tied to the embedding | {} |\n",
      facts.name, facts.parameter_count, config.num_hidden_layers, config.hidden_size,
      config.state_size, config.conv_kernel, config.expand, config.time_step_rank,
      config.vocab_size, config.tie_word_embeddings ? "yes" : "no");
  if (facts.state)
    card += fmt::format("| Training steps | {} |\n| Tokens seen | {} |\n", facts.state->step,
                        facts.state->tokens);
  card +=
      "\n## Use\n\n"
      "In this folder; elsewhere, write its path instead of `.`, or USER/NAME once uploaded.\n\n"
      "```python\n"
      "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
      "tokenizer = AutoTokenizer.from_pretrained(\".\")\n"
      "model = AutoModelForCausalLM.from_pretrained(\".\")\n"
      "ids = tokenizer(\"Once upon a time\", return_tensors=\"pt\").input_ids\n"
      "print(tokenizer.decode(model.generate(ids, max_new_tokens=50)[0]))\n"
      "```\n";
  return card;
}

/// What a folder holds from the start of an export to its success.
constexpr const char* kUnfinished = ".unfinished_export";

/// Errors: InvalidArgument when `output` holds a file that exporting would replace or remove,
/// though no export wrote it.
void refuse_files_of_others(const fs::path& output) {
  if (fs::exists(output / kUnfinished)) return;
  const fs::path config = output / "config.json";
  if (fs::exists(config) && is_own_config(read_text_file(config, kMaxConfigBytes))) return;
  for (const fs::directory_entry& entry : fs::directory_iterator(output)) {
    const std::string name = entry.path().filename();
    require(!is_weights_file_name(name) && !is_model_description(name) && name != kModelCard,
            ErrorKind::kInvalidArgument,
            "--output '{}' is not the folder of an earlier export: its {} would be lost; choose a "
            "new folder",
            output.string(), name);
  }
}

/// Makes the output folder. Errors: InvalidArgument when writing there would damage a checkpoint,
/// token shards or other files that no export wrote.
void create_output(const fs::path& output, const fs::path& source) {
  std::error_code error;
  fs::create_directories(output, error);
  require(!error && fs::is_directory(output), ErrorKind::kIo, "cannot create folder '{}': {}",
          output.string(), error ? error.message() : "something else has its name");
  require(!fs::equivalent(output, source), ErrorKind::kInvalidArgument,
          "--output is the model to be exported, '{}'", source.string());
  require(!fs::exists(output / Manifest::kFileName), ErrorKind::kInvalidArgument,
          "--output '{}' is a checkpoint", output.string());
  require(!fs::exists(output / "checkpoints"), ErrorKind::kInvalidArgument,
          "--output '{}' is the folder of a run: it holds checkpoints", output.string());
  require(!fs::exists(output / "manifest.json"), ErrorKind::kInvalidArgument,
          "--output '{}' holds token shards", output.string());
  refuse_files_of_others(output);
}

/// Removes what an earlier export left and the new weights will not go with, so that being killed
/// half-way leaves no folder that loads as a mixture of both.
void remove_other_model(const fs::path& output, const std::string& config,
                        const std::vector<CompanionFile>& tokenizer) {
  const fs::path config_file = output / "config.json";
  if (fs::exists(config_file) && read_text_file(config_file, kMaxConfigBytes) != config)
    remove_file(config_file);
  for (const CompanionFile& old : read_tokenizer_files(output)) {
    const bool stays = std::any_of(tokenizer.begin(), tokenizer.end(), [&](const auto& file) {
      return file.name == old.name && file.contents == old.contents;
    });
    if (!stays) remove_file(output / old.name);
  }
  fsync_directory(output);
}

/// The last part of a folder's path.
std::string name_of_folder(const fs::path& folder) {
  const fs::path path = fs::weakly_canonical(folder);
  return path.has_filename() ? path.filename() : path.parent_path().filename();
}

int export_model(const Request& request) {
  constexpr std::int64_t kMaxCardBytes = 16 << 20;
  const Dtype dtype = request.dtype == "bfloat16" ? Dtype::kBf16 : Dtype::kF32;
  const std::int64_t max_shard_bytes = parse_byte_size(request.max_shard_size);
  const fs::path folder = find_model_folder(request.checkpoint);
  auto [config, weights, tokenizer, state] =
      read_while_there(folder, [&] { return read_source(folder); });
  const MambaLm model(config);
  CardFacts facts{.name = name_of_folder(request.output), .config = config, .state = state};
  for (const ParameterSpec& spec : model.parameters()) facts.parameter_count += spec.shape.size();
  const std::string card = request.model_card.empty()
                               ? model_card(facts)
                               : read_text_file(request.model_card, kMaxCardBytes);

  create_output(request.output, folder);
  write_file_atomically(request.output / kUnfinished, "Exporting here again replaces the model.\n");
  remove_other_model(request.output, hugging_face_config(config, dtype), tokenizer);
  std::int64_t bytes = 0;
  for (const WrittenFile& file :
       convert_model_weights(weights, model.parameters(), dtype, request.output, max_shard_bytes))
    bytes += file.digest.bytes;
  write_model_description(request.output, config, dtype, tokenizer);
  write_file_atomically(request.output / kModelCard, card);
  remove_file(request.output / kUnfinished);

  fmt::print("Exported '{}': {} parameters, {:.1f} MB of weights, {}.\n", folder.string(),
             facts.parameter_count, static_cast<double>(bytes) / 1e6,
             tokenizer.empty() ? "no tokenizer" : "with its tokenizer");
  fmt::print("To publish it:  hf upload USER/NAME {}\n", request.output.string());
  return 0;
}

}  // namespace
}  // namespace jiboia

int main(int argc, char** argv) {
  using namespace jiboia;
  CLI::App app(kDescription);
  app.footer(kFooter);
  Request request;
  app.add_option("--checkpoint", request.checkpoint,
                 "A run's output_dir (its newest undamaged checkpoint is taken), a checkpoint, or "
                 "any Hugging Face or mamba_ssm Mamba folder with safetensors")
      ->required();
  app.add_option("--output", request.output, "The folder to write; created when missing")
      ->required();
  app.add_option("--dtype", request.dtype,
                 "Of the weights: float32, or bfloat16 (A_log and D stay float32)")
      ->check(CLI::IsMember({"float32", "bfloat16"}))
      ->capture_default_str();
  app.add_option("--max-shard-size", request.max_shard_size,
                 "Larger models are cut into files of at most this size, e.g. 500MB, 5GB, 2GiB")
      ->capture_default_str();
  app.add_option("--model-card", request.model_card,
                 "Markdown file to become README.md, instead of a generated one");
  return run_program("export", app, argc, argv, [&] { return export_model(request); });
}
