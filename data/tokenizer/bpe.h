#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace jiboia {

/// Two neighbouring tokens become one.
struct BpeMerge {
  std::int32_t left, right, result;
};

/// A byte-pair encoding, as a tokenizer.json describes it.
struct BpeModel {
  /// What a piece of text is cut into before merging.
  enum class Symbols { kBytes, kCharacters };
  Symbols symbols = Symbols::kBytes;
  /// Token ids by the text (bytes) that they stand for.
  std::unordered_map<std::string, std::int32_t> vocabulary;
  std::vector<BpeMerge> merges;  ///< the earlier, the more urgent
  /// Ids of the 256 bytes, or all -1. For kBytes these are the symbols; for kCharacters they spell
  /// the characters that are not in the vocabulary.
  std::array<std::int32_t, 256> byte_ids;
  std::int32_t unknown_id = -1;  ///< the token of a symbol that has no other, or -1
  bool fuse_unknown = false;     ///< one unknown token for a run of unknown symbols
  bool ignore_merges = false;    ///< a piece that is a token is that token, whatever the merges say
};

/// Encodes pieces of text. Remembers recent words, so one object serves one thread at a time.
/// Source: Sennrich et al. 2016, arXiv:1508.07909.
class Bpe {
 public:
  explicit Bpe(BpeModel model);

  /// Appends the tokens of `piece`, UTF-8 of less than 2^31 bytes, to `ids`. The merge that comes
  /// first in the list is done first, the leftmost of equal ones first. Takes O(n log n) time and
  /// 20 to 30 bytes of memory per byte of the longest part without a word boundary.
  /// Errors: kInvalidArgument for a longer piece.
  void encode(std::string_view piece, std::vector<std::int32_t>& ids);

 private:
  struct MergeRule {
    std::int32_t rank, result;
  };
  /// A link of the list that a word is while its symbols are merged.
  struct Symbol {
    std::int32_t id, previous, next;
  };
  struct CachedWord {
    std::string word;
    std::vector<std::int32_t> ids;
  };

  bool is_unmergeable_at_words() const;
  const MergeRule* find_merge(std::int32_t left, std::int32_t right) const;
  std::int32_t character_id(std::string_view character) const;
  void encode_word(std::string_view word, std::vector<std::int32_t>& ids);
  void merge_word(std::string_view word, std::vector<std::int32_t>& ids) const;
  std::vector<Symbol> symbols_of(std::string_view word) const;

  BpeModel model_;
  std::unordered_map<std::uint64_t, MergeRule> merges_;         ///< by left and right id
  std::unordered_map<std::uint32_t, std::int32_t> characters_;  ///< by the bytes of a character
  bool encodes_words_apart_;
  std::vector<CachedWord> cache_;  ///< direct-mapped by the word's hash
};

}  // namespace jiboia
