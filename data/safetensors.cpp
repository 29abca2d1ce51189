#include "data/safetensors.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <functional>
#include <numeric>
#include <set>
#include <tuple>
#include <utility>

#include "core/error.h"
#include "core/half.h"
#include "data/json.h"

namespace jiboia {
namespace {

static_assert(std::endian::native == std::endian::little, "the format is little-endian");

constexpr std::uint64_t kMaxHeaderBytes = 100'000'000;  // the reference's limit
constexpr const char* kMetadataKey = "__metadata__";

struct FormatDtype {
  std::string_view name;
  std::uint64_t bits;
  std::optional<Dtype> dtype;
};

/// All dtypes of the format, in the reference's order, by which files are sorted (descending).
constexpr std::array<FormatDtype, 22> kFormatDtypes{{
    {"BOOL", 8, {}},
    {"F4", 4, {}},
    {"F6_E2M3", 6, {}},
    {"F6_E3M2", 6, {}},
    {"U8", 8, Dtype::kU8},
    {"I8", 8, {}},
    {"F8_E5M2", 8, {}},
    {"F8_E4M3", 8, {}},
    {"F8_E8M0", 8, {}},
    {"F8_E4M3FNUZ", 8, {}},
    {"F8_E5M2FNUZ", 8, {}},
    {"I16", 16, {}},
    {"U16", 16, Dtype::kU16},
    {"F16", 16, Dtype::kF16},
    {"BF16", 16, Dtype::kBf16},
    {"I32", 32, Dtype::kI32},
    {"U32", 32, Dtype::kU32},
    {"F32", 32, Dtype::kF32},
    {"C64", 64, {}},
    {"F64", 64, Dtype::kF64},
    {"I64", 64, Dtype::kI64},
    {"U64", 64, {}},
}};

/// Position of a Dtype in kFormatDtypes; every Dtype is there.
std::size_t format_index(Dtype dtype) {
  const auto found = std::ranges::find(kFormatDtypes, dtype, &FormatDtype::dtype);
  return static_cast<std::size_t>(found - kFormatDtypes.begin());
}

/// Stores a * b in `product`; false when it does not fit.
bool multiply(std::uint64_t a, std::uint64_t b, std::uint64_t& product) {
  return !__builtin_mul_overflow(a, b, &product);
}

/// Non-negative integers, as JSON has them without sign, fraction or exponent.
std::vector<std::int64_t> get_sizes(const JsonObject& info, std::string_view key) {
  std::vector<std::int64_t> sizes;
  for (const nlohmann::json& value : info.get_array(key)) {
    if (!value.is_number_unsigned() || !std::in_range<std::int64_t>(value.get<std::uint64_t>()))
      info.fail_at(key,
                   fmt::format("element {} is not an integer from 0 to 2^63 - 1", sizes.size()));
    sizes.push_back(value.get<std::int64_t>());
  }
  return sizes;
}

/// Checks everything about a tensor but its place among the others.
SafetensorsEntry parse_entry(const std::string& name, const JsonObject& info) {
  SafetensorsEntry entry;
  entry.name = name;

  const std::string dtype_name = info.get_string("dtype");
  const auto dtype = std::ranges::find(kFormatDtypes, dtype_name, &FormatDtype::name);
  if (dtype == kFormatDtypes.end())
    info.fail_at("dtype", fmt::format("'{:.40}' is not a dtype of the format", dtype_name));
  entry.dtype_name = dtype->name;
  entry.dtype = dtype->dtype;

  entry.shape = get_sizes(info, "shape");
  if (entry.shape.size() > SafetensorsEntry::kMaxRank)
    info.fail_at("shape", fmt::format("has {} dimensions, at most {} are supported",
                                      entry.shape.size(), SafetensorsEntry::kMaxRank));
  std::uint64_t elements = 1;
  std::uint64_t bits = 0;
  bool fits = true;
  for (const std::int64_t extent : entry.shape)
    fits = fits && multiply(elements, static_cast<std::uint64_t>(extent), elements);
  if (!fits || !multiply(elements, dtype->bits, bits))
    info.fail_at("shape", "has more elements than 64 bits can count");
  if (bits % 8 != 0) info.fail_at("shape", "does not fill whole bytes");

  const std::vector<std::int64_t> offsets = get_sizes(info, "data_offsets");
  if (offsets.size() != 2 || offsets[1] < offsets[0])
    info.fail_at("data_offsets", "is not [begin, end] with begin <= end");
  entry.elements = static_cast<std::int64_t>(elements);
  entry.begin = offsets[0];
  entry.bytes = offsets[1] - offsets[0];
  if (std::cmp_not_equal(entry.bytes, bits / 8))
    info.fail_at("data_offsets", fmt::format("span {} bytes; {} elements of {} need {}",
                                             entry.bytes, elements, dtype->name, bits / 8));
  return entry;
}

/// Decodes unaligned stored values and counts those that are not finite in T.
template <class Stored, class T, class Decode>
std::int64_t convert(const std::byte* source, std::span<T> out, Decode decode) {
  std::int64_t non_finite = 0;
  for (std::size_t i = 0; i < out.size(); ++i) {
    Stored stored;
    std::memcpy(&stored, source + i * sizeof(Stored), sizeof(Stored));
    out[i] = static_cast<T>(decode(stored));
    non_finite += !std::isfinite(out[i]);
  }
  return non_finite;
}

}  // namespace

SafetensorsFile::SafetensorsFile(const std::filesystem::path& path) : file_(path) { read_header(); }

void SafetensorsFile::read_header() {
  const JsonSource source{path().string(), ErrorKind::kCheckpoint};
  const auto refuse = [&]<class... Args>(fmt::format_string<Args...> format, Args&&... args) {
    fail(source.kind, "{}: {}", source.name, fmt::format(format, std::forward<Args>(args)...));
  };

  // Nothing is allocated before the length has been found credible.
  std::uint64_t header_bytes = 0;
  const std::span<const std::byte> bytes = file_.bytes();
  if (bytes.size() < sizeof(header_bytes))
    refuse("has {} bytes, too few for a safetensors file", bytes.size());
  std::memcpy(&header_bytes, bytes.data(), sizeof(header_bytes));
  const std::span<const std::byte> rest = bytes.subspan(sizeof(header_bytes));
  if (header_bytes > kMaxHeaderBytes)
    refuse("claims a header of {} bytes, at most {} are accepted", header_bytes, kMaxHeaderBytes);
  if (header_bytes > rest.size())
    refuse("claims a header of {} bytes, {} follow", header_bytes, rest.size());
  const std::string_view header(reinterpret_cast<const char*>(rest.data()), header_bytes);
  data_ = rest.subspan(header_bytes);

  // Tensors that overlap claim more bytes than there are. Stopping right there keeps a small file
  // from describing a huge number of them.
  auto unclaimed = static_cast<std::int64_t>(data_.size());
  bool has_metadata = false;
  for_each_json_member(header, source, [&](const std::string& name, const nlohmann::json& value) {
    if (name == kMetadataKey) {
      if (std::exchange(has_metadata, true)) refuse("has {} twice", kMetadataKey);
      if (value.is_null()) return;
      const JsonObject metadata(value, {source.name + ": " + name, source.kind});
      for (const auto& member : value.items())
        metadata_[member.key()] = metadata.get_string(member.key());
      return;
    }
    const JsonObject info(value,
                          {fmt::format("{}: tensor '{:.80}'", source.name, name), source.kind});
    entries_.push_back(parse_entry(name, info));
    unclaimed -= entries_.back().bytes;
    if (unclaimed < 0)
      info.fail_at(
          "data_offsets",
          fmt::format("the tensors up to here need more than the {} bytes of data", data_.size()));
  });

  std::ranges::sort(entries_, {}, [](const SafetensorsEntry& entry) {
    return std::tie(entry.begin, entry.bytes, entry.name);
  });
  std::int64_t end = 0;
  for (const SafetensorsEntry& entry : entries_) {
    if (entry.begin != end)
      refuse("tensor '{:.80}' begins at byte {} of the data, expected {}: {}", entry.name,
             entry.begin, end, entry.begin < end ? "tensors overlap" : "there is a hole");
    end += entry.bytes;
  }
  if (unclaimed != 0) refuse("{} bytes follow the last tensor", unclaimed);

  by_name_.resize(entries_.size());
  std::iota(by_name_.begin(), by_name_.end(), 0U);
  const auto name_of = [&](std::uint32_t index) -> const std::string& {
    return entries_[index].name;
  };
  std::ranges::sort(by_name_, {}, name_of);
  const auto twin = std::ranges::adjacent_find(by_name_, {}, name_of);
  if (twin != by_name_.end()) refuse("tensor '{:.80}' is there twice", name_of(*twin));
}

const SafetensorsEntry* SafetensorsFile::find(std::string_view name) const {
  const auto name_of = [&](std::uint32_t index) -> std::string_view {
    return entries_[index].name;
  };
  const auto found = std::ranges::lower_bound(by_name_, name, {}, name_of);
  return found != by_name_.end() && name_of(*found) == name ? &entries_[*found] : nullptr;
}

const SafetensorsEntry& SafetensorsFile::at(std::string_view name) const {
  const SafetensorsEntry* entry = find(name);
  require(entry != nullptr, ErrorKind::kCheckpoint, "{}: has no tensor '{}'", path().string(),
          name);
  return *entry;
}

template <class T>
std::int64_t SafetensorsFile::read(const SafetensorsEntry& entry, std::int64_t first,
                                   std::span<T> out) const {
  const auto count = static_cast<std::int64_t>(out.size());
  require(first >= 0 && count <= entry.elements - first, ErrorKind::kInternal,
          "{}: elements {} to {} of tensor '{}' were asked for, it has {}", path().string(), first,
          first + count, entry.name, entry.elements);
  const auto from = [&](std::size_t element_bytes) {
    return bytes(entry).data() + static_cast<std::size_t>(first) * element_bytes;
  };
  if (entry.dtype == Dtype::kF32)
    return convert<float>(from(4), out, [](float value) { return value; });
  if (entry.dtype == Dtype::kF64)
    return convert<double>(from(8), out, [](double value) { return value; });
  if (entry.dtype == Dtype::kBf16) return convert<std::uint16_t>(from(2), out, float_from_bf16);
  if (entry.dtype == Dtype::kF16) return convert<std::uint16_t>(from(2), out, float_from_f16);
  fail(ErrorKind::kCheckpoint, "{}: tensor '{}' is {}, expected F32, BF16, F16 or F64",
       path().string(), entry.name, entry.dtype_name);
}
template std::int64_t SafetensorsFile::read(const SafetensorsEntry&, std::int64_t,
                                            std::span<float>) const;
template std::int64_t SafetensorsFile::read(const SafetensorsEntry&, std::int64_t,
                                            std::span<double>) const;

std::int64_t TensorInfo::elements() const {
  return std::accumulate(shape.begin(), shape.end(), std::int64_t{1}, std::multiplies<>());
}

SafetensorsWriter::SafetensorsWriter(std::filesystem::path path, std::vector<TensorInfo> tensors,
                                     const std::map<std::string, std::string>& metadata)
    : order_(std::move(tensors)), file_(std::move(path)) {
  std::ranges::sort(order_, [](const TensorInfo& a, const TensorInfo& b) {
    return std::pair(format_index(b.dtype), std::string_view(a.name)) <
           std::pair(format_index(a.dtype), std::string_view(b.name));
  });

  std::vector<std::string> members;
  if (!metadata.empty())
    members.push_back(fmt::format("\"{}\":{}", kMetadataKey, nlohmann::json(metadata).dump()));
  std::set<std::string_view> names{kMetadataKey};
  std::int64_t begin = 0;
  for (const TensorInfo& tensor : order_) {
    require(names.insert(tensor.name).second, ErrorKind::kInvalidArgument,
            "{}: the name '{}' is taken", file_.path().string(), tensor.name);
    const std::int64_t end = begin + tensor.bytes();
    members.push_back(fmt::format(R"({}:{{"dtype":"{}","shape":[{}],"data_offsets":[{},{}]}})",
                                  nlohmann::json(tensor.name).dump(),
                                  kFormatDtypes[format_index(tensor.dtype)].name,
                                  fmt::join(tensor.shape, ","), begin, end));
    begin = end;
  }
  std::string header = fmt::format("{{{}}}", fmt::join(members, ","));
  header.append((8 - header.size() % 8) % 8, ' ');

  const std::uint64_t header_bytes = header.size();
  file_.write(std::as_bytes(std::span(&header_bytes, 1)));
  file_.write(bytes_of(header));
}

bool SafetensorsWriter::leave_complete_tensor() {
  if (current_ == order_.size() || written_ != order_[current_].bytes()) return false;
  ++current_;
  written_ = 0;
  return true;
}

void SafetensorsWriter::write(std::string_view name, std::span<const std::byte> bytes) {
  while (!is_turn_of(name) && leave_complete_tensor()) {
  }
  require(is_turn_of(name), ErrorKind::kInternal, "{}: got tensor '{}', expected {}",
          file_.path().string(), name,
          current_ < order_.size() ? order_[current_].name : "no more tensors");
  written_ += static_cast<std::int64_t>(bytes.size());
  require(written_ <= order_[current_].bytes(), ErrorKind::kInternal,
          "{}: got {} bytes of tensor '{}', expected {}", file_.path().string(), written_, name,
          order_[current_].bytes());
  file_.write(bytes);
}

void SafetensorsWriter::write(std::string_view name, std::span<const float> values) {
  write(name, std::span<const std::byte>());  // makes it the current tensor
  const Dtype dtype = order_[current_].dtype;
  if (dtype == Dtype::kF32) return write(name, std::as_bytes(values));
  require(dtype == Dtype::kBf16, ErrorKind::kUnsupported,
          "{}: tensor '{}' is {}; floats are written as f32 or bf16", file_.path().string(), name,
          to_string(dtype));
  std::vector<std::uint16_t> rounded(std::min<std::size_t>(values.size(), 1 << 16));
  while (!values.empty()) {
    const std::size_t count = std::min(values.size(), rounded.size());
    std::ranges::transform(values.first(count), rounded.begin(), bf16_from_float);
    write(name, std::as_bytes(std::span(rounded).first(count)));
    values = values.subspan(count);
  }
}

FileDigest SafetensorsWriter::commit() {
  while (leave_complete_tensor()) {
  }
  if (current_ < order_.size())
    fail(ErrorKind::kInternal, "{}: tensor '{}' got {} of its {} bytes", file_.path().string(),
         order_[current_].name, written_, order_[current_].bytes());
  return file_.commit();
}

}  // namespace jiboia
