#include "data/shard_manifest.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <exception>
#include <initializer_list>
#include <mutex>
#include <set>
#include <string_view>
#include <thread>

#include "core/error.h"
#include "core/log.h"
#include "data/file.h"
#include "data/json.h"
#include "data/verified_files.h"

namespace jiboia {
namespace {

namespace fs = std::filesystem;

constexpr const char* kFormat = "jiboia-token-shards";
constexpr std::int64_t kFormatVersion = 1;
constexpr int kMaxThreads = 8;  // more readers than that do not make a disk faster
constexpr std::int64_t kProgressBytes = std::int64_t{4} << 30;
constexpr std::chrono::seconds kProgressInterval{5};

/// What a path leads to. That the system does not let us look is no fault of the data. Errors: Io.
fs::file_status status_of(const fs::path& path) {
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  require(fs::status_known(status), ErrorKind::kIo, "cannot examine '{}': {}", path.string(),
          error.message());
  return status;
}

void refuse_unknown_keys(const nlohmann::json& object, const JsonObject& reader,
                         std::initializer_list<std::string_view> known) {
  for (const auto& [key, value] : object.items()) {
    if (std::find(known.begin(), known.end(), key) == known.end())
      reader.fail_at(key, "unknown key");
  }
}

std::int64_t get_count(const JsonObject& object, std::string_view key) {
  const std::int64_t value = object.get_int64(key);
  if (value < 0) object.fail_at(key, fmt::format("{} is negative", value));
  return value;
}

std::optional<std::int64_t> get_optional_count(const JsonObject& object, std::string_view key) {
  if (object.find(key) == nullptr) return std::nullopt;
  return get_count(object, key);
}

void read_file_entry(const JsonObject& object, ManifestFile& file) {
  file.name = object.get_string("name");
  file.bytes = get_count(object, "bytes");
  file.xxh3 = object.get_string("xxh3");
  if (file.name.empty() || file.name == "." || file.name == ".." ||
      file.name.find_first_of(std::string_view("/\\\0", 3)) != std::string::npos)
    object.fail_at("name", fmt::format("not a plain file name: '{}'", file.name));
  if (file.xxh3.size() != 16 ||
      file.xxh3.find_first_not_of("0123456789abcdef") != std::string::npos)
    object.fail_at("xxh3", fmt::format("'{}' is not 16 hexadecimal digits", file.xxh3));
}

ManifestShard read_shard_entry(const nlohmann::json& value, const JsonSource& source,
                               const ShardManifest& manifest) {
  const JsonObject object(value, source);
  refuse_unknown_keys(value, object,
                      {"name", "bytes", "xxh3", "tokens", "rows", "documents", "source_bytes"});
  ManifestShard shard;
  read_file_entry(object, shard);
  shard.tokens = get_count(object, "tokens");
  shard.documents = get_optional_count(object, "documents");
  shard.source_bytes = get_optional_count(object, "source_bytes");
  if (manifest.layout == ShardLayout::kRows) {
    const std::int64_t rows = get_count(object, "rows");
    if (shard.tokens % manifest.row_length != 0 || shard.tokens / manifest.row_length != rows)
      object.fail_at("tokens", fmt::format("{} tokens are not {} rows of {}", shard.tokens, rows,
                                           manifest.row_length));
  } else if (object.find("rows") != nullptr) {
    object.fail_at("rows", "a stream has no rows");
  }
  return shard;
}

void read_layout(const JsonObject& object, ShardManifest& manifest) {
  const std::string layout = object.get_string("layout");
  if (layout != "rows" && layout != "stream")
    object.fail_at("layout", fmt::format("'{}', expected rows or stream", layout));
  if (layout == "rows") {
    manifest.layout = ShardLayout::kRows;
    manifest.row_length = get_count(object, "row_length");
    if (manifest.row_length == 0) object.fail_at("row_length", "0 tokens, expected at least 1");
  } else if (object.find("row_length") != nullptr) {
    object.fail_at("row_length", "a stream has no rows");
  }
}

std::optional<std::int64_t> read_token_id(const JsonObject& object, std::string_view key,
                                          std::int64_t vocab_size) {
  const auto id = get_optional_count(object, key);
  if (id && *id >= vocab_size)
    object.fail_at(key, fmt::format("{} is outside the vocabulary of {}", *id, vocab_size));
  return id;
}

/// Each name once, each content once, and sums that agree with the parts.
void check_consistency(const ShardManifest& manifest, const JsonObject& object) {
  std::set<std::string> names, hashes;
  for (const auto& file : manifest.tokenizer_files)
    if (!names.insert(file.name).second)
      object.fail_at("tokenizer_files", fmt::format("'{}' is listed twice", file.name));
  std::int64_t tokens = 0, source_bytes = 0;
  const ManifestShard& first = manifest.shards.front();
  for (const auto& shard : manifest.shards) {
    if (!names.insert(shard.name).second)
      object.fail_at("files", fmt::format("'{}' is listed twice", shard.name));
    if (!hashes.insert(shard.xxh3).second)
      object.fail_at("files", fmt::format("'{}' has the contents of another one", shard.name));
    if (shard.documents.has_value() != first.documents.has_value())
      object.fail_at("files", fmt::format("only one of '{}' and '{}' has document starts",
                                          first.name, shard.name));
    if (shard.source_bytes.has_value() != manifest.source_bytes.has_value())
      object.fail_at("files", fmt::format("'{}' and the manifest disagree on having source_bytes",
                                          shard.name));
    if (__builtin_add_overflow(tokens, shard.tokens, &tokens) ||
        __builtin_add_overflow(source_bytes, shard.source_bytes.value_or(0), &source_bytes))
      object.fail_at("files", "the counts overflow 64 bits");
  }
  if (tokens != manifest.tokens)
    object.fail_at("tokens", fmt::format("{}, the files have {}", manifest.tokens, tokens));
  if (manifest.source_bytes.value_or(0) != source_bytes)
    object.fail_at("source_bytes",
                   fmt::format("{}, the files have {}", *manifest.source_bytes, source_bytes));
  for (const auto& file : manifest.tokenizer_files)
    if (file.name == "tokenizer.json" && manifest.tokenizer.starts_with("xxh3:") &&
        manifest.tokenizer != "xxh3:" + file.xxh3)
      object.fail_at("tokenizer", fmt::format("'{}', the file tokenizer.json has {}",
                                              manifest.tokenizer, file.xxh3));
}

void verify_size(const ShardManifest& manifest, const ManifestFile& file) {
  const fs::path path = manifest.path_of(file);
  const fs::file_status status = status_of(path);
  require(fs::exists(status), ErrorKind::kData, "{}: missing, but listed in manifest.json",
          path.string());
  require(fs::is_regular_file(status), ErrorKind::kData, "{}: not a regular file", path.string());
  std::error_code error;
  const auto bytes = static_cast<std::int64_t>(fs::file_size(path, error));
  require(!error, ErrorKind::kIo, "{}: {}", path.string(), error.message());
  require(bytes == file.bytes, ErrorKind::kData,
          "{}: has {} bytes, manifest.json says {}; it is damaged or was replaced", path.string(),
          bytes, file.bytes);
}

std::vector<const ManifestFile*> all_files(const ShardManifest& manifest) {
  std::vector<const ManifestFile*> files;
  for (const auto& shard : manifest.shards) files.push_back(&shard);
  for (const auto& file : manifest.tokenizer_files) files.push_back(&file);
  return files;
}

struct FileToVerify {
  const ManifestFile* file;
  FileStamp stamp;
  std::exception_ptr error;
};

/// Prints how far a long verification has come, from whichever thread is there.
class Progress {
 public:
  Progress(const ShardManifest& manifest, std::int64_t total)
      : folder_(manifest.folder.string()), total_(total) {}

