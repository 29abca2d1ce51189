#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <variant>
#include <vector>

#include "train/config/yaml_reader.h"

namespace jiboia {

/// The names of an enum's values in the order of its enumerators, which count from 0. Specialised
/// beside every enum that a configuration may name: the one home of those names.
template <class Enum>
inline constexpr std::array<const char*, 0> kEnumNames{};

/// The name of an enum's value in configurations and messages, e.g. "cosine".
template <class Enum>
requires(kEnumNames<Enum>.size() > 0) const char* enum_name(Enum value) {
  return kEnumNames<Enum>[static_cast<std::size_t>(value)];
}

/// An enum field, whatever its type.
class EnumRef {
 public:
  template <class Enum>
  requires(kEnumNames<Enum>.size() > 0) explicit EnumRef(Enum& field)
      : field_(&field),
        names_(kEnumNames<Enum>),
        get_(
            [](const void* at) { return static_cast<std::size_t>(*static_cast<const Enum*>(at)); }),
        set_([](void* at, std::size_t index) {
          *static_cast<Enum*>(at) = static_cast<Enum>(index);
        }) {}

  std::span<const char* const> names() const { return names_; }
  const char* name() const { return names_[get_(field_)]; }
  /// Sets the field to the value of that name; false when there is none.
  bool set(std::string_view name) const;

 private:
  void* field_;
  std::span<const char* const> names_;
  std::size_t (*get_)(const void*);
  void (*set_)(void*, std::size_t);
};

using Pair = std::array<double, 2>;

/// A field of a configuration: the types that a value can have.
using FieldRef = std::variant<bool*, std::int64_t*, double*, Pair*, std::string*, EnumRef>;

template <class T>
FieldRef field_ref(T& field) {
  if constexpr (std::is_enum_v<T>) {
    return EnumRef(field);
  } else {
    return &field;
  }
}

/// What a number may be. Bounds belong to the range unless marked open.
struct Range {
  double min = -std::numeric_limits<double>::infinity();
  double max = std::numeric_limits<double>::infinity();
  enum class Open { kNone, kMax } open = Open::kNone;

  bool contains(double value) const;
  /// E.g. "from 1 to 16", "0 or more".
  std::string text() const;
};
/// Between these fp32 holds a number to its full precision.
constexpr double kFp32Min = 1e-37;
constexpr double kFp32Max = 1e37;
constexpr Range at_least(double min) { return {.min = min}; }
constexpr Range between(double min, double max) { return {.min = min, .max = max}; }

enum class Presence { kOptional, kRequired };

/// One row of a configuration's table: everything there is to say about one key. An optional key's
/// default is the field's value in a default-constructed Config.
template <class Config>
struct Option {
  std::string path;  ///< "seed" or "section.key"
  std::function<FieldRef(Config&)> field;
  Presence presence = Presence::kOptional;
  Range range = {};
  std::string meaning;               ///< one sentence for --help, with the unit
  std::vector<std::string> aliases;  ///< what other trainers call it: for suggestions only
};

/// Path and field of an Option from one spelling: JIBOIA_FIELD(RunConfig, optim.lr).
#define JIBOIA_FIELD(Config, member) \
  .path = #member, .field = [](Config& config) { return field_ref(config.member); }

/// What a field takes, for messages and --help: "an integer from 1 to 16", "one of auto, cpu".
std::string expectation(const FieldRef& field, const Range& range);

/// Sets a field from a node of YAML. Errors: Config, with the node's place, the key's path, what
/// was found and what was expected, when the node is of another type; a range is not looked at.
void read_field(const YamlNode& node, const std::string& path, const FieldRef& field,
                const Range& range);

/// A field's value as YAML that read_field() takes back unchanged.
std::string print_field(const FieldRef& field);

/// What is wrong in a configuration, and the keys that it concerns, for the reader to point at.
struct ConfigProblem {
  std::vector<std::string> paths;
  std::string message;
};

/// The problem of a field outside its range, or of a required text that is empty.
std::optional<ConfigProblem> find_range_problem(const std::string& path, const FieldRef& field,
                                                const Range& range, Presence presence);

template <class Config>
std::optional<ConfigProblem> find_range_problem(std::span<const Option<Config>> options,
                                                Config config) {
  for (const Option<Config>& option : options) {
    auto problem =
        find_range_problem(option.path, option.field(config), option.range, option.presence);
    if (problem) return problem;
  }
  return std::nullopt;
}

/// The candidate nearest to `word` by edit distance; nothing when none is near enough to be what
/// the user meant. Ties go to the first.
std::optional<std::size_t> nearest(std::string_view word, std::span<const std::string> candidates);

}  // namespace jiboia
