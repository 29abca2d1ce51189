#include "data/token_dataset.h"

#include <sys/resource.h>

#include <algorithm>
#include <list>
#include <mutex>
#include <optional>
#include <utility>

#include "core/error.h"
#include "data/shard_check.h"

namespace jiboia {
namespace {

/// Shards that are open at a time, at most: rows come from all shards in turn, and to open one
/// again takes longer than to read a row. A third of the descriptors that the process may have,
/// since there may be two data sets.
std::size_t max_open_shards() {
  constexpr rlim_t kMost = 1024;
  rlimit descriptors{};
  if (::getrlimit(RLIMIT_NOFILE, &descriptors) != 0) return 64;
  return static_cast<std::size_t>(std::clamp<rlim_t>(descriptors.rlim_cur / 3, 1, kMost));
}

/// What HDF5 may keep of all open shards' chunks.
constexpr std::size_t kCacheBytes = std::size_t{512} << 20;

struct LoadedShard {
  TokenShard file;
  std::vector<std::int64_t> document_starts;
};

/// Fills positions with the row's position at which their document began. `starts` are offsets in
/// the shard; the part of the row that lies in it begins at its token `first`, the row's `column`.
void fill_document_starts(const std::vector<std::int64_t>& starts, std::int64_t first,
                          std::int64_t column, std::int64_t count, std::span<std::int32_t> out) {
  auto next = std::lower_bound(starts.begin(), starts.end(), first);
  std::int32_t current = column == 0 ? 0 : out[static_cast<std::size_t>(column - 1)];
  const std::int64_t end = std::min<std::int64_t>(column + count, std::ssize(out));
  for (std::int64_t position = column; position < end; ++position) {
    if (next != starts.end() && *next == first + position - column) {
      current = static_cast<std::int32_t>(position);
      ++next;
    }
    out[static_cast<std::size_t>(position)] = current;
  }
}

}  // namespace

/// The shards that were used last, open.
class TokenDataset::ShardPool {
 public:
  ShardPool(const ShardManifest& manifest, DocumentStarts document_starts)
      : document_starts_(document_starts),
        max_open_(std::clamp<std::size_t>(manifest.shards.size(), 1, max_open_shards())),
        versions_(manifest.shards.size()),
        shards_(manifest.shards.size()) {}

  std::shared_ptr<const LoadedShard> get(const ShardManifest& manifest, std::size_t index) {
    const std::lock_guard lock(mutex_);
    recent_.remove(index);
    recent_.push_front(index);
    if (!shards_[index]) {
      TokenShard shard = open_shard(manifest, index, kCacheBytes / max_open_);
      if (!versions_[index]) versions_[index] = shard.version();
      shard.require_version(*versions_[index]);
      std::vector<std::int64_t> starts;
      if (document_starts_ == DocumentStarts::kRead) starts = shard.read_document_starts();
      shards_[index] =
          std::make_shared<const LoadedShard>(LoadedShard{std::move(shard), std::move(starts)});
    }
    if (recent_.size() > max_open_) {
      shards_[recent_.back()].reset();
      recent_.pop_back();
    }
    return shards_[index];
  }

