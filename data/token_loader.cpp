#include "data/token_loader.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <stop_token>
#include <thread>
#include <utility>

#include "core/error.h"
#include "data/row_permutation.h"

namespace jiboia {

class TokenLoader::Reader {
 public:
  Reader(const TokenDataset& dataset, const Options& options)
      : dataset_(dataset), options_(options) {
    const std::int64_t step_rows = options.rows_per_batch * options.ranks;
    require(options.rows_per_batch > 0 && options.first_position >= 0 && options.rank >= 0 &&
                options.rank < options.ranks && options.max_rows >= 0 &&
                options.prefetched_batches > 0,
            ErrorKind::kInvalidArgument, "token loader: an option is out of range");
    require(options.order == RowOrder::kSequential || dataset.rows() >= step_rows, ErrorKind::kData,
            "{}: {} rows are fewer than the {} of one micro-step",
            dataset.manifest().folder.string(), dataset.rows(), step_rows);
    if (options.order == RowOrder::kSequential) {
      end_ = dataset.rows();
      if (options.max_rows > 0) end_ = std::min(end_, options.first_position + options.max_rows);
    }
    thread_ = std::jthread([this](const std::stop_token& stop) { run(stop); });
  }

  std::optional<TokenBatch> next() {
    const auto begin = std::chrono::steady_clock::now();
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return !queue_.empty() || finished_; });
    if (queue_.empty()) {
      if (error_) std::rethrow_exception(error_);
      return std::nullopt;
    }
    TokenBatch batch = std::move(queue_.front());
    queue_.pop_front();
    lock.unlock();
    changed_.notify_all();
    batch.wait_s = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    return batch;
  }

 private:
  bool shuffled() const { return options_.order == RowOrder::kShuffled; }

  /// The thread: reads batches in order and waits while enough of them are ready.
  void run(const std::stop_token& stop) {
    const std::int64_t step_rows = options_.rows_per_batch * options_.ranks;
    std::exception_ptr error;
    try {
      for (std::int64_t step = options_.first_position; shuffled() || step < end_;
           step += step_rows) {
        TokenBatch batch = read_batch(step + options_.rank * options_.rows_per_batch, stop);
        std::unique_lock lock(mutex_);
        const auto has_room = [&] {
          return queue_.size() < static_cast<std::size_t>(options_.prefetched_batches);
        };
        if (!changed_.wait(lock, stop, has_room)) return;
        queue_.push_back(std::move(batch));
        lock.unlock();
        changed_.notify_all();
      }
    } catch (...) {
      error = std::current_exception();
    }
    const std::lock_guard lock(mutex_);
    error_ = error;
    finished_ = true;
    changed_.notify_all();
  }

  TokenBatch read_batch(std::int64_t position, const std::stop_token& stop) const {
    const std::int64_t seq_len = dataset_.seq_len();
    const auto size = static_cast<std::size_t>(options_.rows_per_batch * seq_len);
    TokenBatch batch;
    batch.rows = options_.rows_per_batch;
    batch.seq_len = seq_len;
    batch.position = position;
    batch.epoch = static_cast<double>(position) / static_cast<double>(dataset_.rows());
    batch.tokens.assign(size, 0);
    batch.targets.assign(size, kIgnoredTarget);
    batch.document_start.assign(dataset_.has_document_starts() ? size : 0, 0);
    batch.data_rows =
        shuffled() ? batch.rows : std::clamp<std::int64_t>(end_ - position, 0, batch.rows);
    for (std::int64_t i = 0; i < batch.data_rows && !stop.stop_requested(); ++i) {
      const auto row_of = [&](std::vector<std::int32_t>& values) {
        return values.empty()
                   ? std::span<std::int32_t>()
                   : std::span(values.data() + i * seq_len, static_cast<std::size_t>(seq_len));
      };
      dataset_.read_row(row_at(position + i), {row_of(batch.tokens), row_of(batch.targets),
                                               row_of(batch.document_start)});
    }
    return batch;
  }

  std::int64_t row_at(std::int64_t position) const {
    if (!shuffled()) return position;
    const std::int64_t rows = dataset_.rows();
    return permuted_row(options_.seed, position / rows, position % rows, rows);
  }

  const TokenDataset& dataset_;
  const Options options_;
  std::int64_t end_ = 0;  ///< of a sequential pass
  std::mutex mutex_;
  std::condition_variable_any changed_;
  std::deque<TokenBatch> queue_;
  std::exception_ptr error_;
  bool finished_ = false;
  std::jthread thread_;  ///< last: it uses the others
};

TokenLoader::TokenLoader(const TokenDataset& dataset, const Options& options)
    : reader_(std::make_unique<Reader>(dataset, options)) {}
TokenLoader::~TokenLoader() = default;

std::optional<TokenBatch> TokenLoader::next() { return reader_->next(); }

}  // namespace jiboia
