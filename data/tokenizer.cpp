#include "data/tokenizer.h"

#include <algorithm>
#include <optional>
#include <utility>
#include <variant>

#include "core/error.h"
#include "data/tokenizer/added_tokens.h"
#include "data/tokenizer/bpe.h"
#include "data/tokenizer/normalizer.h"
#include "data/tokenizer/regex.h"
#include "data/tokenizer/tokenizer_file.h"
#include "data/tokenizer/utf8.h"

namespace jiboia {
namespace {

/// What a token adds to decoded text.
struct DecodedToken {
  std::string bytes;
  bool is_special = false;
  bool is_byte = false;  ///< one of Llama's byte tokens
};

DecodedToken decode_token(const ByteLevelDecoder&, const std::string& token) {
  std::string bytes;
  return {spell_as_bytes(token, bytes) ? bytes : token};
}

DecodedToken decode_token(const MetaspaceDecoder& decoder, const std::string& token) {
  const std::string text = replace_all(token, decoder.replacement, decoder.content);
  const int byte = byte_of_token(text);
  if (byte < 0) return {text};
  return {.bytes = std::string(1, static_cast<char>(byte)), .is_byte = true};
}

/// Calls visit(piece) for the matches of `pattern` in `text` and for what lies between them.
template <class Visit>
void for_each_piece(const Regex& pattern, std::string_view text, const Visit& visit) {
  std::size_t begin = 0;
  while (begin < text.size()) {
    const auto match = pattern.find(text, begin);
    const std::size_t gap_end = match ? match->begin : text.size();
    if (begin < gap_end) visit(text.substr(begin, gap_end - begin));
    if (!match) return;
    visit(text.substr(match->begin, match->end - match->begin));
    begin = match->end;
  }
}

}  // namespace

struct Tokenizer::State {
  explicit State(TokenizerFile file);

  void encode_part(std::string_view text, bool at_beginning, std::vector<std::int32_t>& ids);
  void encode_pieces(const WholeText&, std::string_view text, bool at_beginning,
                     std::vector<std::int32_t>& ids);
  void encode_pieces(const ByteLevelPieces& pieces, std::string_view text, bool at_beginning,
                     std::vector<std::int32_t>& ids);
  void encode_pieces(const MetaspacePieces& pieces, std::string_view text, bool at_beginning,
                     std::vector<std::int32_t>& ids);
  void encode_splits(const ByteLevelPieces& pieces, std::size_t split, std::string_view text,
                     std::vector<std::int32_t>& ids);
  const DecodedToken& decoded(std::int32_t id) const;

