#include "data/json.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "data/file.h"

namespace jiboia {
namespace {

using nlohmann::json;

/// A value as messages show it; never dumps what may be large or deep.
std::string describe(const json& value) {
  if (value.is_string()) return fmt::format("\"{:.40}\"", value.get_ref<const std::string&>());
  if (value.is_structured()) return fmt::format("an {}", value.type_name());
  return value.dump();
}

/// Receives the parser's events and builds the value, or one member of it after the other.
class Builder final : public nlohmann::json_sax<json> {
 public:
  using Visit = std::function<void(const std::string&, const json&)>;

  Builder(const JsonSource& source, const JsonLimits& limits, Visit visit_member)
      : source_(source), limits_(limits), visit_member_(std::move(visit_member)) {}

  json take() { return std::move(root_); }

  bool null() override { return scalar(nullptr); }
  bool boolean(bool value) override { return scalar(value); }
  bool number_integer(number_integer_t value) override { return scalar(value); }
  bool number_unsigned(number_unsigned_t value) override { return scalar(value); }
  bool number_float(number_float_t value, const string_t&) override { return scalar(value); }
  bool string(string_t& value) override { return scalar(std::move(value)); }
  bool binary(binary_t&) override { return false; }  // not in JSON texts

  bool start_object(std::size_t) override { return start(json::object()); }
  bool start_array(std::size_t) override { return start(json::array()); }
  bool end_object() override { return end(); }
  bool end_array() override { return end(); }

  bool key(string_t& name) override {
    if (streams_members() && open_.size() == 1) {
      member_ = std::move(name);
      slot_ = &member_value_;
      nodes_ = 0;
      return true;
    }
    const auto [position, is_new] = open_.back()->emplace(name, nullptr);
    require(is_new, source_.kind, "{}: the key '{:.80}' appears twice in one object", source_.name,
            name);
    slot_ = &*position;
    return true;
  }

  bool parse_error(std::size_t, const std::string&, const json::exception& error) override {
    // Without nlohmann's "[json.exception....] ", and fit to print whatever token it quotes.
    std::string message = error.what();
    message.erase(0, std::min(message.find("] ") + 2, message.size()));
    message.resize(std::min<std::size_t>(message.size(), 200));
    for (char& letter : message)
      if (letter < ' ' || letter > '~') letter = '?';
    fail(source_.kind, "{}: {}", source_.name, message);
  }

 private:
  bool streams_members() const { return static_cast<bool>(visit_member_); }

  /// Puts a value where the text has it and returns its place.
  json* place(json&& value) {
    require(++nodes_ <= limits_.nodes, source_.kind, "{}: more than {} values", source_.name,
            limits_.nodes);
    if (open_.empty()) {
      require(!streams_members() || value.is_object(), source_.kind,
              "{}: is {}, expected an object", source_.name, describe(value));
      root_ = std::move(value);
      return &root_;
    }
    if (open_.back()->is_array()) return &open_.back()->emplace_back(std::move(value));
    *slot_ = std::move(value);
    return slot_;
  }

  bool scalar(json&& value) {
    place(std::move(value));
    finish_value();
    return true;
  }

  bool start(json&& value) {
    require(std::cmp_less(open_.size(), limits_.depth), source_.kind,
            "{}: nested deeper than {} levels", source_.name, limits_.depth);
    open_.push_back(place(std::move(value)));
    return true;
  }

  bool end() {
    open_.pop_back();
    finish_value();
    return true;
  }

  void finish_value() {
    if (streams_members() && open_.size() == 1) visit_member_(member_, member_value_);
  }

