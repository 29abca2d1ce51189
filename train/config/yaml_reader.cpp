#include "train/config/yaml_reader.h"

#include <fmt/format.h>
#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/parser.h>

#include <algorithm>
#include <cstddef>
#include <istream>
#include <set>
#include <streambuf>
#include <utility>

#include "core/error.h"
#include "data/tokenizer/utf8.h"

namespace jiboia {
namespace {

constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";

[[noreturn]] void fail_at(const Location& location, std::string_view message) {
  fail(ErrorKind::kConfig, "{}: {}", location.text(), message);
}

/// Hands a text to yaml-cpp in small pieces and stops when too much was read since the last event:
/// an open bracket or a run of anchors makes the parser queue tokens without an end, and at 200
/// bytes of memory each a file of 1 MiB is enough to hurt.
class BoundedInput : public std::streambuf {
 public:
  explicit BoundedInput(std::string_view text) : text_(text) {
    setg(text_.data(), text_.data(), text_.data());
  }
  void note_progress() { progress_ = gptr(); }
  bool exhausted() const { return exhausted_; }

 protected:
  int_type underflow() override {
    constexpr std::ptrdiff_t kPiece = 1024;
    constexpr std::ptrdiff_t kMaxLookahead = 32 * kPiece;
    char* const end = text_.data() + text_.size();
    if (gptr() == end) return traits_type::eof();
    if (gptr() - (progress_ ? progress_ : eback()) > kMaxLookahead) {
      exhausted_ = true;
      return traits_type::eof();
    }
    setg(eback(), gptr(), gptr() + std::min(kPiece, end - gptr()));
    return traits_type::to_int_type(*gptr());
  }

 private:
  std::string text_;
  const char* progress_ = nullptr;
  bool exhausted_ = false;
};

/// Builds the tree from the parser's events and refuses at the first one that is not allowed.
class TreeBuilder : public YAML::EventHandler {
 public:
  TreeBuilder(std::string_view text, std::string source, BoundedInput& input)
      : text_(text), source_(std::move(source)), input_(input) {}

  YamlNode take_root() { return std::move(root_); }

  void OnDocumentStart(const YAML::Mark& mark) override {
    if (++documents_ > 1) fail_at(place(mark), "a second document: a configuration is one");
  }
  void OnDocumentEnd() override {}
  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    add(node(YamlNode::Kind::kNull, mark, "", anchor));
  }
  void OnAlias(const YAML::Mark& mark, YAML::anchor_t) override {
    fail_at(place(mark), "aliases are not allowed: repeat the value");
  }
  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                const std::string& value) override {
    YamlNode scalar = node(YamlNode::Kind::kScalar, mark, tag, anchor);
    if (value.find('\0') != std::string::npos) fail_at(scalar.location, "a zero byte in a text");
    scalar.text = value;
    scalar.quoted = tag == "!";
    add(std::move(scalar));
  }
  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value) override {
    open(node(YamlNode::Kind::kSequence, mark, tag, anchor));
  }
  void OnSequenceEnd() override { close(); }
  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value) override {
    open(node(YamlNode::Kind::kMap, mark, tag, anchor));
  }
  void OnMapEnd() override { close(); }

 private:
  /// A map or sequence whose end has not been seen yet.
  struct OpenNode {
    YamlNode node;
    std::set<std::string> keys = {};
    YamlNode key = {};
    bool key_is_next = true;
  };

  Location place(const YAML::Mark& mark) const {
    return {source_, std::max(mark.line, 0) + 1, std::max(mark.column, 0) + 1};
  }

  YamlNode node(YamlNode::Kind kind, const YAML::Mark& mark, const std::string& tag,
                YAML::anchor_t anchor) {
    input_.note_progress();
    YamlNode result{.kind = kind, .location = place(mark)};
    if (++nodes_ > kMaxConfigNodes) {
      fail_at(result.location, fmt::format("more than {} values", kMaxConfigNodes));
    }
    if (anchor != YAML::NullAnchor) fail_at(result.location, "anchors are not allowed");
    // The parser gives every quoted scalar the tag "!": a written one shows in the text.
    const bool written = mark.pos >= 0 && static_cast<std::size_t>(mark.pos) < text_.size() &&
                         text_[static_cast<std::size_t>(mark.pos)] == '!';
    if (written || (!tag.empty() && tag != "?" && tag != "!")) {
      fail_at(result.location, "tags are not allowed");
    }
    return result;
  }

  void open(YamlNode node) {
    if (expects_key()) fail_at(node.location, "a key must be a text");
    if (open_.size() == kMaxConfigDepth) {
      fail_at(node.location, fmt::format("nested deeper than {} levels", kMaxConfigDepth));
    }
    open_.push_back({.node = std::move(node)});
  }

  void close() {
    YamlNode node = std::move(open_.back().node);
    open_.pop_back();
    add(std::move(node));
  }

  bool expects_key() const {
    return !open_.empty() && open_.back().node.kind == YamlNode::Kind::kMap &&
           open_.back().key_is_next;
  }

  void add(YamlNode node) {
    if (open_.empty()) {
      root_ = std::move(node);
      return;
    }
    OpenNode& parent = open_.back();
    if (expects_key()) {
      if (node.kind != YamlNode::Kind::kScalar) fail_at(node.location, "a key must be a text");
      if (node.text == "<<") {
        fail_at(node.location, "merge keys ('<<') are not allowed: repeat the values");
      }
      if (!parent.keys.insert(node.text).second) {
        fail_at(node.location, fmt::format("duplicate key {}", display(node.text)));
      }
      parent.key = std::move(node);
      parent.key_is_next = false;
      return;
    }
    if (parent.node.kind == YamlNode::Kind::kMap) {
      node.key = std::move(parent.key.text);
      node.key_location = std::move(parent.key.location);
      parent.key_is_next = true;
    }
    parent.node.children.push_back(std::move(node));
  }

  std::string_view text_;
  std::string source_;
  BoundedInput& input_;
  std::vector<OpenNode> open_;
  YamlNode root_;
  int nodes_ = 0;
  int documents_ = 0;
};

}  // namespace