  std::vector<DecodedToken> tokens;
  AddedTokens raw_added_tokens, normalized_added_tokens;
  std::vector<Normalizer> normalizers;
  PreTokenizer pre_tokenizer;
  std::vector<Regex> splits;
  std::optional<Regex> words;
  Bpe bpe;
  std::vector<std::int32_t> prefix_ids, suffix_ids;
  bool strips_leading_space = false;
};

Tokenizer::State::State(TokenizerFile file)
    : normalizers(std::move(file.normalizers)),
      pre_tokenizer(std::move(file.pre_tokenizer)),
      bpe(std::move(file.model)),
      prefix_ids(std::move(file.prefix_ids)),
      suffix_ids(std::move(file.suffix_ids)) {
  for (const std::string& token : file.tokens) {
    tokens.push_back(
        std::visit([&](const auto& kind) { return decode_token(kind, token); }, file.decoder));
  }
  if (const auto* decoder = std::get_if<MetaspaceDecoder>(&file.decoder)) {
    strips_leading_space = decoder->strip_leading;
  }
  for (const AddedToken& token : file.added_tokens) {
    tokens[token.id].is_special = token.is_special;
    (token.is_normalized ? normalized_added_tokens : raw_added_tokens).add(token.text, token.id);
  }
  if (const auto* pieces = std::get_if<ByteLevelPieces>(&pre_tokenizer)) {
    for (const std::string& split : pieces->splits) splits.emplace_back(split);
    if (pieces->cut_words) words.emplace(kGpt2Pattern);
  }
}

/// Encodes text between added tokens that were found before normalization.
void Tokenizer::State::encode_part(std::string_view text, bool at_beginning,
                                   std::vector<std::int32_t>& ids) {
  std::string normalized;
  if (!normalizers.empty()) {
    normalized = normalize(std::string(text), normalizers);
    text = normalized;
  }
  normalized_added_tokens.split(text, [&](std::string_view part, std::int32_t id) {
    if (id >= 0) return ids.push_back(id);
    const bool is_first = at_beginning && part.data() == text.data();
    std::visit([&](const auto& pieces) { encode_pieces(pieces, part, is_first, ids); },
               pre_tokenizer);
  });
}

void Tokenizer::State::encode_pieces(const WholeText&, std::string_view text, bool,
                                     std::vector<std::int32_t>& ids) {
  bpe.encode(text, ids);
}

void Tokenizer::State::encode_pieces(const ByteLevelPieces& pieces, std::string_view text, bool,
                                     std::vector<std::int32_t>& ids) {
  encode_splits(pieces, 0, text, ids);
}

void Tokenizer::State::encode_pieces(const MetaspacePieces& pieces, std::string_view text,
                                     bool at_beginning, std::vector<std::int32_t>& ids) {
  using Prepend = MetaspacePieces::Prepend;
  std::string visible = replace_all(text, " ", pieces.replacement);
  const bool wants_prefix =
      pieces.prepend == Prepend::kAlways || (pieces.prepend == Prepend::kFirst && at_beginning);
  if (wants_prefix && !visible.starts_with(pieces.replacement)) {
    visible.insert(0, pieces.replacement);
  }
  std::string_view rest = visible;
  while (!rest.empty()) {
    const std::size_t end = pieces.split ? rest.find(pieces.replacement, 1) : rest.npos;
    bpe.encode(rest.substr(0, end), ids);
    rest.remove_prefix(std::min(end, rest.size()));
  }
}

/// Encodes a piece that the splits before number `split` have cut out.
void Tokenizer::State::encode_splits(const ByteLevelPieces& pieces, std::size_t split,
                                     std::string_view text, std::vector<std::int32_t>& ids) {
  if (split < splits.size()) {
    return for_each_piece(splits[split], text, [&](std::string_view piece) {
      encode_splits(pieces, split + 1, piece, ids);
    });
  }
  std::string prefixed;
  if (pieces.add_prefix_space && !text.starts_with(' ')) {
    prefixed = fmt::format(" {}", text);
    text = prefixed;
  }
  if (!words) return bpe.encode(text, ids);
  for_each_piece(*words, text, [&](std::string_view word) { bpe.encode(word, ids); });
}

const DecodedToken& Tokenizer::State::decoded(std::int32_t id) const {
  require(id >= 0 && std::cmp_less(id, tokens.size()), ErrorKind::kInvalidArgument,
          "tokenizer: no token has the id {}, there are {}", id, tokens.size());
  return tokens[id];
}

Tokenizer::Tokenizer(std::unique_ptr<State> state) : state_(std::move(state)) {}
Tokenizer::~Tokenizer() = default;
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;

Tokenizer Tokenizer::load(const std::filesystem::path& path) {
  return Tokenizer(std::make_unique<State>(read_tokenizer_file(path)));
}

std::vector<std::int32_t> Tokenizer::encode(std::string_view text, bool add_special_tokens) {
  std::string repaired;
  if (valid_utf8_prefix(text) < text.size()) {
    repaired = repaired_utf8(text);
    text = repaired;
  }
  std::vector<std::int32_t> ids;
  if (add_special_tokens) ids = state_->prefix_ids;
  state_->raw_added_tokens.split(text, [&](std::string_view part, std::int32_t id) {
    if (id >= 0) return ids.push_back(id);
    state_->encode_part(part, part.data() == text.data(), ids);
  });
  if (add_special_tokens) {
    ids.insert(ids.end(), state_->suffix_ids.begin(), state_->suffix_ids.end());
  }
  return ids;
}

std::string Tokenizer::decode(std::span<const std::int32_t> ids, bool skip_special_tokens) const {
  std::string text, byte_run;
  const auto end_byte_run = [&] {
    if (valid_utf8_prefix(byte_run) == byte_run.size()) {
      text += byte_run;
    } else {
      for (std::size_t i = 0; i < byte_run.size(); ++i) text += kReplacementCharacter;
    }
    byte_run.clear();
  };
  for (const std::int32_t id : ids) {
    const DecodedToken& token = state_->decoded(id);
    if (token.is_special && skip_special_tokens) continue;
    if (token.is_byte) {
      byte_run += token.bytes;
      continue;
    }
    end_byte_run();
    text += token.bytes;
  }
  end_byte_run();
  if (state_->strips_leading_space && text.starts_with(' ')) text.erase(0, 1);
  return repaired_utf8(text);
}

std::int64_t Tokenizer::vocab_size() const {
  return static_cast<std::int64_t>(state_->tokens.size());
}

std::string StreamDecoder::append(std::int32_t id) {
  const DecodedToken& token = tokenizer_.state_->decoded(id);
  if (token.is_special && skip_special_tokens_) return {};
  incomplete_ += token.bytes;
  std::string text;
  incomplete_.erase(0, append_complete_utf8(incomplete_, text));
  if (text.empty()) return text;
  if (at_beginning_ && tokenizer_.state_->strips_leading_space && text[0] == ' ') text.erase(0, 1);
  at_beginning_ = false;
  return text;
}

std::string StreamDecoder::finish() { return repaired_utf8(std::exchange(incomplete_, {})); }

}  // namespace jiboia
