#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "data/token_dataset.h"

namespace jiboia {

/// In what order rows are given out.
enum class RowOrder {
  kShuffled,    ///< without end, a new seeded order each epoch
  kSequential,  ///< once, in the data's order: for validation
};

/// Rows of one micro-step of one rank; everything (rows, seq_len), row after row.
struct TokenBatch {
  std::int64_t rows = 0;  ///< always rows_per_batch
  std::int64_t seq_len = 0;
  std::vector<std::int32_t> tokens;
  std::vector<std::int32_t> targets;
  std::vector<std::int32_t> document_start;  ///< empty unless the data set reads them; see RowView
  std::int64_t position = 0;                 ///< global position of the first row
  std::int64_t data_rows = 0;  ///< rows that hold data; the rest, token 0 without targets, fills up
                               ///< the last batch of a sequential pass
  double epoch = 0;            ///< passes over the data before the first row
  double wait_s = 0;           ///< time that next() had to wait for it
};

/// Gives out batches of rows, read ahead by one thread.
///
/// Every row of a run has a global position: position k is row permuted_row(seed, k / rows,
/// k % rows) of the data (row k in a sequential pass). Batch b of a rank is made of positions
/// first_position + (b * ranks + rank) * rows_per_batch and the following ones, so the order of the
/// rows depends on neither the batch size nor the number of ranks, batches cross epochs, and
/// resuming is setting first_position.
class TokenLoader {
 public:
  struct Options {
    RowOrder order = RowOrder::kShuffled;
    std::uint64_t seed = 0;
    std::int64_t rows_per_batch = 1;
    std::int64_t first_position = 0;  ///< rows that all ranks together have used before
    std::int64_t rank = 0;
    std::int64_t ranks = 1;
    std::int64_t max_rows = 0;  ///< of a sequential pass; 0: all
    int prefetched_batches = 4;
  };

  /// `dataset` must outlive the loader. Errors: Data when a shuffled order has fewer rows than one
  /// micro-step of all ranks.
  TokenLoader(const TokenDataset& dataset, const Options& options);
  /// Stops the thread after the row that it is reading.
  ~TokenLoader();

  /// The next batch, or nothing after a sequential pass; all ranks get equally many. Errors: what
  /// reading the batch threw, again on every later call.
  std::optional<TokenBatch> next();

 private:
  class Reader;
  std::unique_ptr<Reader> reader_;
};

}  // namespace jiboia
