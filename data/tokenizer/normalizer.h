#pragma once
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace jiboia {

/// Unicode normalization form C, by utf8proc.
struct NfcNormalizer {};
/// Puts `text` before a text that is not empty.
struct PrependNormalizer {
  std::string text;
};
/// Replaces every `from`, which is not empty, by `to`.
struct ReplaceNormalizer {
  std::string from, to;
};
using Normalizer = std::variant<NfcNormalizer, PrependNormalizer, ReplaceNormalizer>;

/// Every `from` in `text`, which must not be empty, replaced by `to`.
std::string replace_all(std::string_view text, std::string_view from, std::string_view to);

/// Applies the normalizers in order to UTF-8. Errors: kOutOfMemory.
std::string normalize(std::string text, const std::vector<Normalizer>& normalizers);

}  // namespace jiboia
