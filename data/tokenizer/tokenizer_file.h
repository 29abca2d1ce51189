#pragma once
#include <cstdint>
#include <filesystem>
#include <string>
#include <variant>
#include <vector>

#include "data/tokenizer/bpe.h"
#include "data/tokenizer/normalizer.h"

namespace jiboia {

/// A token that is found in the text as it stands, before the model sees the rest.
struct AddedToken {
  std::string text;  ///< what to look for; normalized if is_normalized
  std::int32_t id = 0;
  bool is_special = false;     ///< marks structure, e.g. the end of a document; not text
  bool is_normalized = false;  ///< looked for in the normalized text
};

/// Leaves the text in one piece.
struct WholeText {};
/// Cuts the text by each split in turn into matches and what lies between them; then takes the
/// bytes of the pieces, or of their words, as the model's symbols.
struct ByteLevelPieces {
  std::vector<std::string> splits;  ///< regular expressions
  bool add_prefix_space = false;    ///< to every piece that does not begin with one
  bool cut_words = true;            ///< by kGpt2Pattern
};
/// Replaces spaces by a visible character.
struct MetaspacePieces {
  enum class Prepend { kFirst, kAlways, kNever };
  std::string replacement;
  Prepend prepend = Prepend::kAlways;  ///< to the first piece or to all, unless it is there
  bool split = true;                   ///< begin a piece at every replacement
};
using PreTokenizer = std::variant<WholeText, ByteLevelPieces, MetaspacePieces>;

/// Token texts are bytes, spelled in GPT-2's alphabet of 256 visible characters.
struct ByteLevelDecoder {};
/// Token texts are characters, with a replacement for the space, or "<0xNN>" for a byte.
struct MetaspaceDecoder {
  std::string replacement, content;
  bool strip_leading = false;  ///< drop one space at the beginning
};
using Decoder = std::variant<ByteLevelDecoder, MetaspaceDecoder>;

/// Everything that a tokenizer.json says, checked and with names resolved.
struct TokenizerFile {
  std::vector<std::string> tokens;  ///< by id, spelled as in the file
  std::vector<AddedToken> added_tokens;
  std::vector<Normalizer> normalizers;
  PreTokenizer pre_tokenizer;
  BpeModel model;
  Decoder decoder;
  std::vector<std::int32_t> prefix_ids, suffix_ids;  ///< what the post-processor adds
};

/// Reads a tokenizer.json of one of the kinds that Tokenizer (data/tokenizer.h) describes.
/// Errors: kData for anything else, naming the file, the component and what it has.
TokenizerFile read_tokenizer_file(const std::filesystem::path& path);

/// The bytes of a token spelled in GPT-2's alphabet into `bytes`; false when another character
/// occurs. Source: openai/gpt-2, src/encoder.py, bytes_to_unicode().
bool spell_as_bytes(const std::string& token, std::string& bytes);

/// The byte that a token spelled "<0xNN>" stands for, or -1.
int byte_of_token(const std::string& token);

}  // namespace jiboia
