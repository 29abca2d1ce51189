#pragma once
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/dtype.h"
#include "data/file.h"

namespace jiboia {

/// One tensor that a safetensors file holds.
struct SafetensorsEntry {
  std::string name;
  std::string_view dtype_name;      ///< as the format spells it: "F32", "BF16", "F8_E4M3", ...
  std::optional<Dtype> dtype;       ///< absent where the format has types that we do not
  std::vector<std::int64_t> shape;  ///< at most kMaxRank extents
  std::int64_t elements = 0;
  std::int64_t begin = 0;  ///< first byte, counted from the end of the header
  std::int64_t bytes = 0;

  static constexpr std::size_t kMaxRank = 64;
};

/// A safetensors file, checked from its first to its last byte and mapped. Layout: a little-endian
/// 64-bit header length, a JSON header, then the tensors without a gap. Accepts what the reference
/// implementation accepts, except for repeated names, ranks above 64, extents above 2^63 - 1,
/// header values nested deeper than 16 levels, and tensors described by a JSON array: all things
/// that no writer makes.
/// Source: github.com/huggingface/safetensors, "Format" in its README; verdicts of version 0.8.0.
class SafetensorsFile {
 public:
  /// Errors: Io when the file cannot be read, Checkpoint when it is not valid.
  explicit SafetensorsFile(const std::filesystem::path& path);

  const std::filesystem::path& path() const { return file_.path(); }
  /// All tensors, in the order of their bytes.
  const std::vector<SafetensorsEntry>& entries() const { return entries_; }
  const std::map<std::string, std::string>& metadata() const { return metadata_; }

  /// The tensor of that name, or null.
  const SafetensorsEntry* find(std::string_view name) const;
  /// The tensor of that name. Errors: Checkpoint when there is none.
  const SafetensorsEntry& at(std::string_view name) const;

  /// The stored bytes, in C order, little-endian, not necessarily aligned.
  std::span<const std::byte> bytes(const SafetensorsEntry& entry) const {
    return data_.subspan(static_cast<std::size_t>(entry.begin),
                         static_cast<std::size_t>(entry.bytes));
  }

  /// Converts elements [first, first + out.size()) of an F64, F32, BF16 or F16 tensor, counted in
  /// C order, to T (float or double). Returns how many of them are NaN or infinite as a T.
  /// Errors: Checkpoint for other dtypes, Internal for elements that do not exist.
  template <class T>
  std::int64_t read(const SafetensorsEntry& entry, std::int64_t first, std::span<T> out) const;

 private:
  void read_header();

  MappedFile file_;
  std::span<const std::byte> data_;
  std::map<std::string, std::string> metadata_;
  std::vector<SafetensorsEntry> entries_;
  std::vector<std::uint32_t> by_name_;  ///< indices of entries_, sorted by name
};

/// A tensor to be written.
struct TensorInfo {
  std::string name;
  Dtype dtype = Dtype::kF32;
  std::vector<std::int64_t> shape;

  std::int64_t elements() const;
  std::int64_t bytes() const { return elements() * size_of(dtype); }
};

/// Writes a safetensors file, byte for byte as the reference implementation does: tensors sorted by
/// descending alignment of their dtypes, then by name; header padded with spaces to 8 bytes. Takes
/// the values one tensor after the other, so a model never has to be in memory twice.
class SafetensorsWriter {
 public:
  /// Lays the file out and writes its header. Errors: Io; InvalidArgument for repeated names.
  SafetensorsWriter(std::filesystem::path path, std::vector<TensorInfo> tensors,
                    const std::map<std::string, std::string>& metadata);

  /// The tensors in the order in which write() wants them.
  const std::vector<TensorInfo>& order() const { return order_; }
  /// The next bytes of tensor `name`; a tensor may come in several pieces. Errors: Io; Internal
  /// when it is not that tensor's turn or when it would get too long.
  void write(std::string_view name, std::span<const std::byte> bytes);
  /// The next values of an F32 or BF16 tensor (then rounded to nearest, ties to even).
  void write(std::string_view name, std::span<const float> values);
  /// Makes the file durable under its name; see FileWriter. Errors: Io; Internal when tensors are
  /// incomplete.
  FileDigest commit();

 private:
  bool is_turn_of(std::string_view name) const {
    return current_ < order_.size() && order_[current_].name == name;
  }
  /// Moves on when the current tensor has all its bytes; false when it has not, or at the end.
  bool leave_complete_tensor();

  std::vector<TensorInfo> order_;
  FileWriter file_;
  std::size_t current_ = 0;   ///< of order_
  std::int64_t written_ = 0;  ///< bytes of the current tensor
};

}  // namespace jiboia
