#include "data/token_loader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <map>
#include <set>
#include <thread>

#include "core/error.h"
#include "data/row_permutation.h"
#include "tests/data/shard_files.h"
#include "tests/support/temporary_folder.h"

namespace jiboia {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using Options = TokenLoader::Options;

/// 23 rows of 3 targets; every token of row r is r.
struct TokenLoaderTest : testing::Test {
  static constexpr std::int64_t kRows = 23, kSeqLen = 3;

  static TokenDataset make_data(const std::filesystem::path& folder, std::int64_t bad_row = -1) {
    ShardContents shard{.row_length = kSeqLen + 1, .document_starts = {{1}}, .chunk = 2};
    for (std::int64_t row = 0; row < kRows; ++row)
      shard.tokens.insert(shard.tokens.end(), kSeqLen + 1, row == bad_row ? 60000 : row);
    write_shards(folder, {shard}, 100);
    return TokenDataset::open(
        folder, {.seq_len = kSeqLen, .vocab_size = 100, .document_starts = DocumentStarts::kRead});
  }

  /// Rows, in order, of the first `count` batches.
  std::vector<std::int64_t> rows_of(const Options& options, int count) const {
    std::vector<std::int64_t> rows;
    TokenLoader loader(data, options);
    for (int i = 0; i < count; ++i) {
      const TokenBatch batch = *loader.next();
      for (std::int64_t row = 0; row < batch.rows; ++row)
        rows.push_back(batch.tokens[static_cast<std::size_t>(row * kSeqLen)]);
    }
    return rows;
  }