 private:
  const DocumentStarts document_starts_;
  const std::size_t max_open_;
  std::mutex mutex_;
  std::vector<std::optional<ShardVersion>> versions_;       ///< as first opened
  std::vector<std::shared_ptr<const LoadedShard>> shards_;  ///< null: not open
  std::list<std::size_t> recent_;                           ///< open ones, last used first
};

TokenDataset TokenDataset::open(const std::filesystem::path& folder, const Options& options) {
  TokenDataset dataset(ShardManifest::load(folder), options);
  dataset.check_vocabulary();
  dataset.cut_rows();
  verify_files(dataset.manifest_, options.verify);
  for (std::size_t i = 0; i < dataset.manifest_.shards.size(); ++i)
    dataset.pool_->get(dataset.manifest_, i);
  return dataset;
}

TokenDataset::TokenDataset(ShardManifest manifest, const Options& options)
    : manifest_(std::move(manifest)),
      options_(options),
      pool_(std::make_unique<ShardPool>(manifest_, options.document_starts)) {
  require(options.seq_len > 0, ErrorKind::kInvalidArgument, "seq_len is {}, expected at least 1",
          options.seq_len);
}

TokenDataset::~TokenDataset() = default;
TokenDataset::TokenDataset(TokenDataset&&) noexcept = default;
TokenDataset& TokenDataset::operator=(TokenDataset&&) noexcept = default;

void TokenDataset::check_vocabulary() const {
  const std::string folder = manifest_.folder.string();
  require(manifest_.vocab_size <= options_.vocab_size, ErrorKind::kData,
          "{}: the data's vocabulary has {} ids, the model's vocab_size is {}; it may be larger, "
          "never smaller",
          folder, manifest_.vocab_size, options_.vocab_size);
  require(!has_document_starts() || manifest_.shards.front().documents.has_value(),
          ErrorKind::kData,
          "{}: the run resets its state at document starts, but the shards do not list any (see "
          "prepare_data.py --document-starts)",
          folder);
}

void TokenDataset::cut_rows() {
  const std::string folder = manifest_.folder.string();
  const std::int64_t seq_len = options_.seq_len;
  first_token_.assign(1, 0);
  for (const auto& shard : manifest_.shards)
    first_token_.push_back(first_token_.back() + shard.tokens);
  if (manifest_.layout == ShardLayout::kRows) {
    const std::int64_t length = manifest_.row_length;
    require(
        length == seq_len || length == seq_len + 1, ErrorKind::kData,
        "{}: rows of {} tokens do not serve seq_len {}: they must have {} tokens, or {} so that "
        "every position has a target",
        folder, length, seq_len, seq_len, seq_len + 1);
    rows_ = manifest_.tokens / length;
    require(rows_ > 0, ErrorKind::kData, "{}: has no rows", folder);
  } else {
    rows_ = (manifest_.tokens - 1) / seq_len;
    require(rows_ > 0, ErrorKind::kData,
            "{}: {} tokens do not fill one row of seq_len {} (seq_len + 1 tokens)", folder,
            manifest_.tokens, seq_len);
    dropped_tokens_ = manifest_.tokens - 1 - rows_ * seq_len;
  }
}

std::int64_t TokenDataset::targets_per_row() const {
  return manifest_.row_length == options_.seq_len ? options_.seq_len - 1 : options_.seq_len;
}

std::string TokenDataset::summary() const {
  std::string text = fmt::format("{}: {} rows, {} targets each, from ", manifest_.folder.string(),
                                 rows_, targets_per_row());
  if (manifest_.layout == ShardLayout::kRows)
    text += fmt::format("rows of {} tokens", manifest_.row_length);
  else
    text += fmt::format("a stream cut every {} tokens", options_.seq_len);
  text += fmt::format("; {} tokens in {} shard{}", manifest_.tokens, manifest_.shards.size(),
                      manifest_.shards.size() == 1 ? "" : "s");
  if (dropped_tokens_ > 0) text += fmt::format(", the last {} left out", dropped_tokens_);
  text +=
      fmt::format("; vocabulary {} of the model's {}", manifest_.vocab_size, options_.vocab_size);
  if (has_document_starts()) {
    std::int64_t documents = 0;
    for (const auto& shard : manifest_.shards) documents += shard.documents.value_or(0);
    text += fmt::format("; state reset at {} document starts", documents);
  }
  return text;
}

void TokenDataset::read_row(std::int64_t index, const RowView& row) const {
  const std::int64_t seq_len = options_.seq_len;
  require(0 <= index && index < rows_, ErrorKind::kInternal, "row {} of {} was asked for", index,
          rows_);
  require(std::ssize(row.tokens) == seq_len && std::ssize(row.targets) == seq_len &&
              std::ssize(row.document_start) == (has_document_starts() ? seq_len : 0),
          ErrorKind::kInternal, "a row of {} positions needs spans of that size", seq_len);
  const bool is_stream = manifest_.layout == ShardLayout::kStream;
  const std::int64_t length = is_stream ? seq_len + 1 : manifest_.row_length;
  const std::int64_t begin = index * (is_stream ? seq_len : length);

  std::vector<std::int64_t> tokens(static_cast<std::size_t>(length));
  const auto after = std::upper_bound(first_token_.begin(), first_token_.end(), begin);
  auto shard = static_cast<std::size_t>(after - first_token_.begin()) - 1;
  for (std::int64_t column = 0; column < length; ++shard) {  // a stream's row may span shards
    const std::int64_t first = begin + column - first_token_[shard];
    const std::int64_t count = std::min(length - column, manifest_.shards[shard].tokens - first);
    const std::span part(tokens.data() + column, static_cast<std::size_t>(count));
    const auto loaded = pool_->get(manifest_, shard);
    loaded->file.read_tokens(first, part);
    check_tokens(manifest_, shard, first, part);
    if (has_document_starts())
      fill_document_starts(loaded->document_starts, first, column, count, row.document_start);
    column += count;
  }

  const auto narrow = [](std::int64_t token) { return static_cast<std::int32_t>(token); };
  std::transform(tokens.begin(), tokens.begin() + seq_len, row.tokens.begin(), narrow);
  std::transform(tokens.begin() + 1, tokens.end(), row.targets.begin(), narrow);
  if (length == seq_len) row.targets.back() = kIgnoredTarget;
}

}  // namespace jiboia
