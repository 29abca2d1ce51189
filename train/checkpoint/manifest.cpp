#include "train/checkpoint/manifest.h"

#include <charconv>

#include "core/error.h"
#include "core/log.h"
#include "data/json.h"
#include "train/tools/version.h"

namespace jiboia {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr const char* kFormat = "jiboia checkpoint";
constexpr JsonLimits kLimits{.nodes = 4'000'000};  // of a million files

std::string to_text(const json& body) {
  Hasher hasher;
  hasher.update(bytes_of(body.dump()));
  return json({{"manifest", body}, {"xxh3", hash_text(hasher.digest())}}).dump(2) + "\n";
}

/// A file's name inside the folder: nothing that leads out of it.
bool is_plain_name(const std::string& name) {
  return !name.empty() && name.front() != '.' && name.find('/') == name.npos;
}

std::uint64_t read_hash(const JsonObject& file, const char* key) {
  const std::string text = file.get_string(key);
  std::uint64_t hash = 0;
  std::from_chars(text.data(), text.data() + text.size(), hash, 16);
  if (hash_text(hash) != text) file.fail_at(key, "is not a hash");
  return hash;
}

}  // namespace

std::string to_text(const Manifest& manifest) {
  json files = json::object();
  for (const auto& [name, digest] : manifest.files)
    files[name] = {{"bytes", digest.bytes}, {"xxh3", hash_text(digest.xxh3)}};
  return to_text(json({{"format", kFormat},
                       {"format_version", Manifest::kFormatVersion},
                       {"program", fmt::format("{} ({})", version().number, version().commit)},
                       {"run_id", manifest.run_id},
                       {"step", manifest.step},
                       {"files", files}}));
}

Manifest read_manifest(const fs::path& folder) {
  const JsonSource source{(folder / Manifest::kFileName).string(), ErrorKind::kCheckpoint};
  require(fs::exists(source.name), source.kind, "'{}' is missing", source.name);
  const std::string text = read_text_file(source.name, kLimits.file_bytes);
  const json value = parse_json(text, source, kLimits);
  const JsonObject body = JsonObject(value, source).get_object("manifest");
  require(text == to_text(value.at("manifest")), source.kind,
          "{}: is damaged: its text does not have the hash that it claims", source.name);
  if (body.get_string("format") != kFormat) body.fail_at("format", "is not that of a checkpoint");
  const std::int64_t format_version = body.get_int64("format_version");
  require(format_version == Manifest::kFormatVersion, ErrorKind::kUnsupported,
          "{}: written by version {} in format {}; this program reads format {}", source.name,
          body.get_string("program"), format_version, Manifest::kFormatVersion);

  Manifest manifest{.run_id = body.get_string("run_id"), .step = body.get_int64("step")};
  const JsonObject files = body.get_object("files");
  for (const auto& member : body.at("files").items()) {
    if (!is_plain_name(member.key())) files.fail_at(member.key(), "is not the name of a file");
    const JsonObject file = files.get_object(member.key());
    manifest.files[member.key()] = {file.get_int64("bytes"), read_hash(file, "xxh3")};
  }
  return manifest;
}

Manifest verify_folder(const fs::path& folder) {
  Manifest manifest = read_manifest(folder);
  for (const auto& [name, expected] : manifest.files) {
    const fs::path path = folder / name;
    require(fs::exists(path), ErrorKind::kCheckpoint, "'{}' is missing", path.string());
    // A file of the wrong size is not worth reading.
    const auto bytes =
        static_cast<std::int64_t>(fs::is_regular_file(path) ? fs::file_size(path) : 0);
    require(bytes == expected.bytes, ErrorKind::kCheckpoint, "'{}' has {} bytes, expected {}",
            path.string(), bytes, expected.bytes);
    const FileDigest found = digest_file(path);
    require(found == expected, ErrorKind::kCheckpoint,
            "'{}' is damaged: its hash is {}, expected {}", path.string(), hash_text(found.xxh3),
            hash_text(expected.xxh3));
  }
  for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
    const std::string name = entry.path().filename();
    if (is_plain_name(name) && name != Manifest::kFileName && !manifest.files.contains(name))
      log::warning("'{}' is not a part of the checkpoint", entry.path().string());
  }
  return manifest;
}

}  // namespace jiboia