  TemporaryFolder folder;
  TokenDataset data = make_data(folder.path());
};

TEST_F(TokenLoaderTest, EachRowOncePerEpoch) {
  const auto rows = rows_of({.seed = 5, .rows_per_batch = 1}, 3 * kRows);
  for (int epoch = 0; epoch < 3; ++epoch) {
    const auto begin = rows.begin() + epoch * kRows;
    EXPECT_EQ(std::set<std::int64_t>(begin, begin + kRows).size(), std::size_t{kRows});
    EXPECT_FALSE(std::is_sorted(begin, begin + kRows));
  }
  EXPECT_FALSE(std::equal(rows.begin(), rows.begin() + kRows, rows.begin() + kRows));
  EXPECT_NE(rows_of({.seed = 6, .rows_per_batch = 1}, kRows),
            std::vector<std::int64_t>(rows.begin(), rows.begin() + kRows));
}

TEST_F(TokenLoaderTest, PositionsAreComputed) {
  const auto rows = rows_of({.seed = 5, .rows_per_batch = 1}, 2 * kRows);
  for (std::int64_t k = 0; k < 2 * kRows; ++k)
    EXPECT_EQ(rows[static_cast<std::size_t>(k)], permuted_row(5, k / kRows, k % kRows, kRows));
}

TEST_F(TokenLoaderTest, OrderDoesNotDependOnBatchesOrRanks) {
  constexpr std::int64_t kTotal = 2 * 4 * 9 * 7;  // whole steps in every case below
  const auto reference = rows_of({.seed = 5, .rows_per_batch = 1}, kTotal);
  for (const std::int64_t ranks : {1, 2, 3, 7}) {
    for (const std::int64_t rows_per_batch : {1, 2, 3}) {
      std::vector<std::int64_t> merged(kTotal, -1);
      for (std::int64_t rank = 0; rank < ranks; ++rank) {
        TokenLoader loader(
            data, {.seed = 5, .rows_per_batch = rows_per_batch, .rank = rank, .ranks = ranks});
        for (std::int64_t step = 0; step < kTotal / ranks / rows_per_batch; ++step) {
          const TokenBatch batch = *loader.next();
          for (std::int64_t i = 0; i < rows_per_batch; ++i)
            merged[static_cast<std::size_t>(batch.position + i)] =
                batch.tokens[static_cast<std::size_t>(i * kSeqLen)];
        }
      }
      EXPECT_EQ(merged, reference) << ranks << " ranks, batches of " << rows_per_batch;
    }
  }
}

TEST_F(TokenLoaderTest, ResumesAnywhere) {
  const auto reference = rows_of({.seed = 5, .rows_per_batch = 4}, 20);
  const auto resumed = rows_of({.seed = 5, .rows_per_batch = 4, .first_position = 12 * 4}, 8);
  EXPECT_TRUE(std::equal(resumed.begin(), resumed.end(), reference.begin() + 12 * 4));
}

TEST_F(TokenLoaderTest, BatchesSayWhereTheyAre) {
  TokenLoader loader(data, {.rows_per_batch = 4, .first_position = 46, .rank = 1, .ranks = 2});
  const TokenBatch batch = *loader.next();
  EXPECT_EQ(batch.rows, 4);
  EXPECT_EQ(batch.data_rows, 4);
  EXPECT_EQ(batch.seq_len, kSeqLen);
  EXPECT_EQ(batch.position, 50);
  EXPECT_DOUBLE_EQ(batch.epoch, 50.0 / kRows);
  EXPECT_GE(batch.wait_s, 0);
  EXPECT_EQ(loader.next()->position, 58);
}

TEST_F(TokenLoaderTest, SequentialPassEndsAndPadsItsLastBatch) {
  TokenLoader loader(data, {.order = RowOrder::kSequential, .rows_per_batch = 10});
  const TokenBatch first = *loader.next();
  EXPECT_EQ(first.data_rows, 10);
  EXPECT_THAT(std::vector(first.tokens.end() - 4, first.tokens.end()), ElementsAre(8, 9, 9, 9));
  EXPECT_THAT(std::vector(first.document_start.begin(), first.document_start.begin() + 4),
              ElementsAre(0, 1, 1, 0));
  loader.next();
  const TokenBatch last = *loader.next();
  EXPECT_EQ(last.rows, 10);
  EXPECT_EQ(last.data_rows, 3);
  EXPECT_THAT(std::vector(last.tokens.begin() + 6, last.tokens.begin() + 12),
              ElementsAre(22, 22, 22, 0, 0, 0));
  EXPECT_THAT(std::vector(last.targets.begin() + 6, last.targets.begin() + 12),
              ElementsAre(22, 22, 22, kIgnoredTarget, kIgnoredTarget, kIgnoredTarget));
  EXPECT_FALSE(loader.next().has_value());
  EXPECT_FALSE(loader.next().has_value());
}

TEST_F(TokenLoaderTest, SequentialRanksTakeEquallyManySteps) {
  std::multiset<std::int64_t> rows;
  for (std::int64_t rank = 0; rank < 4; ++rank) {
    TokenLoader loader(
        data, {.order = RowOrder::kSequential, .rows_per_batch = 5, .rank = rank, .ranks = 4});
    int steps = 0;
    for (auto batch = loader.next(); batch; batch = loader.next(), ++steps)
      for (std::int64_t i = 0; i < batch->data_rows; ++i)
        rows.insert(batch->tokens[static_cast<std::size_t>(i * kSeqLen)]);
    EXPECT_EQ(steps, 2) << "rank " << rank;
  }
  EXPECT_EQ(rows.size(), std::size_t{kRows});
  EXPECT_EQ(std::set<std::int64_t>(rows.begin(), rows.end()).size(), std::size_t{kRows});
}

TEST_F(TokenLoaderTest, SequentialPassCanBeShort) {
  TokenLoader loader(data, {.order = RowOrder::kSequential, .rows_per_batch = 4, .max_rows = 6});
  EXPECT_EQ(loader.next()->data_rows, 4);
  EXPECT_EQ(loader.next()->data_rows, 2);
  EXPECT_FALSE(loader.next().has_value());
}

TEST_F(TokenLoaderTest, FewerRowsThanAMicroStepAreRefused) {
  EXPECT_NO_THROW(TokenLoader(data, {.rows_per_batch = kRows}));
  EXPECT_THAT(error_of(ErrorKind::kData, [&] { TokenLoader(data, {.rows_per_batch = kRows + 1}); }),
              HasSubstr("23 rows are fewer than the 24 of one micro-step"));
  EXPECT_THAT(
      error_of(ErrorKind::kData, [&] { TokenLoader(data, {.rows_per_batch = 12, .ranks = 2}); }),
      HasSubstr("23 rows are fewer than the 24"));
  EXPECT_NO_THROW(TokenLoader(data, {.order = RowOrder::kSequential, .rows_per_batch = kRows + 1}));
}

TEST_F(TokenLoaderTest, AnErrorComesWithTheBatchThatHasIt) {
  const TemporaryFolder other;
  const TokenDataset damaged = make_data(other.path(), 9);
  TokenLoader loader(damaged, {.order = RowOrder::kSequential, .rows_per_batch = 2});
  for (int i = 0; i < 4; ++i) EXPECT_EQ(loader.next()->data_rows, 2);
  for (int i = 0; i < 2; ++i) {
    EXPECT_THAT(error_of(ErrorKind::kData, [&] { loader.next(); }),
                HasSubstr("row 9, column 0: token 60000 is outside the vocabulary of 100"));
  }
}

TEST_F(TokenLoaderTest, StopsPromptlyWhereverItIs) {
  const auto begin = std::chrono::steady_clock::now();
  for (int i = 0; i < 200; ++i) {
    TokenLoader loader(data, {.rows_per_batch = kRows, .prefetched_batches = 1 + i % 3});
    if (i % 2 == 0) loader.next();
    if (i % 20 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(20));
}

TEST_F(TokenLoaderTest, TwoLoadersReadAtOnce) {
  const TemporaryFolder other;
  const TokenDataset validation = make_data(other.path());
  TokenLoader a(data, {.seed = 5, .rows_per_batch = 1});
  TokenLoader b(validation, {.seed = 5, .rows_per_batch = 1});
  for (int i = 0; i < 20 * kRows; ++i) EXPECT_EQ(a.next()->tokens, b.next()->tokens);
}

}  // namespace
}  // namespace jiboia
