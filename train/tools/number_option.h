#pragma once
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <charconv>
#include <limits>
#include <string>
#include <type_traits>

namespace jiboia {

/// For CLI::Option::transform(): takes a decimal number of `low` to `high` and nothing else.
/// CLI11's own conversions cut numbers that are too large, and read "010" as octal; its ranges let
/// NaN in.
template <class Number>
CLI::Validator number_in(std::type_identity_t<Number> low,
                         std::type_identity_t<Number> high = std::numeric_limits<Number>::max()) {
  const bool open = high == std::numeric_limits<Number>::max();
  const auto take = [low, high](std::string& text) -> std::string {
    Number number{};
    const char* end = text.data() + text.size();
    const auto [rest, error] = std::from_chars(text.data(), end, number);
    if (error == std::errc() && rest == end && number >= low && number <= high) {
      text = fmt::format("{}", number);
      return "";
    }
    return fmt::format("'{}' is not a {} from {} to {}", text,
                       std::is_integral_v<Number> ? "whole number" : "number", low, high);
  };
  return CLI::Validator(take,
                        open ? fmt::format("[{}..]", low) : fmt::format("[{}..{}]", low, high));
}

}  // namespace jiboia
