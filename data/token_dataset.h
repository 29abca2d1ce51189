#pragma once
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/tensor.h"
#include "data/shard_manifest.h"

namespace jiboia {

/// Whether rows say where the documents in them begin.
enum class DocumentStarts { kIgnore, kRead };

/// Where a row goes; every span has seq_len elements.
struct RowView {
  std::span<std::int32_t> tokens;
  std::span<std::int32_t> targets;  ///< the next token, or kIgnoredTarget
  /// Position in the row of the first token of the document that a position belongs to; 0 when the
  /// document began before the row. Empty, and not written, with DocumentStarts::kIgnore.
  std::span<std::int32_t> document_start;
};

/// The rows of one folder of token shards, cut by the rules of data/FORMAT.md. Rows are read from
/// the files as they are asked for. Safe to use from several threads.
class TokenDataset {
 public:
  struct Options {
    std::int64_t seq_len = 0;
    std::int64_t vocab_size = 0;  ///< of the model; may exceed the data's
    DocumentStarts document_starts = DocumentStarts::kIgnore;
    VerifyOptions verify{};
  };

  /// Verifies the folder's files against its manifest, then opens each shard once. Errors:
  /// Data when a file is damaged, malformed or disagrees with the manifest, when row lengths and
  /// seq_len or the vocabularies do not fit, when there is no row, or when document starts are
  /// wanted and not there.
  static TokenDataset open(const std::filesystem::path& folder, const Options& options);
  ~TokenDataset();
  TokenDataset(TokenDataset&&) noexcept;
  TokenDataset& operator=(TokenDataset&&) noexcept;

  const ShardManifest& manifest() const { return manifest_; }
  std::int64_t rows() const { return rows_; }
  std::int64_t seq_len() const { return options_.seq_len; }
  /// Positions of a row that have a target: seq_len, or one less where rows have seq_len tokens.
  std::int64_t targets_per_row() const;
  bool has_document_starts() const { return options_.document_starts == DocumentStarts::kRead; }
  /// One line: rows, their rule, tokens, what is dropped, vocabulary.
  std::string summary() const;

  /// Fills `row` with row `index`. Errors: Data naming file, row, column and value when a token is
  /// outside the data's vocabulary; naming the file when somebody wrote to it since open().
  void read_row(std::int64_t index, const RowView& row) const;

 private:
  class ShardPool;
  TokenDataset(ShardManifest manifest, const Options& options);
  void check_vocabulary() const;
  void cut_rows();

  ShardManifest manifest_;
  Options options_;
  std::int64_t rows_ = 0;
  std::int64_t dropped_tokens_ = 0;        ///< at the end of a stream, not filling a row
  std::vector<std::int64_t> first_token_;  ///< of each shard in the folder's sequence, then the end
  std::unique_ptr<ShardPool> pool_;
};

}  // namespace jiboia
