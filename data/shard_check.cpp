#include "data/shard_check.h"

#include <algorithm>
#include <limits>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/error.h"

namespace jiboia {
namespace {

constexpr std::int64_t kTokensAtOnce = std::int64_t{1} << 20;

}  // namespace

TokenShard open_shard(const ShardManifest& manifest, std::size_t index, std::size_t cache_bytes) {
  const ManifestShard& entry = manifest.shards[index];
  TokenShard shard(manifest.path_of(entry), cache_bytes);
  const std::string path = shard.path().string();
  require(shard.row_length() == manifest.row_length, ErrorKind::kData,
          "{}: rows of {} tokens, manifest.json says {} (0: a stream)", path, shard.row_length(),
          manifest.row_length);
  require(shard.tokens() == entry.tokens, ErrorKind::kData, "{}: {} tokens, manifest.json says {}",
          path, shard.tokens(), entry.tokens);
  require(shard.documents() == entry.documents, ErrorKind::kData,
          "{}: {} document starts, manifest.json says {} (-1: none listed)", path,
          shard.documents().value_or(-1), entry.documents.value_or(-1));
  const std::pair<const char*, std::optional<std::int64_t>> attributes[] = {
      {"format_version", 1},
      {"vocab_size", manifest.vocab_size},
      {"tokens", entry.tokens},
      {"source_bytes", entry.source_bytes},
      {"documents", entry.documents},
      {"bos_token_id", manifest.bos_token_id},
      {"eos_token_id", manifest.eos_token_id},
      {"pad_token_id", manifest.pad_token_id},
  };
  for (const auto& [name, expected] : attributes) {
    const auto found = shard.attribute(name);
    require(!found || found == expected, ErrorKind::kData,
            "{}: attribute `{}` is {}, manifest.json says {}", path, name, found.value_or(0),
            expected ? std::to_string(*expected) : "nothing");
  }
  return shard;
}

void check_tokens(const ShardManifest& manifest, std::size_t index, std::int64_t first,
                  std::span<const std::int64_t> tokens) {
  const auto bad = std::find_if(tokens.begin(), tokens.end(), [&](std::int64_t token) {
    return token < 0 || token >= manifest.vocab_size;
  });
  if (bad == tokens.end()) return;
  const std::int64_t offset = first + (bad - tokens.begin());
  const std::int64_t width = manifest.row_length;
  const std::string place = width > 0
                                ? fmt::format("row {}, column {}", offset / width, offset % width)
                                : fmt::format("position {}", offset);
  // Where unsigned tokens do not fit, all that is known is that they are at least this.
  const bool is_clamped = *bad == std::numeric_limits<std::int64_t>::max();
  fail(ErrorKind::kData, "{}: {}: token {}{} is outside the vocabulary of {}",
       manifest.path_of(manifest.shards[index]).string(), place, *bad, is_clamped ? " or more" : "",
       manifest.vocab_size);
}

void check_shard(const ShardManifest& manifest, std::size_t index) {
  const TokenShard shard = open_shard(manifest, index);
  const std::int64_t width = std::max<std::int64_t>(shard.row_length(), 1);
  const std::int64_t step = std::max(kTokensAtOnce / width, std::int64_t{1}) * width;
  std::vector<std::int64_t> tokens(static_cast<std::size_t>(std::min(step, shard.tokens())));
  for (std::int64_t first = 0; first < shard.tokens(); first += step) {
    const std::int64_t count = std::min(step, shard.tokens() - first);
    const std::span part(tokens.data(), static_cast<std::size_t>(count));
    shard.read_tokens(first, part);
    check_tokens(manifest, index, first, part);
  }
  shard.read_document_starts();
}

}  // namespace jiboia
