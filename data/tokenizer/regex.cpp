#include "data/tokenizer/regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <array>
#include <cctype>

#include "core/error.h"

namespace jiboia {
namespace {

/// Backtracking steps of one search: enough for 64 MiB of white space, seconds for a bad pattern.
constexpr std::uint32_t kMaxSteps = 1u << 28;
constexpr std::uint32_t kMaxHeapKib = 256 * 1024;
constexpr std::size_t kMinJitStack = 32 * 1024;
constexpr std::size_t kMaxJitStack = std::size_t{8} << 20;

template <auto free_function>
struct Free {
  template <class T>
  void operator()(T* pointer) const {
    free_function(pointer);
  }
};
template <class T, auto free_function>
using Handle = std::unique_ptr<T, Free<free_function>>;

std::string message_of(int error) {
  std::array<PCRE2_UCHAR, 256> buffer{};
  pcre2_get_error_message(error, buffer.data(), buffer.size());
  return reinterpret_cast<const char*>(buffer.data());
}

/// Writes a pattern made for Oniguruma as PCRE2 reads it.
class Translation {
 public:
  explicit Translation(std::string_view pattern) : pattern_(pattern) {}

  std::string run() {
    while (position_ < pattern_.size()) {
      if (pattern_[position_] == '\\') {
        translate_escape();
      } else if (in_class_) {
        translate_in_class();
      } else {
        translate_outside();
      }
    }
    return std::move(result_);
  }

 private:
  bool is_at(std::string_view text) const { return pattern_.substr(position_).starts_with(text); }

  void copy(std::size_t length) {
    result_ += pattern_.substr(position_, length);
    position_ += length;
  }

  void translate_outside() {
    refuse(is_at("^") || is_at("$"), "^ or $");
    refuse(is_at("}+"), "+ after {}");
    in_class_ = is_at("[");
    copy(is_at("[^") ? 2 : 1);
    refuse(in_class_ && is_at("]"), "] as the first character of a class");
  }

  void translate_in_class() {
    refuse(is_at("["), "a class inside a class");
    refuse(is_at("&&"), "&& in a class");
    in_class_ = !is_at("]");
    copy(1);
  }

  void translate_escape() {
    if (is_at("\\s") || is_at("\\S")) {
      result_ += is_at("\\s") ? "\\p{White_Space}" : "\\P{White_Space}";
      position_ += 2;
    } else if (is_at("\\p{") || is_at("\\P{")) {
      // Names of one or two letters are general categories; scripts and blocks have longer ones.
      const std::size_t length = pattern_.substr(position_).find('}') + 1;
      refuse(length < 5 || length > 6, "a property that is not a general category");
      copy(length);
    } else {
      constexpr std::string_view kSameMeaning = "drntfx";
      const char escaped = position_ + 1 < pattern_.size() ? pattern_[position_ + 1] : 'Q';
      refuse(std::isalnum(static_cast<unsigned char>(escaped)) &&
                 kSameMeaning.find(escaped) == kSameMeaning.npos,
             "an escape other than \\s \\S \\p{} \\P{} \\d \\r \\n \\t \\f \\x");
      copy(2);
    }
  }

  void refuse(bool condition, std::string_view what) const {
    require(!condition, ErrorKind::kData,
            "the regular expression '{:.80}' is not supported: it has {} at byte {}", pattern_,
            what, position_);
  }

  std::string_view pattern_;
  std::size_t position_ = 0;
  bool in_class_ = false;
  std::string result_;
};

}  // namespace

struct Regex::State {
  std::string pattern;
  Handle<pcre2_code, pcre2_code_free> code;
  Handle<pcre2_match_context, pcre2_match_context_free> context;
  Handle<pcre2_jit_stack, pcre2_jit_stack_free> jit_stack;
  Handle<pcre2_match_data, pcre2_match_data_free> match;
};

Regex::Regex(std::string_view pattern) : state_(std::make_unique<State>()) {
  State& state = *state_;
  state.pattern = pattern;
  const std::string translated = Translation(pattern).run();
  const Handle<pcre2_compile_context, pcre2_compile_context_free> options(
      pcre2_compile_context_create(nullptr));
  pcre2_set_newline(options.get(), PCRE2_NEWLINE_LF);  // what . does not match
  int error = 0;
  PCRE2_SIZE position = 0;
  state.code.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
                                 PCRE2_UTF | PCRE2_UCP, &error, &position, options.get()));
  require(state.code != nullptr, ErrorKind::kData,
          "the regular expression '{:.80}' is malformed: {}", pattern, message_of(error));
  std::uint32_t matches_empty = 0;
  pcre2_pattern_info(state.code.get(), PCRE2_INFO_MATCHEMPTY, &matches_empty);
  require(matches_empty == 0, ErrorKind::kData,
          "the regular expression '{:.80}' is not supported: it can match the empty text", pattern);

  state.context.reset(pcre2_match_context_create(nullptr));
  pcre2_set_match_limit(state.context.get(), kMaxSteps);
  pcre2_set_heap_limit(state.context.get(), kMaxHeapKib);
  if (pcre2_jit_compile(state.code.get(), PCRE2_JIT_COMPLETE) == 0) {  // else the interpreter runs
    state.jit_stack.reset(pcre2_jit_stack_create(kMinJitStack, kMaxJitStack, nullptr));
    pcre2_jit_stack_assign(state.context.get(), nullptr, state.jit_stack.get());
  }
  state.match.reset(pcre2_match_data_create_from_pattern(state.code.get(), nullptr));
}

Regex::~Regex() = default;
Regex::Regex(Regex&&) noexcept = default;
Regex& Regex::operator=(Regex&&) noexcept = default;

std::optional<Regex::Match> Regex::find(std::string_view text, std::size_t from) const {
  const State& state = *state_;
  const int found =
      pcre2_match(state.code.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), from,
                  PCRE2_NO_UTF_CHECK, state.match.get(), state.context.get());
  if (found == PCRE2_ERROR_NOMATCH) return std::nullopt;
  require(found > 0, ErrorKind::kData, "the regular expression '{:.80}' failed at byte {}: {}",
          state.pattern, from, message_of(found));
  const PCRE2_SIZE* bounds = pcre2_get_ovector_pointer(state.match.get());
  return Match{bounds[0], bounds[1]};
}

}  // namespace jiboia
