#include "train/config/config.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <optional>
#include <utility>

#include "core/error.h"
#include "data/file.h"

namespace jiboia {
namespace {

constexpr std::string_view kInitialisationPath = "model.initialisation";

/// "optim.lr" -> {"optim", "lr"}; "seed" -> {"", "seed"}.
std::pair<std::string_view, std::string_view> split_path(std::string_view path) {
  const std::size_t dot = path.find('.');
  if (dot == std::string_view::npos) return {"", path};
  return {path.substr(0, dot), path.substr(dot + 1)};
}

bool is_section(std::string_view name) {
  return !name.empty() && std::ranges::any_of(run_options(), [&](const auto& option) {
    return split_path(option.path).first == name;
  });
}

const Option<RunConfig>* find_option(std::string_view path) {
  const auto options = run_options();
  const auto found = std::ranges::find(options, path, &Option<RunConfig>::path);
  return found == options.end() ? nullptr : &*found;
}

/// " (did you mean 'optim.lr'?)", or nothing. Looks at the keys of `section` first, then at all
/// keys, sections and other trainers' names.
std::string suggestion(std::string_view section, std::string_view key) {
  std::vector<std::string> words, paths;
  const auto add = [&](std::string_view word, std::string_view path) {
    words.emplace_back(word);
    paths.emplace_back(path);
  };
  const auto add_leaves = [&](bool same_section) {
    for (const auto& option : run_options()) {
      const auto [home, leaf] = split_path(option.path);
      if ((home == section) == same_section) add(leaf, option.path);
    }
  };
  add_leaves(true);
  for (const auto& option : run_options()) {
    for (const std::string& alias : option.aliases) add(alias, option.path);
    add(option.path, option.path);
  }
  add_leaves(false);
  if (section.empty()) {
    for (const auto& option : run_options()) {
      const std::string_view home = split_path(option.path).first;
      if (!home.empty()) add(home, home);
    }
  }
  std::string word(key);
  std::ranges::replace(word, '-', '_');
  const auto best = nearest(word, words);
  return best ? fmt::format(" (did you mean '{}'?)", paths[*best]) : "";
}

/// One key that the user gave a value.
struct Setting {
  const Option<RunConfig>* option;
  YamlNode value;
};

Setting make_setting(std::string_view section, YamlNode value) {
  const std::string path = section.empty() ? value.key : fmt::format("{}.{}", section, value.key);
  const Option<RunConfig>* option = find_option(path);
  if (option == nullptr) {
    fail(ErrorKind::kConfig, "{}: unknown key {}{}{}", value.key_location.text(),
         display(value.key), section.empty() ? "" : fmt::format(" in section '{}'", section),
         suggestion(section, value.key));
  }
  return {option, std::move(value)};
}

std::vector<Setting> read_settings(std::string_view text, const std::string& source) {
  YamlNode root = read_yaml(text, source);
  require(root.kind != YamlNode::Kind::kNull, ErrorKind::kConfig, "{}: empty configuration",
          source);
  require(root.kind == YamlNode::Kind::kMap, ErrorKind::kConfig,
          "{}: expected keys and values, 'key: value'", root.location.text());
  std::vector<Setting> settings;
  for (YamlNode& node : root.children) {
    if (!is_section(node.key)) {
      settings.push_back(make_setting("", std::move(node)));
      continue;
    }
    require(node.kind == YamlNode::Kind::kMap, ErrorKind::kConfig,
            "{}: '{}' is a section: expected keys below it", node.location.text(), node.key);
    for (YamlNode& child : node.children) {
      settings.push_back(make_setting(node.key, std::move(child)));
    }
  }
  return settings;
}

/// An override's value is taken as it stands, so that a text needs no quotes of YAML's; a list
/// is YAML.
Setting read_override(const std::string& override) {
  const Location location{.source = "--set " + display(override)};
  require_clean_text(override, location.source);
  const std::size_t equals = override.find('=');
  require(equals != std::string::npos, ErrorKind::kConfig, "{}: expected section.key=value",
          location.source);
  const std::string path = override.substr(0, equals);
  const std::string text = override.substr(equals + 1);
  const Option<RunConfig>* option = find_option(path);
  if (option == nullptr) {
    if (is_section(path)) fail(ErrorKind::kConfig, "{}: names a section", location.source);
    const auto [section, key] = split_path(path);
    fail(ErrorKind::kConfig, "{}: unknown key {}{}", location.source, display(path),
         suggestion(section, key));
  }
  RunConfig scratch;
  if (std::holds_alternative<Pair*>(option->field(scratch))) {
    return {option, read_yaml(text, location.source)};
  }
  return {option, {.kind = YamlNode::Kind::kScalar, .location = location, .text = text}};
}

RunConfig build(const std::vector<Setting>& settings, const std::string& source) {
  RunConfig config;
  std::map<std::string_view, Location> places;
  const auto apply = [&](const Setting& setting) {
    const auto& [option, value] = setting;
    read_field(value, option->path, option->field(config), option->range);
    places[option->path] = value.location;
  };
  // The initialisation decides the defaults of other keys of the model, so it goes first.
  const auto decides_defaults = [](const Setting& setting) {
    return setting.option->path == kInitialisationPath;
  };
  for (const Setting& setting : settings) {
    if (decides_defaults(setting)) apply(setting);
  }
  config.model = model_defaults(config.model.initialisation);
  for (const Setting& setting : settings) {
    if (!decides_defaults(setting)) apply(setting);
  }

  std::vector<std::string> missing;
  for (const auto& option : run_options()) {
    if (option.presence == Presence::kRequired && !places.contains(option.path)) {
      missing.push_back(fmt::format("'{}'", option.path));
    }
  }
  require(missing.empty(), ErrorKind::kConfig, "{}:1:1: required and not set: {}", source,
          fmt::join(missing, ", "));

  if (const auto problem = find_problem(config)) {
    Location where{source, 1, 1};
    for (const std::string& path : problem->paths) {
      if (const auto place = places.find(path); place != places.end()) {
        where = place->second;
        break;
      }
    }
    fail(ErrorKind::kConfig, "{}: {}", where.text(), problem->message);
  }
  config.model = resolved(config.model);
  return config;
}

std::string default_text(const Option<RunConfig>& option) {
  if (option.presence == Presence::kRequired) return "required";
  RunConfig defaults;
  return "default " + print_field(option.field(defaults));
}

}  // namespace

std::optional<ConfigProblem> find_problem(const RunConfig& config) {
  if (auto problem = find_problem(config.model)) {
    for (std::string& path : problem->paths) path = "model." + path;
    problem->message = "model." + problem->message;
    return problem;
  }
  if (auto problem = find_range_problem(run_options(), config)) return problem;

  const TrainConfig& train = config.train;
  const ScheduleConfig& schedule = config.schedule;
  if (train.global_batch_size % train.micro_batch_size != 0) {
    return ConfigProblem{
        {"train.global_batch_size", "train.micro_batch_size"},
        fmt::format("train.global_batch_size is {}, not a multiple of train.micro_batch_size, "
                    "which is {}",
                    train.global_batch_size, train.micro_batch_size)};
  }
  // What a step allocates must be countable long before it could be allocated.
  const double widest = static_cast<double>(2 * config.model.intermediate_size() +
                                            2 * config.model.state_size + config.model.hidden_size);
  const double activations = static_cast<double>(train.micro_batch_size) *
                             static_cast<double>(config.data.seq_len) * widest *
                             static_cast<double>(config.model.num_hidden_layers);
  if (activations > 0x1p55) {
    return ConfigProblem{{"train.micro_batch_size", "data.seq_len", "model.hidden_size"},
                         fmt::format("train.micro_batch_size, data.seq_len, model.hidden_size and "
                                     "model.num_hidden_layers make a step of {:.1e} activations, "
                                     "more than any machine holds",
                                     activations)};
  }
  if (schedule.warmup_steps > train.max_steps) {
    return ConfigProblem{
        {"schedule.warmup_steps", "train.max_steps"},
        fmt::format("schedule.warmup_steps is {}, above train.max_steps, which is {}",
                    schedule.warmup_steps, train.max_steps)};
  }
  if (schedule.min_lr > config.optim.lr) {
    return ConfigProblem{{"schedule.min_lr", "optim.lr"},
                         fmt::format("schedule.min_lr is {}, above optim.lr, which is {}",
                                     schedule.min_lr, config.optim.lr)};
  }
  const bool cools_down =
      schedule.name == ScheduleName::kCosineCooldown || schedule.name == ScheduleName::kWsd;
  if (cools_down && schedule.cooldown_steps == 0) {
    return ConfigProblem{{"schedule.name", "schedule.cooldown_steps"},
                         fmt::format("schedule.name is {}, which needs schedule.cooldown_steps",
                                     enum_name(schedule.name))};
  }
  if (cools_down && schedule.cooldown_steps > train.max_steps - schedule.warmup_steps) {
    return ConfigProblem{
        {"schedule.cooldown_steps", "schedule.warmup_steps", "train.max_steps"},
        fmt::format("schedule.cooldown_steps is {}, more than the {} steps between "
                    "schedule.warmup_steps and train.max_steps",
                    schedule.cooldown_steps, train.max_steps - schedule.warmup_steps)};
  }
  if (config.eval.every > 0 && config.data.validation.empty()) {
    return ConfigProblem{
        {"eval.every", "data.validation"},
        fmt::format("eval.every is {}, but data.validation is empty", config.eval.every)};
  }
  return std::nullopt;
}

RunConfig parse_config(std::string_view text, const std::string& source,
                       const std::vector<std::string>& overrides) {
  std::vector<Setting> settings = read_settings(text, source);
  for (const std::string& override : overrides) settings.push_back(read_override(override));
  return build(settings, source);
}

RunConfig load_config(const std::filesystem::path& path,
                      const std::vector<std::string>& overrides) {
  std::string text;
  try {
    text = read_text_file(path, kMaxConfigBytes);
  } catch (const Error& error) {
    throw Error(ErrorKind::kConfig, error.what());
  }
  return parse_config(text, path.string(), overrides);
}

std::string to_yaml(const RunConfig& config) {
  RunConfig copy = config;
  std::string text;
  std::string_view section;
  for (const auto& option : run_options()) {
    const auto [home, leaf] = split_path(option.path);
    if (home != section) text += fmt::format("{}:\n", home);
    section = home;
    text +=
        fmt::format("{}{}: {}\n", home.empty() ? "" : "  ", leaf, print_field(option.field(copy)));
  }
  return text;
}

std::string config_help() {
  RunConfig defaults;
  std::string text;
  for (const auto& option : run_options()) {
    text += fmt::format("  {}\n      {} ({}; {})\n", option.path, option.meaning,
                        expectation(option.field(defaults), option.range), default_text(option));
  }
  return text;
}

}  // namespace jiboia