  void add(std::int64_t bytes) {
    const std::lock_guard lock(mutex_);
    done_ += bytes;
    const auto now = std::chrono::steady_clock::now();
    if (total_ < kProgressBytes || now - last_ < kProgressInterval) return;
    last_ = now;
    log::info("verifying {}: {:.1f} of {:.1f} GB", folder_, static_cast<double>(done_) * 1e-9,
              static_cast<double>(total_) * 1e-9);
  }

 private:
  const std::string folder_;
  const std::int64_t total_;
  std::mutex mutex_;
  std::int64_t done_ = 0;
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

}  // namespace

ShardManifest ShardManifest::load(const fs::path& folder) {
  require(fs::is_directory(status_of(folder)), ErrorKind::kData,
          "{}: no such folder of token shards (scripts/prepare_data.py makes one)",
          folder.string());
  const fs::path path = folder / "manifest.json";
  const fs::file_status status = status_of(path);
  require(fs::exists(status), ErrorKind::kData,
          "{}: missing; the folder holds no token shards, or scripts/prepare_data.py, which writes "
          "it last, has not finished",
          path.string());
  require(fs::is_regular_file(status), ErrorKind::kData, "{}: not a regular file", path.string());
  const nlohmann::json json = read_json_file(path, ErrorKind::kData);
  const JsonSource source{path.string(), ErrorKind::kData};
  const JsonObject object(json, source);
  refuse_unknown_keys(
      json, object,
      {"format", "format_version", "layout", "row_length", "vocab_size", "tokens", "source_bytes",
       "bos_token_id", "eos_token_id", "pad_token_id", "tokenizer", "tokenizer_files", "files"});
  const std::string format = object.get_string("format");
  if (format != kFormat)
    object.fail_at("format", fmt::format("'{}', expected '{}'", format, kFormat));
  const std::int64_t version = object.get_int64("format_version");
  if (version != kFormatVersion)
    object.fail_at("format_version",
                   fmt::format("{}, this program reads version {}", version, kFormatVersion));
  ShardManifest manifest;
  manifest.folder = folder;
  read_layout(object, manifest);
  manifest.vocab_size = get_count(object, "vocab_size");
  if (manifest.vocab_size < 1 || manifest.vocab_size > std::int64_t{1} << 31)
    object.fail_at("vocab_size", fmt::format("{}, expected 1 to 2^31", manifest.vocab_size));
  manifest.tokens = get_count(object, "tokens");
  manifest.source_bytes = get_optional_count(object, "source_bytes");
  manifest.bos_token_id = read_token_id(object, "bos_token_id", manifest.vocab_size);
  manifest.eos_token_id = read_token_id(object, "eos_token_id", manifest.vocab_size);
  manifest.pad_token_id = read_token_id(object, "pad_token_id", manifest.vocab_size);
  manifest.tokenizer = object.get_string("tokenizer", "");
  if (object.find("tokenizer_files") != nullptr) {
    for (const auto& value : object.get_array("tokenizer_files")) {
      const JsonObject entry(value, source);
      refuse_unknown_keys(value, entry, {"name", "bytes", "xxh3"});
      read_file_entry(entry, manifest.tokenizer_files.emplace_back());
    }
  }
  for (const auto& value : object.get_array("files"))
    manifest.shards.push_back(read_shard_entry(value, source, manifest));
  if (manifest.shards.empty()) object.fail_at("files", "no shards");
  check_consistency(manifest, object);
  return manifest;
}

std::optional<double> ShardManifest::bytes_per_token() const {
  if (!source_bytes || tokens == 0) return std::nullopt;
  return static_cast<double>(*source_bytes) / static_cast<double>(tokens);
}

std::string ShardManifest::fingerprint() const {
  std::string text = fmt::format("{} {} {}\n", kFormatVersion, row_length, vocab_size);
  for (const auto& shard : shards) text += fmt::format("{} {}\n", shard.bytes, shard.xxh3);
  Hasher hasher;
  hasher.update(bytes_of(text));
  return hash_text(hasher.digest());
}

void verify_file(const ShardManifest& manifest, const ManifestFile& file) {
  verify_size(manifest, file);
  const fs::path path = manifest.path_of(file);
  const FileDigest digest = digest_file(path);
  require(hash_text(digest.xxh3) == file.xxh3, ErrorKind::kData,
          "{}: its contents have hash {}, manifest.json says {}; it is damaged or was replaced",
          path.string(), hash_text(digest.xxh3), file.xxh3);
}

void verify_files(const ShardManifest& manifest, const VerifyOptions& options) {
  VerifiedFiles verified(manifest.folder, options.cache_folder);
  const auto began = std::chrono::system_clock::now();
  std::vector<FileToVerify> files;
  std::int64_t total = 0;
  for (const ManifestFile* file : all_files(manifest)) {
    verify_size(manifest, *file);
    const FileStamp stamp = stamp_of(manifest.path_of(*file));
    if (options.verification == Verification::kChanged &&
        verified.contains(file->name, stamp, file->xxh3)) {
      continue;
    }
    files.push_back({.file = file, .stamp = stamp, .error = {}});
    total += file->bytes;
  }
  const std::size_t count = all_files(manifest).size();
  if (files.size() < count) {
    log::info("{}: {} of {} files have not changed since they were verified",
              manifest.folder.string(), count - files.size(), count);
  }
  Progress progress(manifest, total);
  std::atomic<std::size_t> next = 0;
  const auto work = [&] {
    for (std::size_t i = next++; i < files.size(); i = next++) {
      const auto& [file, stamp, unused] = files[i];
      try {
        verify_file(manifest, *file);
        if (stamp_of(manifest.path_of(*file)) == stamp) {
          verified.add(file->name, stamp, file->xxh3, began);
        }
      } catch (...) {
        verified.remove(file->name);
        files[i].error = std::current_exception();
      }
      progress.add(file->bytes);
    }
  };
  int threads = options.threads;
  if (threads <= 0)
    threads = std::clamp(static_cast<int>(std::thread::hardware_concurrency()), 1, kMaxThreads);
  threads = std::min(threads, static_cast<int>(files.size()));
  {
    std::vector<std::jthread> workers;
    for (int i = 1; i < threads; ++i) workers.emplace_back(work);
    work();
  }
  verified.save();
  for (const FileToVerify& file : files)
    if (file.error) std::rethrow_exception(file.error);
}

}  // namespace jiboia
