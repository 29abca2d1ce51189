#include "data/tokenizer/utf8.h"

#include <cstdint>
#include <cstring>

namespace jiboia {
namespace {

using Kind = Utf8Step::Kind;

/// How many bytes follow a lead byte, and what the first of them may be.
struct LeadByte {
  std::size_t followers;
  unsigned char low = 0x80;
  unsigned char high = 0xBF;
};

LeadByte classify(unsigned char lead) {
  if (lead >= 0xC2 && lead <= 0xDF) return {1};
  if (lead == 0xE0) return {2, 0xA0, 0xBF};
  if (lead == 0xED) return {2, 0x80, 0x9F};
  if (lead >= 0xE1 && lead <= 0xEF) return {2};
  if (lead == 0xF0) return {3, 0x90, 0xBF};
  if (lead >= 0xF1 && lead <= 0xF3) return {3};
  if (lead == 0xF4) return {3, 0x80, 0x8F};
  return {0};
}

/// The length of the ASCII text that `bytes` begins with, counted in whole words of 8 bytes.
std::size_t ascii_words(std::string_view bytes) {
  std::size_t length = 0;
  for (std::uint64_t word; length + sizeof word <= bytes.size(); length += sizeof word) {
    std::memcpy(&word, bytes.data() + length, sizeof word);
    if (word & 0x8080808080808080u) break;
  }
  return length;
}

}  // namespace

Utf8Step next_utf8(std::string_view bytes) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(bytes[i]); };
  if (byte(0) < 0x80) return {Kind::kCharacter, 1};
  LeadByte lead = classify(byte(0));
  if (lead.followers == 0) return {Kind::kMalformed, 1};
  for (std::size_t i = 1; i <= lead.followers; ++i) {
    if (i == bytes.size()) return {Kind::kIncomplete, i};
    if (byte(i) < lead.low || byte(i) > lead.high) return {Kind::kMalformed, i};
    lead.low = 0x80;
    lead.high = 0xBF;
  }
  return {Kind::kCharacter, lead.followers + 1};
}

std::size_t valid_utf8_prefix(std::string_view bytes) {
  std::size_t length = 0;
  while (true) {
    length += ascii_words(bytes.substr(length));
    if (length == bytes.size()) return length;
    const Utf8Step step = next_utf8(bytes.substr(length));
    if (step.kind != Kind::kCharacter) return length;
    length += step.length;
  }
}

std::size_t append_complete_utf8(std::string_view bytes, std::string& out) {
  std::size_t taken = 0;
  while (true) {
    const std::size_t valid = valid_utf8_prefix(bytes.substr(taken));
    out += bytes.substr(taken, valid);
    taken += valid;
    if (taken == bytes.size()) return taken;
    const Utf8Step step = next_utf8(bytes.substr(taken));
    if (step.kind == Kind::kIncomplete) return taken;
    out += kReplacementCharacter;
    taken += step.length;
  }
}

std::string repaired_utf8(std::string_view bytes) {
  std::string text;
  if (append_complete_utf8(bytes, text) < bytes.size()) text += kReplacementCharacter;
  return text;
}

}  // namespace jiboia
