#include "data/tokenizer/normalizer.h"

#include <utf8proc.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <utility>

#include "core/error.h"

namespace jiboia {
namespace {

std::string apply(const NfcNormalizer&, std::string text) {
  // Characters below U+0300, whose first byte is 0xCC, never change or combine.
  const auto may_change = [](char c) { return static_cast<unsigned char>(c) >= 0xCC; };
  if (std::none_of(text.begin(), text.end(), may_change)) return text;
  utf8proc_uint8_t* result = nullptr;
  const utf8proc_ssize_t length =
      utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
                   static_cast<utf8proc_ssize_t>(text.size()), &result,
                   static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
  const std::unique_ptr<utf8proc_uint8_t, decltype(&std::free)> owner(result, &std::free);
  require(length >= 0, ErrorKind::kOutOfMemory, "NFC of a text of {} bytes: {}", text.size(),
          utf8proc_errmsg(length));
  return {reinterpret_cast<const char*>(result), static_cast<std::size_t>(length)};
}

std::string apply(const PrependNormalizer& prepend, std::string text) {
  return text.empty() ? text : prepend.text + text;
}

std::string apply(const ReplaceNormalizer& replace, std::string text) {
  return replace_all(text, replace.from, replace.to);
}

}  // namespace

std::string replace_all(std::string_view text, std::string_view from, std::string_view to) {
  std::string result;
  result.reserve(text.size() + text.size() / 2);
  std::size_t begin = 0;
  for (std::size_t at; (at = text.find(from, begin)) != text.npos; begin = at + from.size()) {
    result += text.substr(begin, at - begin);
    result += to;
  }
  return result += text.substr(begin);
}

std::string normalize(std::string text, const std::vector<Normalizer>& normalizers) {
  for (const Normalizer& normalizer : normalizers) {
    text = std::visit([&](const auto& step) { return apply(step, std::move(text)); }, normalizer);
  }
  return text;
}

}  // namespace jiboia