  const JsonSource& source_;
  const JsonLimits& limits_;
  Visit visit_member_;
  json root_;
  std::vector<json*> open_;  ///< the objects and arrays around the current place
  json* slot_ = nullptr;     ///< where the value of the last key goes
  std::string member_;
  json member_value_;
  std::int64_t nodes_ = 0;
};

/// Runs nlohmann's parser after the two checks that it does not make.
void parse(std::string_view text, const JsonSource& source, Builder& builder) {
  require(!text.starts_with("\xEF\xBB\xBF"), source.kind, "{}: begins with a byte order mark",
          source.name);
  const std::size_t zero = text.find('\0');
  require(zero == text.npos, source.kind, "{}: byte {} is zero", source.name, zero);
  json::sax_parse(text.data(), text.data() + text.size(), &builder);
}

}  // namespace

json parse_json(std::string_view text, const JsonSource& source, const JsonLimits& limits) {
  Builder builder(source, limits, nullptr);
  parse(text, source, builder);
  return builder.take();
}

void for_each_json_member(std::string_view text, const JsonSource& source,
                          const std::function<void(const std::string&, const json&)>& visit,
                          const JsonLimits& limits) {
  Builder builder(source, limits, visit);
  parse(text, source, builder);
}

json read_json_file(const std::filesystem::path& path, ErrorKind kind, const JsonLimits& limits) {
  return parse_json(read_text_file(path, limits.file_bytes), {path.string(), kind}, limits);
}

JsonObject::JsonObject(const json& value, JsonSource source)
    : value_(value), source_(std::move(source)) {
  require(value_.is_object(), source_.kind, "{}: is {}, expected an object", source_.name,
          describe(value_));
}

const json* JsonObject::find(std::string_view key) const {
  const auto member = value_.find(key);
  return member == value_.end() || member->is_null() ? nullptr : &*member;
}

const json& JsonObject::at(std::string_view key) const {
  const auto member = value_.find(key);
  if (member == value_.end()) fail_at(key, "is missing");
  return *member;
}

std::int64_t JsonObject::get_int64(std::string_view key) const {
  const json& value = at(key);
  const bool fits = value.is_number_unsigned()
                        ? std::in_range<std::int64_t>(value.get<std::uint64_t>())
                        : value.is_number_integer();
  if (!fits) fail_type(key, value, "an integer in the range of int64");
  return value.get<std::int64_t>();
}

double JsonObject::get_double(std::string_view key) const {
  const json& value = at(key);
  if (!value.is_number()) fail_type(key, value, "a number");
  return value.get<double>();
}

bool JsonObject::get_bool(std::string_view key) const {
  const json& value = at(key);
  if (!value.is_boolean()) fail_type(key, value, "true or false");
  return value.get<bool>();
}

std::string JsonObject::get_string(std::string_view key) const {
  const json& value = at(key);
  if (!value.is_string()) fail_type(key, value, "a string");
  return value.get<std::string>();
}

std::int64_t JsonObject::get_int64(std::string_view key, std::int64_t fallback) const {
  return find(key) ? get_int64(key) : fallback;
}

double JsonObject::get_double(std::string_view key, double fallback) const {
  return find(key) ? get_double(key) : fallback;
}

bool JsonObject::get_bool(std::string_view key, bool fallback) const {
  return find(key) ? get_bool(key) : fallback;
}

std::string JsonObject::get_string(std::string_view key, std::string_view fallback) const {
  return find(key) ? get_string(key) : std::string(fallback);
}

JsonObject JsonObject::get_object(std::string_view key) const {
  return {at(key), {fmt::format("{}: {:.80}", source_.name, key), source_.kind}};
}

const json& JsonObject::get_array(std::string_view key) const {
  const json& value = at(key);
  if (!value.is_array()) fail_type(key, value, "an array");
  return value;
}

void JsonObject::fail_at(std::string_view key, std::string_view message) const {
  fail(source_.kind, "{}: {:.80}: {}", source_.name, key, message);
}

void JsonObject::fail_type(std::string_view key, const json& value, const char* expected) const {
  fail_at(key, fmt::format("is {}, expected {}", describe(value), expected));
}

}  // namespace jiboia
