#include "data/tokenizer/bpe.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <limits>
#include <queue>
#include <unordered_set>
#include <utility>

#include "core/error.h"
#include "data/tokenizer/utf8.h"

namespace jiboia {
namespace {

/// SentencePiece's visible space, U+2581, with which its words begin.
constexpr std::string_view kWordMarker = "\xE2\x96\x81";
/// Longer words are rare, and would only push others out of the cache.
constexpr std::size_t kMaxCachedWord = 64;
constexpr std::size_t kCachedWords = std::size_t{1} << 15;
/// No id, and no place in a word.
constexpr std::int32_t kNone = -1;

std::uint64_t pair_key(std::int32_t left, std::int32_t right) {
  return static_cast<std::uint64_t>(left) << 32 | static_cast<std::uint32_t>(right);
}

std::uint32_t character_key(std::string_view character) {
  std::uint32_t key = 0;
  std::memcpy(&key, character.data(), character.size());
  return key;
}

/// Length of the first word of `text`: its leading markers and all up to the next marker.
std::size_t word_length(std::string_view text) {
  std::size_t begin = 0;
  while (text.substr(begin).starts_with(kWordMarker)) begin += kWordMarker.size();
  return std::min(text.find(kWordMarker, begin), text.size());
}

}  // namespace

Bpe::Bpe(BpeModel model) : model_(std::move(model)), cache_(kCachedWords) {
  merges_.reserve(model_.merges.size());
  for (std::size_t rank = 0; rank < model_.merges.size(); ++rank) {
    const BpeMerge& merge = model_.merges[rank];
    merges_.try_emplace(pair_key(merge.left, merge.right),
                        MergeRule{static_cast<std::int32_t>(rank), merge.result});
  }
  if (model_.symbols == BpeModel::Symbols::kCharacters) {
    for (const auto& [text, id] : model_.vocabulary) {
      if (!text.empty() && text.size() == utf8_length(text[0])) {
        characters_.emplace(character_key(text), id);
      }
    }
  }
  encodes_words_apart_ = is_unmergeable_at_words();
}

/// Whether no merge ever joins the end of a word with the marker of the next, so that words may be
/// encoded one by one with the same result as all at once. True for what SentencePiece trains.
bool Bpe::is_unmergeable_at_words() const {
  // An unknown marker could fuse with unknown characters before it.
  if (model_.symbols != BpeModel::Symbols::kCharacters || model_.ignore_merges ||
      character_id(kWordMarker) < 0) {
    return false;
  }
  std::unordered_set<std::int32_t> crossing;
  for (const auto& [text, id] : model_.vocabulary) {
    if (word_length(text) < text.size()) crossing.insert(id);
  }
  return std::none_of(model_.merges.begin(), model_.merges.end(),
                      [&](const BpeMerge& merge) { return crossing.contains(merge.result); });
}

const Bpe::MergeRule* Bpe::find_merge(std::int32_t left, std::int32_t right) const {
  const auto rule = merges_.find(pair_key(left, right));
  return rule == merges_.end() ? nullptr : &rule->second;
}

std::int32_t Bpe::character_id(std::string_view character) const {
  const auto found = characters_.find(character_key(character));
  return found == characters_.end() ? -1 : found->second;
}

void Bpe::encode(std::string_view piece, std::vector<std::int32_t>& ids) {
  while (!piece.empty()) {
    const std::size_t length = encodes_words_apart_ ? word_length(piece) : piece.size();
    encode_word(piece.substr(0, length), ids);
    piece.remove_prefix(length);
  }
}

void Bpe::encode_word(std::string_view word, std::vector<std::int32_t>& ids) {
  if (word.size() > kMaxCachedWord) return merge_word(word, ids);
  CachedWord& cached = cache_[std::hash<std::string_view>{}(word) % kCachedWords];
  if (cached.word != word) {
    cached.word.clear();  // in case merging fails
    cached.ids.clear();
    merge_word(word, cached.ids);
    cached.word = word;
  }
  ids.insert(ids.end(), cached.ids.begin(), cached.ids.end());
}

/// A word's bytes or characters, before any merge.
std::vector<Bpe::Symbol> Bpe::symbols_of(std::string_view word) const {
  const bool by_byte = model_.symbols == BpeModel::Symbols::kBytes;
  std::vector<Symbol> symbols;
  symbols.reserve(word.size());
  const auto append = [&](std::int32_t id) {
    const auto place = static_cast<std::int32_t>(symbols.size());
    symbols.push_back({id, place - 1, place + 1});
  };
  bool after_unknown = false;
  for (std::size_t begin = 0, length; begin < word.size(); begin += length) {
    length = by_byte ? 1 : utf8_length(word[begin]);
    const std::string_view symbol = word.substr(begin, length);
    const std::int32_t id = by_byte ? -1 : character_id(symbol);
    const bool is_spelled = id < 0 && model_.byte_ids[static_cast<unsigned char>(symbol[0])] >= 0;
    const bool is_unknown = id < 0 && !is_spelled;
    if (id >= 0) {
      append(id);
    } else if (is_spelled) {
      for (const char byte : symbol) append(model_.byte_ids[static_cast<unsigned char>(byte)]);
    } else if (!(after_unknown && model_.fuse_unknown)) {
      append(model_.unknown_id);
    }
    after_unknown = is_unknown;
  }
  symbols.back().next = kNone;
  return symbols;
}

void Bpe::merge_word(std::string_view word, std::vector<std::int32_t>& ids) const {
  require(word.size() <= std::numeric_limits<std::int32_t>::max(), ErrorKind::kInvalidArgument,
          "tokenizer: a text of {} bytes without a word boundary is too long, the limit is 2^31",
          word.size());
  if (model_.ignore_merges) {
    const auto whole = model_.vocabulary.find(std::string(word));
    if (whole != model_.vocabulary.end()) return ids.push_back(whole->second);
  }

  // The symbols form a list in which a merged pair lives on at its left place. The queue holds the
  // possible merges, most urgent first; those that other merges overtook stay in it and are
  // recognised by what stands at their place now.
  std::vector<Symbol> symbols = symbols_of(word);
  const auto count = static_cast<std::int32_t>(symbols.size());
  const auto merge_at = [&](std::int32_t place) -> const MergeRule* {
    if (place == kNone || symbols[place].id == kNone || symbols[place].next == kNone) {
      return nullptr;
    }
    return find_merge(symbols[place].id, symbols[symbols[place].next].id);
  };
  std::priority_queue<std::uint64_t, std::vector<std::uint64_t>, std::greater<>> queue;
  const auto enqueue = [&](std::int32_t place) {
    if (const MergeRule* rule = merge_at(place)) queue.push(pair_key(rule->rank, place));
  };
  for (std::int32_t place = 0; place < count; ++place) enqueue(place);

  while (!queue.empty()) {
    const auto rank = static_cast<std::int32_t>(queue.top() >> 32);
    const auto place = static_cast<std::int32_t>(queue.top());
    queue.pop();
    const MergeRule* rule = merge_at(place);
    if (!rule || rule->rank != rank) continue;
    Symbol& left = symbols[place];
    Symbol& right = symbols[left.next];
    left.id = rule->result;
    left.next = right.next;
    right.id = kNone;
    if (left.next != kNone) symbols[left.next].previous = place;
    enqueue(left.previous);
    enqueue(place);
  }
  for (std::int32_t place = 0; place != kNone; place = symbols[place].next) {
    ids.push_back(symbols[place].id);
  }
}

}  // namespace jiboia
