#pragma once
#include <cstddef>
#include <string>
#include <string_view>

namespace jiboia {

/// U+FFFD, which stands for bytes that are not UTF-8.
inline constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";

/// What a byte sequence begins with.
struct Utf8Step {
  enum class Kind {
    kCharacter,   ///< one well-formed character
    kMalformed,   ///< bytes that no text can have here
    kIncomplete,  ///< the beginning of a character, cut off by the end of the bytes
  };
  Kind kind;
  std::size_t length;  ///< in bytes; of malformed ones the part that one U+FFFD replaces
};

/// Classifies the beginning of `bytes`, which must not be empty. Surrogates, overlong forms and
/// code points above U+10FFFF are malformed. Source: The Unicode Standard, table 3-7 and, for the
/// length of malformed parts, "U+FFFD Substitution of Maximal Subparts" in section 3.9.
Utf8Step next_utf8(std::string_view bytes);

/// The length of the longest beginning of `bytes` that is UTF-8.
std::size_t valid_utf8_prefix(std::string_view bytes);

/// Appends `bytes` to `out` with every malformed part replaced by U+FFFD, but stops at an
/// incomplete last character. Returns how many bytes it took.
std::size_t append_complete_utf8(std::string_view bytes, std::string& out);

/// `bytes` as UTF-8, every malformed or incomplete part replaced by U+FFFD.
std::string repaired_utf8(std::string_view bytes);

/// The length in bytes of the character that begins with `lead`, in text known to be UTF-8.
inline std::size_t utf8_length(char lead) {
  const auto byte = static_cast<unsigned char>(lead);
  return byte < 0x80 ? 1 : byte < 0xE0 ? 2 : byte < 0xF0 ? 3 : 4;
}

}  // namespace jiboia
