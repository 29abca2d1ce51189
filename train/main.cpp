#include <CLI/CLI.hpp>
#include <iostream>

#include "core/log.h"
#include "train/start_times.h"
#include "train/tools/program.h"
#include "train/trainer.h"

namespace jiboia {
namespace {

struct Arguments {
  std::string config;
  std::vector<std::string> overrides;
  bool plan = false, print_config = false, no_resume = false, allow_data_change = false;
  bool profile = false, verify_data = false;
};

int train(const Arguments& arguments) {
  StartTimes times;
  const RunConfig config = load_config(arguments.config, arguments.overrides);
  if (arguments.print_config) {
    std::cout << to_yaml(config);
    return 0;
  }
  Exec exec = make_exec(config.device, static_cast<int>(config.threads));
  say_what_precision_means(exec, config.precision);
  times.end("device");
  const MambaLm model(config.model);
  const MemoryPlan plan = plan_memory(config, model, exec);
  if (arguments.plan) {
    std::cout << to_text(plan);
    return 0;
  }
  // What is quick to see comes first: verifying the data can take minutes.
  require_data(config);
  require(config.init_from.empty() || std::filesystem::exists(config.init_from),
          ErrorKind::kCheckpoint, "init_from is {}, which does not exist", config.init_from);
  require_memory(plan, exec);
  RunFolder folder(config.output_dir);
  if (arguments.no_resume && !CheckpointStore(folder, config.checkpoint).steps().empty()) {
    fail(ErrorKind::kConfig, "--no-resume, but {} holds checkpoints; choose another output_dir",
         folder.checkpoints().string());
  }
  times.end("plan");
  RunData data =
      open_data(config, arguments.verify_data ? Verification::kAll : Verification::kChanged);
  times.end("data");
  Trainer trainer(config, model, plan, folder, data, exec, times);
  trainer.start(arguments.allow_data_change ? DataChange::kAllow : DataChange::kRefuse);
  if (arguments.profile) trainer.measure_ops();
  const RunEnd end = trainer.run();
  if (arguments.profile) std::cout << trainer.profile();
  if (end.signal == 0) return 0;
  log::info("stopped by a signal after step {}{}", end.step,
            config.checkpoint.contents == CheckpointContents::kAll
                ? "; start again to go on"
                : ", whose weights are saved; checkpoint.contents is weights, so no run can go on "
                  "from it");
  return 128 + end.signal;
}

}  // namespace
}  // namespace jiboia

int main(int argc, char** argv) {
  using namespace jiboia;
  CLI::App app(
      "Trains a Mamba language model, or goes on training it: whatever output_dir holds is "
      "resumed.");
  Arguments arguments;
  app.add_option("-c,--config", arguments.config, "Configuration file (YAML)")->required();
  app.add_option("--set", arguments.overrides,
                 "Overrides a key: section.key=value; may be given several times")
      ->allow_extra_args(false);
  app.add_flag("--plan", arguments.plan, "Prints parameters and memory and ends; needs no data");
  app.add_flag("--print-config", arguments.print_config,
               "Prints the resolved configuration and ends; needs no data");
  app.add_flag("--no-resume", arguments.no_resume, "Refuses an output_dir that holds checkpoints");
  app.add_flag(
      "--allow-data-change", arguments.allow_data_change,
      "Goes on though the data, the seed or the row length are not those of the checkpoint");
  app.add_flag("--verify-data", arguments.verify_data,
               "Reads all data files to compare their hashes, also those that were verified before "
               "and have not changed since");
  app.add_flag("--profile", arguments.profile, "Prints the time by op when the run ends");
  app.footer(
      "Keys of the configuration:\n" + config_help() +
      "\nExit codes: 0 done, 2 usage or configuration, 3 data, 4 checkpoint, 5 numerics, 6 GPU, 7 "
      "disk,\n"
      "129 after SIGHUP, 130 after SIGINT, 143 after SIGTERM (each saves a checkpoint first),\n"
      "1 anything else.");
  return run_program("train", app, argc, argv, [&] { return train(arguments); });
}
