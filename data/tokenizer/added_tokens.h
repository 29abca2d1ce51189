#pragma once
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace jiboia {

/// Finds tokens that stand for themselves in a text, such as "<s>": at each place the longest.
class AddedTokens {
 public:
  /// `text` must not be empty.
  void add(std::string text, std::int32_t id) {
    auto& tokens = by_first_byte_[static_cast<unsigned char>(text[0])];
    const auto shorter = std::find_if(tokens.begin(), tokens.end(), [&](const Token& token) {
      return token.text.size() < text.size();
    });
    tokens.insert(shorter, {std::move(text), id});
  }

  /// Calls visit(part, id) for the parts of `text` in order: tokens with their id, and the texts
  /// between them, never empty, with id -1.
  template <class Visit>
  void split(std::string_view text, Visit&& visit) const {
    std::size_t begin = 0;
    for (std::size_t i = 0; i < text.size();) {
      const Token* token = find(text.substr(i));
      if (!token) {
        ++i;
        continue;
      }
      if (begin < i) visit(text.substr(begin, i - begin), -1);
      visit(text.substr(i, token->text.size()), token->id);
      begin = i += token->text.size();
    }
    if (begin < text.size()) visit(text.substr(begin), -1);
  }

 private:
  struct Token {
    std::string text;
    std::int32_t id;
  };

  const Token* find(std::string_view text) const {
    for (const Token& token : by_first_byte_[static_cast<unsigned char>(text[0])]) {
      if (text.starts_with(token.text)) return &token;
    }
    return nullptr;
  }

  std::array<std::vector<Token>, 256> by_first_byte_;  ///< the longest first
};

}  // namespace jiboia