std::string Location::text() const {
  return line == 0 ? source : fmt::format("{}:{}:{}", source, line, column);
}

std::string display(std::string_view text) {
  constexpr std::size_t kMaxShown = 80;
  std::string shown;
  std::size_t i = 0;
  while (i < text.size() && shown.size() < kMaxShown) {
    const auto byte = static_cast<unsigned char>(text[i]);
    const Utf8Step step = next_utf8(text.substr(i));
    if (step.kind != Utf8Step::Kind::kCharacter || byte < 0x20 || byte == 0x7F) {
      shown += fmt::format("\\x{:02x}", byte);
      ++i;
    } else {
      shown += text.substr(i, step.length);
      i += step.length;
    }
  }
  return fmt::format("'{}{}'", shown, i < text.size() ? "..." : "");
}

void require_clean_text(std::string_view text, const std::string& source) {
  int line = 1;
  std::size_t line_start = 0;
  for (std::size_t i = 0; i < text.size();) {
    const auto byte = static_cast<unsigned char>(text[i]);
    const auto refuse = [&](const char* what) {
      fail_at({source, line, static_cast<int>(i - line_start) + 1},
              fmt::format("{} (byte 0x{:02x})", what, byte));
    };
    const bool line_end = byte == '\n' || text.substr(i, 2) == "\r\n";
    if (byte == '\t') refuse("a tab: use spaces");
    if ((byte < 0x20 && !line_end) || byte == 0x7F) refuse("a control character");
    const Utf8Step step = next_utf8(text.substr(i));
    if (step.kind != Utf8Step::Kind::kCharacter) refuse("not UTF-8");
    i += step.length;
    if (byte == '\n') {
      ++line;
      line_start = i;
    }
  }
}

YamlNode read_yaml(std::string_view text, const std::string& source) {
  if (text.size() > kMaxConfigBytes) {
    fail(ErrorKind::kConfig, "{}: {} bytes, more than the {} that a configuration may have", source,
         text.size(), kMaxConfigBytes);
  }
  if (text.starts_with(kByteOrderMark)) text.remove_prefix(kByteOrderMark.size());
  require_clean_text(text, source);

  BoundedInput input(text);
  TreeBuilder builder(text, source, input);
  std::istream stream(&input);
  try {
    YAML::Parser parser(stream);
    while (parser.HandleNextDocument(builder)) {
    }
  } catch (const YAML::Exception& error) {
    if (!input.exhausted()) {
      fail_at({source, std::max(error.mark.line, 0) + 1, std::max(error.mark.column, 0) + 1},
              error.msg);
    }
  } catch (const Error&) {
    if (!input.exhausted()) throw;  // otherwise it is about a text that ends where reading stopped
  }
  if (input.exhausted()) {
    fail(ErrorKind::kConfig, "{}: a value that does not end within 32 KiB", source);
  }
  return builder.take_root();
}

}  // namespace jiboia
