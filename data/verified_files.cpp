#include "data/verified_files.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <random>

#include "core/error.h"
#include "core/log.h"
#include "data/file.h"
#include "data/json.h"

namespace jiboia {
namespace {

namespace fs = std::filesystem;

constexpr const char* kFormat = "jiboia-verified-files";
constexpr std::int64_t kFormatVersion = 1;

std::int64_t nanoseconds(const timespec& time) {
  return std::int64_t{1'000'000'000} * time.tv_sec + time.tv_nsec;
}

/// Whether neither contents nor status changed within kSettled before `time`: changes after it have
/// other times then, however coarse these are.
bool had_settled(const FileStamp& stamp, std::chrono::system_clock::time_point time) {
  const std::chrono::nanoseconds changed(std::max(stamp.modified_ns, stamp.changed_ns));
  return changed + VerifiedFiles::kSettled < time.time_since_epoch();
}

fs::path absolute_variable(const char* name) {
  const char* value = std::getenv(name);
  const fs::path path = value ? value : "";
  return path.is_absolute() ? path : fs::path();  // the XDG specification ignores relative ones
}

}  // namespace

FileStamp stamp_of(const fs::path& path) {
  struct stat status {};
  require(::stat(path.c_str(), &status) == 0, ErrorKind::kIo, "cannot examine '{}': {}",
          path.string(), std::strerror(errno));
  return {.bytes = status.st_size,
          .modified_ns = nanoseconds(status.st_mtim),
          .changed_ns = nanoseconds(status.st_ctim),
          .inode = static_cast<std::int64_t>(status.st_ino)};
}

fs::path user_cache_folder() {
  if (const fs::path cache = absolute_variable("XDG_CACHE_HOME"); !cache.empty()) {
    return cache / "jiboia";
  }
  const fs::path home = absolute_variable("HOME");
  return home.empty() ? home : home / ".cache" / "jiboia";
}

VerifiedFiles::VerifiedFiles(const fs::path& folder, const fs::path& cache_folder) {
  if (cache_folder.empty()) return;
  folder_ = fs::canonical(folder);
  Hasher hasher;
  hasher.update(bytes_of(folder_.string()));
  file_ = cache_folder / "verified" / (hash_text(hasher.digest()) + ".json");
  std::error_code ignored;
  if (!fs::exists(file_, ignored)) return;
  try {
    load();
  } catch (const Error& error) {
    entries_.clear();
    log::info("what is known of verified files is ignored: {}", error.what());
  }
}

void VerifiedFiles::load() {
  const nlohmann::json json = read_json_file(file_, ErrorKind::kIo);
  const JsonSource source{file_.string(), ErrorKind::kIo};
  const JsonObject object(json, source);
  if (object.get_string("format") != kFormat ||
      object.get_int64("format_version") != kFormatVersion) {
    object.fail_at("format", "of another program or version");
  }
  if (object.get_string("folder") != folder_.string()) return;  // of another one with this hash
  const JsonObject files = object.get_object("files");
  for (const auto& [name, value] : object.at("files").items()) {
    const JsonObject file = files.get_object(name);
    entries_[name] = {.stamp = {.bytes = file.get_int64("bytes"),
                                .modified_ns = file.get_int64("modified_ns"),
                                .changed_ns = file.get_int64("changed_ns"),
                                .inode = file.get_int64("inode")},
                      .xxh3 = file.get_string("xxh3")};
  }
}

bool VerifiedFiles::contains(const std::string& name, const FileStamp& stamp,
                             const std::string& xxh3) const {
  const std::lock_guard lock(mutex_);
  const auto found = entries_.find(name);
  return found != entries_.end() && found->second.stamp == stamp && found->second.xxh3 == xxh3;
}

void VerifiedFiles::add(const std::string& name, const FileStamp& stamp, const std::string& xxh3,
                        std::chrono::system_clock::time_point began) {
  if (!had_settled(stamp, began)) return;
  const std::lock_guard lock(mutex_);
  entries_[name] = {stamp, xxh3};
  changed_ = true;
}

void VerifiedFiles::remove(const std::string& name) {
  const std::lock_guard lock(mutex_);
  changed_ = entries_.erase(name) > 0 || changed_;
}

void VerifiedFiles::save() {
  const std::lock_guard lock(mutex_);
  if (file_.empty() || !changed_) return;
  std::erase_if(entries_, [&](const auto& entry) {
    std::error_code unknown;
    return !fs::exists(folder_ / entry.first, unknown) && !unknown;
  });
  nlohmann::ordered_json files = nlohmann::ordered_json::object();
  for (const auto& [name, entry] : entries_) {
    files[name] = {{"bytes", entry.stamp.bytes},
                   {"modified_ns", entry.stamp.modified_ns},
                   {"changed_ns", entry.stamp.changed_ns},
                   {"inode", entry.stamp.inode},
                   {"xxh3", entry.xxh3}};
  }
  const nlohmann::ordered_json json = {{"format", kFormat},
                                       {"format_version", kFormatVersion},
                                       {"folder", folder_.string()},
                                       {"files", std::move(files)}};
  // A name that no other process, on whatever machine, writes to meanwhile.
  fs::path temporary = file_;
  temporary +=
      fmt::format(".{}-{:08x}{:08x}", ::getpid(), std::random_device{}(), std::random_device{}());
  try {
    fs::create_directories(file_.parent_path());
    write_file_atomically(
        temporary, json.dump(1, ' ', false, nlohmann::ordered_json::error_handler_t::replace));
    rename_path(temporary, file_);
    changed_ = false;
  } catch (const std::exception& error) {  // Error, or std::filesystem's
    std::error_code ignored;
    fs::remove(temporary, ignored);
    log::info("the next start will read the data again: {}", error.what());
  }
}

}  // namespace jiboia
