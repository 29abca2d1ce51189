#pragma once
#include <cstddef>
#include <cstdint>
#include <span>

#include "data/shard_manifest.h"
#include "data/token_shard.h"

namespace jiboia {

/// Opens shard `index` of a folder and compares what it says of itself with the manifest. The
/// file's hash is to be verified before. `cache_bytes` as for TokenShard. Errors: Data.
TokenShard open_shard(const ShardManifest& manifest, std::size_t index,
                      std::size_t cache_bytes = TokenShard::kMaxCacheBytes);

/// Checks that tokens, read from `first` on in shard `index`, are in the data's vocabulary. Errors:
/// Data naming file, row and column (or position), value and vocabulary.
void check_tokens(const ShardManifest& manifest, std::size_t index, std::int64_t first,
                  std::span<const std::int64_t> tokens);

/// open_shard(), then reads all of it: every token and every document start. Errors: Data.
void check_shard(const ShardManifest& manifest, std::size_t index);

}  // namespace jiboia
