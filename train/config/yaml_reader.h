#pragma once
#include <string>
#include <string_view>
#include <vector>

namespace jiboia {

/// Where something stands in a configuration, for messages: "train.yaml:12:3". Line and column
/// count from 1; line 0 stands for a source that is one line anyway (a command line's override).
struct Location {
  std::string source;
  int line = 0;
  int column = 0;

  std::string text() const;
};

/// A node of a parsed configuration.
struct YamlNode {
  enum class Kind { kNull, kScalar, kSequence, kMap };

  Kind kind = Kind::kNull;
  Location location;
  std::string text;                ///< of a scalar
  bool quoted = false;             ///< a scalar that is not plain, so never a number
  std::string key;                 ///< of a child of a map
  Location key_location;           ///< of a child of a map
  std::vector<YamlNode> children;  ///< of a map or a sequence, in the file's order
};

/// Limits that no honest configuration comes near.
inline constexpr int kMaxConfigBytes = 1 << 20;
inline constexpr int kMaxConfigDepth = 16;
inline constexpr int kMaxConfigNodes = 10'000;

/// Parses YAML that nobody vouches for. Of YAML only maps with text keys, sequences and scalars are
/// taken: no tag, anchor, alias, merge key, duplicate key or second document. The text must be
/// UTF-8 (with or without a byte order mark) without tabs and other control characters; lines end
/// in LF or CRLF. The limits above are enforced while parsing. An empty text gives a null node.
/// Errors: Config, "<source>:<line>:<column>: <message>".
YamlNode read_yaml(std::string_view text, const std::string& source);

/// The rules of read_yaml() for bytes alone: UTF-8 without control characters.
/// Errors: Config, with the place.
void require_clean_text(std::string_view text, const std::string& source);

/// Text of a user for a message: in single quotes, on one line, cut when long.
std::string display(std::string_view text);

}  // namespace jiboia
