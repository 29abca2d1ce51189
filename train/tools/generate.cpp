#include <CLI/CLI.hpp>
#include <filesystem>

#include "core/error.h"
#include "data/tokenizer.h"
#include "data/tokenizer/utf8.h"
#include "train/checkpoint/model_folder.h"
#include "train/generator.h"
#include "train/loaded_model.h"
#include "train/memory_plan.h"
#include "train/tools/compute_options.h"
#include "train/tools/number_option.h"
#include "train/tools/program.h"
#include "train/workspace.h"

namespace jiboia {
namespace {

struct Arguments {
  std::string model, prompt;
  std::int64_t max_new_tokens = 100;
  SamplingOptions sampling;
  ComputeOptions compute;
  bool ignore_end = false;
};

/// Errors: Data when there is none; as Tokenizer::load(); Checkpoint when the folder went away.
Tokenizer load_tokenizer(const std::filesystem::path& folder) {
  return read_while_there(folder, [&] {
    const std::filesystem::path file = folder / "tokenizer.json";
    require(std::filesystem::exists(file), ErrorKind::kData,
            "'{}' has no tokenizer.json, which text needs", folder.string());
    return Tokenizer::load(file);
  });
}

int generate(const Arguments& arguments) {
  const std::size_t valid = valid_utf8_prefix(arguments.prompt);
  require(valid == arguments.prompt.size(), ErrorKind::kInvalidArgument,
          "--prompt is not UTF-8 from byte {} on", valid);
  Exec exec = make_exec(arguments.compute.device, arguments.compute.threads);
  say_what_precision_means(exec, arguments.compute.precision);
  const Activations activations = activations_for(exec, arguments.compute.precision);
  LoadedModel loaded = load_model(arguments.model, exec, activations);
  Tokenizer tokenizer = load_tokenizer(loaded.folder);
  const ModelConfig& config = loaded.model.config();
  std::vector<std::int32_t> prompt = tokenizer.encode(arguments.prompt, true);
  // An empty prompt is the beginning of a document.
  if (prompt.empty()) {
    require(config.bos_token_id >= 0, ErrorKind::kInvalidArgument,
            "the prompt is empty and {} names no bos_token_id to begin with",
            (loaded.folder / "config.json").string());
    prompt.push_back(static_cast<std::int32_t>(config.bos_token_id));
  }

  Workspace workspace(exec, Generator::planned_bytes(loaded.model, activations, exec));
  Generator generator(loaded.model, loaded.parameters, workspace.arena());
  StreamDecoder decoder(tokenizer, true);
  for (std::int32_t token : prompt) write_stdout(decoder.append(token));
  std::optional<std::int32_t> end_token;
  if (!arguments.ignore_end && config.eos_token_id >= 0) {
    end_token = static_cast<std::int32_t>(config.eos_token_id);
  }
  SamplingOptions sampling = arguments.sampling;
  sampling.vocab_size = tokenizer.vocab_size();
  generator.generate(prompt, arguments.max_new_tokens, sampling, end_token,
                     [&](std::int32_t token) {
                       write_stdout(decoder.append(token));
                       return true;
                     });
  write_stdout(decoder.finish() + "\n");
  return 0;
}

}  // namespace
}  // namespace jiboia

int main(int argc, char** argv) {
  using namespace jiboia;
  CLI::App app("Continues a text with a Mamba language model, at constant cost for each token.");
  Arguments arguments;
  app.add_option(
         "-m,--model", arguments.model,
         "Hugging Face Mamba folder with a tokenizer.json, a checkpoint or a run's output_dir")
      ->required();
  app.add_option("-p,--prompt", arguments.prompt, "Text to continue (UTF-8); may be empty");
  app.add_option("-n,--max-new-tokens", arguments.max_new_tokens, "Tokens to add at most")
      ->capture_default_str()
      ->transform(number_in<std::int64_t>(0));
  app.add_option("--temperature", arguments.sampling.temperature,
                 "Divides the logits before sampling; 0 takes the likeliest token")
      ->capture_default_str()
      ->transform(number_in<double>(0, 100));
  app.add_option("--top-p", arguments.sampling.top_p,
                 "Samples among the likeliest tokens that together have this probability")
      ->capture_default_str()
      ->transform(number_in<double>(0, 1));
  app.add_option("--seed", arguments.sampling.seed, "Equal seeds give equal texts")
      ->capture_default_str()
      ->transform(number_in<std::uint64_t>(0));
  app.add_flag("--ignore-end", arguments.ignore_end, "Goes on after the end-of-text token");
  add_compute_options(app, arguments.compute);
  app.footer(
      "Text goes to stdout as it is made.\n"
      "Exit codes: 0 done, 2 usage, 3 tokenizer, 4 model, 5 numerics, 6 GPU, 7 disk,\n"
      "1 anything else.");
  return run_program("generate", app, argc, argv, [&] { return generate(arguments); });
}
