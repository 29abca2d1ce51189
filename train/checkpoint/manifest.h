#pragma once
#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <string_view>

#include "data/file.h"

namespace jiboia {

/// What a checkpoint's folder holds: MANIFEST.json, written last of its files. The text carries its
/// own hash, so that no damaged byte of a folder goes unseen:
///
///     {"manifest": {"files": {"config.json": {"bytes": 812, "xxh3": "..."}, ...},
///                   "format": "jiboia checkpoint", "format_version": 1, "program": "0.1.0
///                   (1a2b3c)", "run_id": "...", "step": 100},
///      "xxh3": "..."}                    of the inner object, printed without spaces
struct Manifest {
  static constexpr const char* kFileName = "MANIFEST.json";
  static constexpr std::int64_t kFormatVersion = 1;

  std::string run_id;
  std::int64_t step = 0;
  std::map<std::string, FileDigest> files;  ///< all files but the manifest itself

  bool operator==(const Manifest&) const = default;
};

std::string to_text(const Manifest& manifest);

/// Reads folder/MANIFEST.json. Errors: Io; Checkpoint when it is damaged or no manifest at all;
/// Unsupported when a newer version of the program wrote it.
Manifest read_manifest(const std::filesystem::path& folder);

/// Reads the manifest and every file that it lists, and compares sizes and hashes; files beside
/// those only warn. Errors: as read_manifest(); Checkpoint naming the first file that differs.
Manifest verify_folder(const std::filesystem::path& folder);

}  // namespace jiboia
