#pragma once
#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

namespace jiboia {

/// The pattern with which GPT-2 cuts text into words before byte-level BPE: contractions, letters,
/// numbers and other signs, each with one space before it, and white space.
/// Source: openai/gpt-2, src/encoder.py.
inline constexpr std::string_view kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

/// A regular expression of a tokenizer.json, run by PCRE2 with Unicode properties. Those patterns
/// are written for Oniguruma: constructs that the two libraries read differently are refused, and
/// \s is taken as the Unicode property White_Space, as Oniguruma does. One thread at a time.
class Regex {
 public:
  /// Where a match is, in bytes.
  struct Match {
    std::size_t begin, end;
  };

  /// Errors: kData, quoting the pattern, when it is malformed, uses something that is not
  /// supported, or matches the empty text.
  explicit Regex(std::string_view pattern);
  ~Regex();
  Regex(Regex&&) noexcept;
  Regex& operator=(Regex&&) noexcept;

  /// The first match in `text`, which must be UTF-8, that begins at or after `from`.
  /// Errors: kData when the search exceeds its limits of steps or memory.
  std::optional<Match> find(std::string_view text, std::size_t from) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace jiboia
