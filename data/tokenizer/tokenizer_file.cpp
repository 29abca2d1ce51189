#include "data/tokenizer/tokenizer_file.h"

#include <algorithm>
#include <charconv>
#include <initializer_list>
#include <string_view>
#include <unordered_map>
#include <utility>

#include "core/error.h"
#include "data/json.h"
#include "data/tokenizer/utf8.h"

namespace jiboia {
namespace {

using nlohmann::json;

/// Vocabularies and merge lists of a million entries, with room.
constexpr JsonLimits kLimits{
    .depth = 16, .nodes = 8'000'000, .file_bytes = std::int64_t{256} << 20};

/// An object of the file with all the keys that it may have: one that is not known here could
/// change what the tokenizer does.
JsonObject object_with(const json& value, const JsonSource& where,
                       std::initializer_list<std::string_view> keys) {
  JsonObject object(value, where);
  for (const auto& [key, member] : value.items()) {
    if (std::find(keys.begin(), keys.end(), key) == keys.end()) {
      object.fail_at(key, "this key is not supported");
    }
  }
  return object;
}

JsonSource inside(const JsonSource& where, std::string_view part) {
  return {fmt::format("{}: {}", where.name, part), where.kind};
}

JsonSource inside(const JsonSource& where, std::string_view part, std::size_t index) {
  return {fmt::format("{}: {}[{}]", where.name, part, index), where.kind};
}

std::string type_of(const json& value, const JsonSource& where) {
  return JsonObject(value, where).get_string("type");
}

[[noreturn]] void fail_unsupported(const JsonSource& where, std::string_view type,
                                   std::string_view supported) {
  fail(where.kind, "{}: the type '{:.80}' is not supported; supported are {}", where.name, type,
       supported);
}

/// The elements of an array-typed member, each given to `visit` with its place.
template <class Visit>
void for_each_element(const JsonObject& object, std::string_view key, const JsonSource& where,
                      Visit&& visit) {
  std::size_t index = 0;
  for (const json& element : object.get_array(key)) visit(element, inside(where, key, index++));
}

/// {"String": text} or {"Regex": text}.
std::string read_pattern(const json& value, const JsonSource& where, std::string_view kind) {
  return object_with(value, where, {kind}).get_string(kind);
}

ReplaceNormalizer read_replace(const json& value, const JsonSource& where) {
  const JsonObject object = object_with(value, where, {"type", "pattern", "content"});
  ReplaceNormalizer replace{read_pattern(object.at("pattern"), inside(where, "pattern"), "String"),
                            object.get_string("content")};
  if (replace.from.empty()) object.fail_at("pattern", "is empty");
  return replace;
}

void read_normalizer(const json& value, const JsonSource& where, std::vector<Normalizer>& out) {
  const std::string type = type_of(value, where);
  if (type == "Sequence") {
    const JsonObject object = object_with(value, where, {"type", "normalizers"});
    for_each_element(object, "normalizers", where,
                     [&](const json& element, const JsonSource& place) {
                       read_normalizer(element, place, out);
                     });
  } else if (type == "NFC") {
    object_with(value, where, {"type"});
    out.push_back(NfcNormalizer{});
  } else if (type == "Prepend") {
    const JsonObject object = object_with(value, where, {"type", "prepend"});
    out.push_back(PrependNormalizer{object.get_string("prepend")});
  } else if (type == "Replace") {
    out.push_back(read_replace(value, where));
  } else {
    fail_unsupported(where, type, "null, NFC, Prepend, Replace and Sequence");
  }
}

/// The last of the components that byte-level tokenizers cut text with.
void read_byte_level(const json& value, const JsonSource& where, ByteLevelPieces& out) {
  const JsonObject object =
      object_with(value, where, {"type", "add_prefix_space", "trim_offsets", "use_regex"});
  out.add_prefix_space = object.get_bool("add_prefix_space");
  out.cut_words = object.get_bool("use_regex", true);
}

ByteLevelPieces read_split_sequence(const json& value, const JsonSource& where) {
  const JsonObject object = object_with(value, where, {"type", "pretokenizers"});
  const std::size_t count = object.get_array("pretokenizers").size();
  ByteLevelPieces pieces;
  std::size_t index = 0;
  for_each_element(object, "pretokenizers", where,
                   [&](const json& element, const JsonSource& place) {
                     const std::string type = type_of(element, place);
                     const char* expected = ++index == count ? "ByteLevel" : "Split";
                     if (type != expected) {
                       fail_unsupported(place, type, fmt::format("{} at this place", expected));
                     }
                     if (index == count) return read_byte_level(element, place, pieces);
                     const JsonObject split =
                         object_with(element, place, {"type", "pattern", "behavior", "invert"});
                     if (split.get_string("behavior") != "Isolated") {
                       split.fail_at("behavior", "only 'Isolated' is supported");
                     }
                     if (split.get_bool("invert"))
                       split.fail_at("invert", "only false is supported");
                     pieces.splits.push_back(
                         read_pattern(split.at("pattern"), inside(place, "pattern"), "Regex"));
                   });
  require(count > 0, where.kind, "{}: pretokenizers: is empty", where.name);
  return pieces;
}

MetaspacePieces read_metaspace(const json& value, const JsonSource& where) {
  using Prepend = MetaspacePieces::Prepend;
  const JsonObject object =
      object_with(value, where, {"type", "replacement", "prepend_scheme", "split"});
  MetaspacePieces pieces;
  pieces.replacement = object.get_string("replacement");
  if (pieces.replacement.empty()) object.fail_at("replacement", "is empty");
  const std::string scheme = object.get_string("prepend_scheme");
  if (scheme == "first") {
    pieces.prepend = Prepend::kFirst;
  } else if (scheme == "always") {
    pieces.prepend = Prepend::kAlways;
  } else if (scheme == "never") {
    pieces.prepend = Prepend::kNever;
  } else {
    object.fail_at("prepend_scheme", "is not 'first', 'always' or 'never'");
  }
  pieces.split = object.get_bool("split", true);
  return pieces;
}

PreTokenizer read_pre_tokenizer(const json& value, const JsonSource& where) {
  const std::string type = type_of(value, where);
  if (type == "Sequence") return read_split_sequence(value, where);
  if (type == "Metaspace") return read_metaspace(value, where);
  if (type != "ByteLevel") {
    fail_unsupported(where, type,
                     "null, ByteLevel, Metaspace, and Sequence of Split and ByteLevel");
  }
  ByteLevelPieces pieces;
  read_byte_level(value, where, pieces);
  return pieces;
}

Decoder read_decoder(const json& value, const JsonSource& where) {
  const std::string type = type_of(value, where);
  if (type == "ByteLevel") return ByteLevelDecoder{};
  if (type != "Sequence") fail_unsupported(where, type, "ByteLevel and Sequence");
  const JsonObject object = object_with(value, where, {"type", "decoders"});
  constexpr std::string_view kSteps[] = {"Replace", "ByteFallback", "Fuse", "Strip"};
  MetaspaceDecoder decoder;
  std::size_t count = 0;
  for_each_element(object, "decoders", where, [&](const json& element, const JsonSource& place) {
    const std::string step = type_of(element, place);
    if (count == std::size(kSteps) || step != kSteps[count]) {
      fail_unsupported(place, step, "Replace, ByteFallback, Fuse, Strip in this order");
    }
    ++count;
    if (step == "Replace") {
      const ReplaceNormalizer replace = read_replace(element, place);
      decoder.replacement = replace.from;
      decoder.content = replace.to;
    } else if (step == "Strip") {
      const JsonObject strip = object_with(element, place, {"type", "content", "start", "stop"});
      if (strip.get_string("content") != " " || strip.get_int64("start") != 1 ||
          strip.get_int64("stop") != 0) {
        fail(place.kind, "{}: only one leading space can be stripped", place.name);
      }
      decoder.strip_leading = true;
    }
  });
  require(count >= 3, where.kind, "{}: decoders: Replace, ByteFallback and Fuse are needed, got {}",
          where.name, count);
  return decoder;
}

/// The ids that a template puts before and after the text.
void read_template(const json& value, const JsonSource& where, TokenizerFile& file) {
  const JsonObject object = object_with(value, where, {"type", "single", "pair", "special_tokens"});
  const JsonObject special_tokens = object.get_object("special_tokens");
  bool text_seen = false;
  for_each_element(object, "single", where, [&](const json& element, const JsonSource& place) {
    const JsonObject item = object_with(element, place, {"Sequence", "SpecialToken"});
    if (!item.find("SpecialToken")) {
      require(!text_seen && item.get_object("Sequence").get_string("id") == "A", place.kind,
              "{}: the text A must occur once", place.name);
      text_seen = true;
      return;
    }
    const std::string name = item.get_object("SpecialToken").get_string("id");
    for (const json& id : special_tokens.get_object(name).get_array("ids")) {
      require(id.is_number_integer() && id >= 0 && id < file.tokens.size(), place.kind,
              "{}: the id of '{:.80}' is not one of the {} tokens", place.name, name,
              file.tokens.size());
      (text_seen ? file.suffix_ids : file.prefix_ids).push_back(id.get<std::int32_t>());
    }
  });
  require(text_seen, where.kind, "{}: single: the text A must occur once", where.name);
}

void read_post_processor(const json& value, const JsonSource& where, TokenizerFile& file) {
  const std::string type = type_of(value, where);
  if (type == "Sequence") {
    const JsonObject object = object_with(value, where, {"type", "processors"});
    for_each_element(object, "processors", where,
                     [&](const json& element, const JsonSource& place) {
                       read_post_processor(element, place, file);
                     });
  } else if (type == "TemplateProcessing") {
    require(file.prefix_ids.empty() && file.suffix_ids.empty(), where.kind,
            "{}: more than one template", where.name);
    read_template(value, where, file);
  } else if (type != "ByteLevel") {  // which changes offsets only
    fail_unsupported(where, type, "null, ByteLevel, TemplateProcessing and Sequence");
  }
}

using TokenIds = std::unordered_map<std::string, std::int32_t>;

/// The tokens by id. Together they must use every id from 0 up, each once.
std::vector<std::string> order_by_id(const TokenIds& ids, const JsonSource& where) {
  std::vector<std::string> tokens(ids.size());
  for (const auto& [text, id] : ids) {
    require(std::cmp_less(id, tokens.size()), where.kind,
            "{}: the token '{:.80}' has the id {}, but {} tokens use the ids 0 to {} without gaps",
            where.name, text, id, tokens.size(), tokens.size() - 1);
    std::string& place = tokens[id];
    require(place.empty(), where.kind, "{}: the tokens '{:.80}' and '{:.80}' have the same id {}",
            where.name, place, text, id);
    place = text;
  }
  return tokens;
}

/// The id `key` of `object`, which gives a token its number.
std::int32_t read_id(const JsonObject& object, std::string_view key) {
  const std::int64_t id = object.get_int64(key);
  if (id < 0 || !std::in_range<std::int32_t>(id)) {
    object.fail_at(key, fmt::format("the id {} is not between 0 and 2^31 - 1", id));
  }
  return static_cast<std::int32_t>(id);
}

std::vector<AddedToken> read_added_tokens(const JsonObject& root, const JsonSource& where) {
  std::vector<AddedToken> tokens;
  if (!root.find("added_tokens")) return tokens;
  for_each_element(root, "added_tokens", where, [&](const json& element, const JsonSource& place) {
    const JsonObject object =
        object_with(element, place,
                    {"id", "content", "special", "normalized", "single_word", "lstrip", "rstrip"});
    for (const std::string_view option : {"single_word", "lstrip", "rstrip"}) {
      if (object.get_bool(option, false)) object.fail_at(option, "only false is supported");
    }
    tokens.push_back({object.get_string("content"), read_id(object, "id"),
                      object.get_bool("special"), object.get_bool("normalized")});
    if (tokens.back().text.empty()) object.fail_at("content", "is empty");
  });
  return tokens;
}

TokenIds read_vocabulary(const JsonObject& model, const JsonSource& where) {
  const JsonObject vocabulary = model.get_object("vocab");
  TokenIds ids;
  for (const auto& [text, id] : model.at("vocab").items()) {
    require(!text.empty(), where.kind, "{}: vocab: a token is empty", where.name);
    ids.emplace(text, read_id(vocabulary, text));
  }
  require(!ids.empty(), where.kind, "{}: vocab: is empty", where.name);
  return ids;
}

/// "left right", or ["left", "right"] where the tokens may contain spaces.
std::pair<std::string, std::string> read_merge_pair(const json& value, const JsonSource& where) {
  if (value.is_array() && value.size() == 2 && value[0].is_string() && value[1].is_string()) {
    return {value[0].get<std::string>(), value[1].get<std::string>()};
  }
  const std::string line = value.is_string() ? value.get<std::string>() : "";
  const std::size_t space = line.find(' ');
  require(space != line.npos && line.find(' ', space + 1) == line.npos, where.kind,
          "{}: expected \"left right\" or [\"left\", \"right\"]", where.name);
  return {line.substr(0, space), line.substr(space + 1)};
}

std::vector<BpeMerge> read_merges(const JsonObject& model, const JsonSource& where,
                                  const TokenIds& ids) {
  std::vector<BpeMerge> merges;
  std::unordered_map<std::uint64_t, std::size_t> seen;
  for_each_element(model, "merges", where, [&](const json& element, const JsonSource& place) {
    const auto id_of = [&](const std::string& token) {
      const auto id = ids.find(token);
      require(id != ids.end(), place.kind, "{}: the token '{:.80}' is not in the vocabulary",
              place.name, token);
      return id->second;
    };
    const auto [left, right] = read_merge_pair(element, place);
    const BpeMerge merge{id_of(left), id_of(right), id_of(left + right)};
    const auto [first, is_new] = seen.emplace(
        static_cast<std::uint64_t>(merge.left) << 32 | static_cast<std::uint32_t>(merge.right),
        merges.size());
    require(is_new, place.kind, "{}: repeats merge {}", place.name, first->second);
    merges.push_back(merge);
  });
  return merges;
}

/// The ids of the 256 bytes, or all -1 when none has a token.
std::array<std::int32_t, 256> read_byte_ids(const BpeModel& model, const TokenIds& ids,
                                            const JsonSource& where) {
  std::array<std::int32_t, 256> byte_ids;
  byte_ids.fill(-1);
  if (model.symbols == BpeModel::Symbols::kBytes) {
    for (const auto& [bytes, id] : model.vocabulary) {
      if (bytes.size() == 1) byte_ids[static_cast<unsigned char>(bytes[0])] = id;
    }
  } else {
    for (const auto& [token, id] : ids) {
      if (const int byte = byte_of_token(token); byte >= 0) byte_ids[byte] = id;
    }
  }
  const auto missing = std::find(byte_ids.begin(), byte_ids.end(), -1);
  const bool has_none = std::count(byte_ids.begin(), byte_ids.end(), -1) == 256;
  require(missing == byte_ids.end() || has_none, where.kind,
          "{}: vocab: no token for the byte 0x{:02X}, though other bytes have one", where.name,
          missing - byte_ids.begin());
  return byte_ids;
}

BpeModel read_model(const json& value, const JsonSource& where, bool is_byte_level,
                    const TokenIds& ids) {
  const JsonObject object(value, where);
  if (object.get_double("dropout", 0) != 0) object.fail_at("dropout", "is not supported");
  for (const std::string_view affix : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    if (!object.get_string(affix, "").empty()) object.fail_at(affix, "is not supported");
  }
  BpeModel model;
  model.symbols = is_byte_level ? BpeModel::Symbols::kBytes : BpeModel::Symbols::kCharacters;
  model.merges = read_merges(object, where, ids);
  model.fuse_unknown = object.get_bool("fuse_unk", false);
  model.ignore_merges = object.get_bool("ignore_merges", false);
  const bool byte_fallback = object.get_bool("byte_fallback", false);
  if (byte_fallback && is_byte_level) {
    object.fail_at("byte_fallback", "is not supported with byte-level tokens");
  }

  // Tokens of other characters than GPT-2's alphabet are never made from text.
  std::string bytes;
  for (const auto& [token, id] : ids) {
    if (!is_byte_level) {
      model.vocabulary.emplace(token, id);
    } else if (spell_as_bytes(token, bytes)) {
      model.vocabulary.emplace(bytes, id);
    }
  }
  model.byte_ids.fill(-1);
  if (is_byte_level || byte_fallback) model.byte_ids = read_byte_ids(model, ids, where);
  if (const std::string unknown = object.get_string("unk_token", ""); !unknown.empty()) {
    const auto id = ids.find(unknown);
    if (id == ids.end()) {
      object.fail_at("unk_token", fmt::format("'{:.80}' is not in the vocabulary", unknown));
    }
    model.unknown_id = id->second;
  }
  require(model.byte_ids[0] >= 0 || model.unknown_id >= 0, where.kind,
          "{}: neither tokens for all bytes nor unk_token: some texts could not be encoded",
          where.name);
  return model;
}

}  // namespace

TokenizerFile read_tokenizer_file(const std::filesystem::path& path) {
  const json root_value = read_json_file(path, ErrorKind::kData, kLimits);
  const JsonSource where{path.string()};
  // Truncation and padding are a caller's business and say nothing about tokens.
  const JsonObject root =
      object_with(root_value, where,
                  {"version", "truncation", "padding", "added_tokens", "normalizer",
                   "pre_tokenizer", "post_processor", "decoder", "model"});
  TokenizerFile file;
  const JsonSource model_place = inside(where, "model");
  const JsonObject model = object_with(
      root.at("model"), model_place,
      {"type", "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix",
       "fuse_unk", "byte_fallback", "ignore_merges", "vocab", "merges"});
  if (const std::string type = model.get_string("type", "BPE"); type != "BPE") {
    fail_unsupported(model_place, type, "BPE");
  }
  const TokenIds ids = read_vocabulary(model, model_place);
  file.added_tokens = read_added_tokens(root, where);
  TokenIds all_ids = ids;
  for (const AddedToken& token : file.added_tokens) {
    const auto [known, is_new] = all_ids.emplace(token.text, token.id);
    require(known->second == token.id, where.kind,
            "{}: added_tokens: the token '{:.80}' has the ids {} and {}", where.name, token.text,
            known->second, token.id);
  }
  file.tokens = order_by_id(all_ids, where);

  if (const json* value = root.find("normalizer")) {
    read_normalizer(*value, inside(where, "normalizer"), file.normalizers);
  }
  for (AddedToken& token : file.added_tokens) {
    if (token.is_normalized) token.text = normalize(token.text, file.normalizers);
    require(!token.text.empty(), where.kind,
            "{}: added_tokens: the token {} is normalized to nothing", where.name, token.id);
  }
  if (const json* value = root.find("pre_tokenizer")) {
    file.pre_tokenizer = read_pre_tokenizer(*value, inside(where, "pre_tokenizer"));
  }
  file.decoder = read_decoder(root.at("decoder"), inside(where, "decoder"));
  const bool is_byte_level = std::holds_alternative<ByteLevelPieces>(file.pre_tokenizer);
  require(is_byte_level == std::holds_alternative<ByteLevelDecoder>(file.decoder), where.kind,
          "{}: decoder: ByteLevel goes with the pre_tokenizer ByteLevel, and only with it",
          where.name);
  file.model = read_model(root.at("model"), model_place, is_byte_level, ids);
  if (const json* value = root.find("post_processor")) {
    read_post_processor(*value, inside(where, "post_processor"), file);
  }
  return file;
}

bool spell_as_bytes(const std::string& token, std::string& bytes) {
  // Printable Latin-1 characters stand for their own code; the other bytes, in order, are the
  // characters from U+0100 up.
  static const auto kByteOfCodePoint = [] {
    std::array<int, 256 + 68> byte_of;
    byte_of.fill(-1);
    int next = 256;
    for (int byte = 0; byte < 256; ++byte) {
      const bool is_printable = (byte > 0x20 && byte < 0x7F) || (byte > 0xA0 && byte != 0xAD);
      byte_of[is_printable ? byte : next++] = byte;
    }
    return byte_of;
  }();
  bytes.clear();
  for (std::size_t i = 0; i < token.size(); i += utf8_length(token[i])) {
    const auto lead = static_cast<unsigned char>(token[i]);
    std::size_t code_point = lead;
    if (lead >= 0x80) {
      if (utf8_length(token[i]) != 2) return false;
      code_point = (lead & 0x1Fu) << 6 | (static_cast<unsigned char>(token[i + 1]) & 0x3Fu);
    }
    if (code_point >= kByteOfCodePoint.size() || kByteOfCodePoint[code_point] < 0) return false;
    bytes += static_cast<char>(kByteOfCodePoint[code_point]);
  }
  return true;
}

int byte_of_token(const std::string& token) {
  if (token.size() != 6 || !token.starts_with("<0x") || token[5] != '>') return -1;
  int byte = 0;
  const char* end = token.data() + 5;
  return std::from_chars(token.data() + 3, end, byte, 16).ptr == end ? byte : -1;
}

}  // namespace jiboia
