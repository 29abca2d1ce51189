#pragma once
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "core/error.h"

namespace jiboia {

/// How a test's shard is written; by default as scripts/prepare_data.py does.
struct ShardContents {
  std::vector<std::int64_t> tokens;
  std::int64_t row_length = 0;  ///< 0: a stream
  std::optional<std::vector<std::int64_t>> document_starts;
  const char* type = "uint16";  ///< also uint8, int32, int64, uint64, float32, uint16be, ...
  std::int64_t chunk = 64;      ///< along the first dimension; 0: contiguous
  bool deflate = false;
  std::map<std::string, std::int64_t> attributes{};
};

/// Writes an HDF5 file; tokens go through HDF5's conversion from int64.
void write_shard(const std::filesystem::path& path, const ShardContents& contents);

/// Writes manifest.json for the named files, after `change` had its way with it. Sizes and hashes
/// are the files'; token counts come from `shards`.
using ManifestChange = std::function<void(nlohmann::json&)>;
void write_manifest(const std::filesystem::path& folder, const std::vector<ShardContents>& shards,
                    std::int64_t vocab_size, const ManifestChange& change = {});

/// Writes shard_00000.h5 ... and their manifest.
void write_shards(const std::filesystem::path& folder, const std::vector<ShardContents>& shards,
                  std::int64_t vocab_size, const ManifestChange& change = {});

/// The message of the Error{kind} that `function` throws; a failed expectation and "" when it
/// throws none or another kind.
std::string error_of(ErrorKind kind, const std::function<void()>& function);

/// `count` tokens that differ from their neighbours: a fixed pseudo-random sequence below `vocab`.
std::vector<std::int64_t> some_tokens(std::int64_t count, std::int64_t vocab);

}  // namespace jiboia
