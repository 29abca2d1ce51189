#pragma once
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace jiboia {

/// Text to token ids and back, as a Hugging Face tokenizer.json says. Two kinds of byte-pair
/// encoding are supported:
///  - byte-level, as GPT-2 and GPT-NeoX: normalizer null or NFC; pre-tokenizer ByteLevel, or a
///    Sequence of Split(Regex, Isolated) and ByteLevel; decoder ByteLevel;
///  - Llama 2's, as converted from SentencePiece: normalizers Prepend and Replace, or pre-tokenizer
///    Metaspace; decoder Replace, ByteFallback, Fuse, Strip; characters that have no token are
///    spelled in byte tokens, or become unk_token where the vocabulary has none.
/// Both may have added tokens and TemplateProcessing. For text that is UTF-8 the ids and the
/// decoded text equal those of the `tokenizers` library. (Characters newer than Unicode 14 may be
/// classed differently by the two Unicode tables.) Truncation and padding settings are ignored.
class Tokenizer {
 public:
  /// Reads a tokenizer.json. Errors: kIo when it cannot be read; kData, naming the component and
  /// its type, for anything that is malformed or outside of the two kinds.
  static Tokenizer load(const std::filesystem::path& path);

  ~Tokenizer();
  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;

  /// The ids of `text`, and with `add_special_tokens` those that the post-processor puts around it
  /// (e.g. "<s>" before). Added tokens that occur in the text become their ids. Bytes that are not
  /// UTF-8 are read as U+FFFD. Keeps a cache: one thread at a time. Time grows with n log n.
  /// Errors: kInvalidArgument above 2^31 bytes without a word boundary; kData when a pattern of the
  /// file exceeds its limits on this text.
  std::vector<std::int32_t> encode(std::string_view text, bool add_special_tokens);

  /// The text of `ids`, always UTF-8; `skip_special_tokens` leaves out tokens such as "<s>".
  /// Errors: kInvalidArgument for an id outside of 0..vocab_size()-1.
  std::string decode(std::span<const std::int32_t> ids, bool skip_special_tokens) const;

  /// How many tokens there are, added ones included; their ids are 0..vocab_size()-1. A model may
  /// have more rows than that.
  std::int64_t vocab_size() const;

 private:
  friend class StreamDecoder;
  struct State;
  explicit Tokenizer(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

/// Decodes tokens as they are generated, in text that is complete UTF-8 at every moment: a
/// character spelled over several tokens comes out with the last of them. The parts together equal
/// Tokenizer::decode() of all ids, except that Llama's byte tokens which form no valid text give
/// one U+FFFD per malformed part instead of one for each byte of the run.
class StreamDecoder {
 public:
  /// `tokenizer` must outlive this object.
  StreamDecoder(const Tokenizer& tokenizer, bool skip_special_tokens)
      : tokenizer_(tokenizer), skip_special_tokens_(skip_special_tokens) {}

  /// The text that `id` completes, possibly none. Errors: as Tokenizer::decode().
  std::string append(std::int32_t id);
  /// Ends the text: U+FFFD when a character was left incomplete, else nothing.
  std::string finish();

 private:
  const Tokenizer& tokenizer_;
  bool skip_special_tokens_;
  bool at_beginning_ = true;
  std::string incomplete_;
};

}  // namespace jiboia
