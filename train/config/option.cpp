#include "train/config/option.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <numeric>
#include <system_error>

#include "core/error.h"

namespace jiboia {
namespace {

template <class... Visitors>
struct Overloaded : Visitors... {
  using Visitors::operator()...;
};

/// The number that `text` spells in full, and finite; from_chars() knows no locale and no hex.
template <class Number>
std::optional<Number> parse_number(std::string_view text) {
  Number number{};
  const char* const end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, number);
  if (error != std::errc{} || stop != end || !std::isfinite(static_cast<double>(number))) {
    return std::nullopt;
  }
  return number;
}

/// Whether readers disagree on the base of a number: 010 is 8 in YAML 1.1, 10 in YAML 1.2.
bool looks_octal(std::string_view text) {
  if (text.starts_with('-')) text.remove_prefix(1);
  return text.size() > 1 && text[0] == '0' && text[1] >= '0' && text[1] <= '9';
}

template <class Number>
std::optional<Number> number_of(const YamlNode& node) {
  if (node.kind != YamlNode::Kind::kScalar || node.quoted || looks_octal(node.text)) {
    return std::nullopt;
  }
  return parse_number<Number>(node.text);
}

std::string found(const YamlNode& node) {
  switch (node.kind) {
    case YamlNode::Kind::kNull: return "empty";
    case YamlNode::Kind::kSequence: return "a list";
    case YamlNode::Kind::kMap: return "a section";
    case YamlNode::Kind::kScalar: break;
  }
  return node.quoted ? fmt::format("the quoted text {}", display(node.text)) : display(node.text);
}

/// How to write a number that is refused for its looks alone.
std::string hint(const YamlNode& node, const FieldRef& field) {
  if (node.kind != YamlNode::Kind::kScalar || std::holds_alternative<EnumRef>(field)) return "";
  if (node.quoted) return "; write it without quotes";
  if (looks_octal(node.text)) return "; leading zeros could mean octal";
  return "";
}

std::string quoted_yaml(std::string_view text) {
  std::string quoted = "\"";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      quoted += '\\';
      quoted += c;
    } else if (c == '\n') {
      quoted += "\\n";
    } else if (byte < 0x20 || byte == 0x7F) {
      quoted += fmt::format("\\x{:02x}", byte);
    } else {
      quoted += c;
    }
  }
  return quoted + '"';
}

std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), std::size_t{0});
  for (std::size_t i = 1; i <= a.size(); ++i) {
    std::size_t diagonal = row[0];
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t replaced = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({replaced, row[j] + 1, row[j - 1] + 1});
    }
  }
  return row[b.size()];
}

}  // namespace

bool EnumRef::set(std::string_view name) const {
  const auto found = std::find(names_.begin(), names_.end(), name);
  if (found == names_.end()) return false;
  set_(field_, static_cast<std::size_t>(found - names_.begin()));
  return true;
}

bool Range::contains(double value) const {
  return value >= min && (open == Open::kMax ? value < max : value <= max);
}

std::string Range::text() const {
  const bool from = std::isfinite(min);
  const bool to = std::isfinite(max);
  if (from && to) {
    return fmt::format("from {} to {}{}", min, open == Open::kMax ? "below " : "", max);
  }
  if (!from) return "";
  return fmt::format("{} or more", min);
}

std::string expectation(const FieldRef& field, const Range& range) {
  const std::string bounds = range.text();
  const std::string suffix = bounds.empty() ? "" : " " + bounds;
  return std::visit(Overloaded{[&](const bool*) -> std::string { return "true or false"; },
                               [&](const std::int64_t*) { return "an integer" + suffix; },
                               [&](const double*) { return "a number" + suffix; },
                               [&](const Pair*) { return "a list of two numbers" + suffix; },
                               [&](const std::string*) -> std::string { return "a text"; },
                               [&](const EnumRef& named) {
                                 return fmt::format("one of {}", fmt::join(named.names(), ", "));
                               }},
                    field);
}

void read_field(const YamlNode& node, const std::string& path, const FieldRef& field,
                const Range& range) {
  const bool scalar = node.kind == YamlNode::Kind::kScalar;
  const auto assign = [](auto* target, const auto& value) {
    if (value) *target = *value;
    return value.has_value();
  };
  const bool good = std::visit(
      Overloaded{
          [&](bool* target) {
            const bool known = node.text == "true" || node.text == "false";
            if (!scalar || node.quoted || !known) return false;
            *target = node.text == "true";
            return true;
          },
          [&](std::int64_t* target) { return assign(target, number_of<std::int64_t>(node)); },
          [&](double* target) { return assign(target, number_of<double>(node)); },
          [&](Pair* target) {
            return node.kind == YamlNode::Kind::kSequence && node.children.size() == 2 &&
                   assign(&(*target)[0], number_of<double>(node.children[0])) &&
                   assign(&(*target)[1], number_of<double>(node.children[1]));
          },
          [&](std::string* target) {
            if (scalar) *target = node.text;
            return scalar;
          },
          [&](const EnumRef& named) { return scalar && named.set(node.text); }},
      field);
  require(good, ErrorKind::kConfig, "{}: {} is {}, expected {}{}", node.location.text(), path,
          found(node), expectation(field, range), hint(node, field));
}

std::string print_field(const FieldRef& field) {
  return std::visit(Overloaded{[](const bool* value) { return fmt::format("{}", *value); },
                               [](const std::int64_t* value) { return fmt::format("{}", *value); },
                               [](const double* value) { return fmt::format("{}", *value); },
                               [](const Pair* value) {
                                 return fmt::format("[{}, {}]", (*value)[0], (*value)[1]);
                               },
                               [](const std::string* value) { return quoted_yaml(*value); },
                               [](const EnumRef& named) { return std::string(named.name()); }},
                    field);
}

std::optional<ConfigProblem> find_range_problem(const std::string& path, const FieldRef& field,
                                                const Range& range, Presence presence) {
  const bool good = std::visit(
      Overloaded{
          [&](const std::int64_t* value) { return range.contains(static_cast<double>(*value)); },
          [&](const double* value) { return range.contains(*value); },
          [&](const Pair* value) {
            return range.contains((*value)[0]) && range.contains((*value)[1]);
          },
          [&](const std::string* value) {
            return presence == Presence::kOptional || !value->empty();
          },
          [](const bool*) { return true; }, [](const EnumRef&) { return true; }},
      field);
  if (good) return std::nullopt;
  return ConfigProblem{
      {path},
      fmt::format("{} is {}, expected {}", path, print_field(field), expectation(field, range))};
}

std::optional<std::size_t> nearest(std::string_view word, std::span<const std::string> candidates) {
  constexpr std::size_t kLongestWord = 64;  // the distance costs the product of both lengths
  if (word.size() > kLongestWord) return std::nullopt;
  std::optional<std::size_t> best;
  std::size_t best_distance = std::max<std::size_t>(1, word.size() / 3) + 1;
  for (std::size_t i = 0; i < candidates.size(); ++i) {
    const std::size_t distance = edit_distance(word, candidates[i]);
    if (distance < best_distance) {
      best_distance = distance;
      best = i;
    }
  }
  return best;
}

}  // namespace jiboia
