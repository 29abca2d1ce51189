#pragma once
#include <cstdint>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "core/error.h"

namespace jiboia {

/// Where a JSON text comes from: the file named in every message, and the kind of those errors.
struct JsonSource {
  std::string name;
  ErrorKind kind = ErrorKind::kData;
};

/// What a JSON text may ask for. A node is an object, an array or a scalar.
struct JsonLimits {
  int depth = 16;
  std::int64_t nodes = 1'000'000;
  std::int64_t file_bytes = std::int64_t{64} << 20;
};

/// Parses JSON (RFC 8259) that nobody vouches for. Beyond the grammar it refuses what nlohmann's
/// parser lets through: duplicate keys, a byte order mark, zero bytes, bytes after the value, and
/// anything above the limits. Errors: `source.kind`, with the source's name and the place.
nlohmann::json parse_json(std::string_view text, const JsonSource& source,
                          const JsonLimits& limits = {});

/// Parses a text whose value is an object and hands its members over one by one, in the text's
/// order, so that only one of them is in memory. Repeated keys of the outermost object are the
/// caller's to refuse; `limits.nodes` holds for each member. Errors: as parse_json().
void for_each_json_member(
    std::string_view text, const JsonSource& source,
    const std::function<void(const std::string& key, const nlohmann::json& value)>& visit,
    const JsonLimits& limits = {});

/// read_text_file() and parse_json(); the source's name is the path.
nlohmann::json read_json_file(const std::filesystem::path& path, ErrorKind kind,
                              const JsonLimits& limits = {});

/// Typed access to a JSON object's members. Never converts between types: 16.0, "16" and true are
/// not integers. Refers to the value, which must outlive it. Every error has the source's kind and
/// names the source and the key.
///
/// The getters without a fallback fail when the key is absent; those with one return it when the
/// key is absent or null, the two spellings of "not set" in Hugging Face's files.
class JsonObject {
 public:
  /// Errors: when `value` is not an object.
  JsonObject(const nlohmann::json& value, JsonSource source);

  /// The member, or null when it is absent or JSON's null.
  const nlohmann::json* find(std::string_view key) const;
  /// The member, whatever its type.
  const nlohmann::json& at(std::string_view key) const;

  /// Integers in the range of int64, written without fraction or exponent.
  std::int64_t get_int64(std::string_view key) const;
  std::int64_t get_int64(std::string_view key, std::int64_t fallback) const;
  double get_double(std::string_view key) const;
  double get_double(std::string_view key, double fallback) const;
  bool get_bool(std::string_view key) const;
  bool get_bool(std::string_view key, bool fallback) const;
  std::string get_string(std::string_view key) const;
  std::string get_string(std::string_view key, std::string_view fallback) const;
  /// An object inside this one; its errors name the whole path of keys.
  JsonObject get_object(std::string_view key) const;
  /// An array, whose elements the caller checks.
  const nlohmann::json& get_array(std::string_view key) const;

  /// Throws the source's kind of error: "<source>: <key>: <message>".
  [[noreturn]] void fail_at(std::string_view key, std::string_view message) const;

 private:
  [[noreturn]] void fail_type(std::string_view key, const nlohmann::json& value,
                              const char* expected) const;

  const nlohmann::json& value_;
  JsonSource source_;
};

}  // namespace jiboia
