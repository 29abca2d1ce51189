#pragma once
#include <algorithm>

#include "kernels/selective_scan/selective_scan_tiles.cuh"

/// The fast backward pass of the selective scan: how its work is cut, and what its kernels hand
/// over to each other. selective_scan_tiles.h says which scans take it.
///
/// A row of the work is kBlockTiles tiles of channels of one batch row; a block of threads, one
/// warp a tile, takes it from the last step to the first, period by period. Workers, each a block
/// that fills a multiprocessor, share all rows evenly, so a row may be cut into pieces that
/// different workers take. A piece starts from the gradient of the state behind it, which comes
/// from the piece that has the later steps, or, where the pieces of a row run at the same time,
/// from a pass ahead of all that finds just that.
namespace jiboia::scan_tiles {

using cuda::GradRows;
using cuda::Rows;

inline constexpr int kChunk = static_cast<int>(kSteps);  ///< steps
inline constexpr int kPeriodChunks = 2;                  ///< chunks brought from memory together
inline constexpr int kPeriod = kPeriodChunks * kChunk;   ///< steps
inline constexpr int kBlockTiles = 8;                    ///< tiles, and warps, of a block
inline constexpr int kBlockThreads = 32 * kBlockTiles;
inline constexpr int kBlockChannels = kBlockTiles * static_cast<int>(kChannels);
/// What a warp writes for a step, of each grad_b and grad_c.
inline constexpr int kRowStates = 2 * static_cast<int>(kStates);

/// Who does which part of the pass. The periods of all rows stand in one line, row after row, each
/// row's last period first, and in front of it places for the work of entering the row; every
/// worker has an equal stretch of that line. The part of a stretch that lies in one row is a piece.
struct Schedule {
  /// Workers of a large pass: the multiprocessors of an H100 or H200. Other GPUs give the same
  /// bits, and the blocks wait for a place.
  static constexpr std::int64_t kWorkers = 132;
  /// Periods that are worth a worker of their own.
  static constexpr std::int64_t kFewestPeriods = 8;
  /// Periods that take as long as it takes to enter a row.
  static constexpr std::int64_t kEntry = 2;

  Schedule(std::int64_t B, std::int64_t L, std::int64_t D)
      : periods(ceil_div(L, kPeriod)),
        blocks(ceil_div(D, kBlockChannels)),
        rows(B * blocks),
        workers(std::clamp(rows * periods / kFewestPeriods, std::min(rows, kWorkers), kWorkers)) {}

  /// Whether the pieces of a row run at the same time. Otherwise a row has two pieces at most, and
  /// the worker that has the later steps does these before all else.
  __host__ __device__ bool at_once() const { return rows < workers; }
  /// The most pieces that a row has.
  std::int64_t most_pieces() const {
    if (rows % workers == 0) return 1;
    return at_once() ? ceil_div(kEntry + periods, rows * (kEntry + periods) / workers) + 1 : 2;
  }

  /// Where a worker's stretch begins, in periods of all rows; that of `workers` at the line's end.
  __host__ __device__ std::int64_t begin(std::int64_t worker) const {
    const std::int64_t work = worker * (rows * (kEntry + periods)) / workers;
    const std::int64_t row = work / (kEntry + periods);
    return max(work - row * kEntry - kEntry, row * periods);
  }
  /// The row that a worker ends with.
  __host__ __device__ std::int64_t last_row(std::int64_t worker) const {
    return (begin(worker + 1) - 1) / periods;
  }
  /// The worker that has a row's last period.
  __host__ __device__ std::int64_t first_worker(std::int64_t row) const {
    return ((row * (kEntry + periods) + kEntry + 1) * workers - 1) / (rows * (kEntry + periods));
  }

  std::int64_t periods;  ///< of a row
  std::int64_t blocks;   ///< of channels
  std::int64_t rows;     ///< (B, blocks)
  std::int64_t workers;
};

/// Steps [begin, end) of a row, in periods.
struct Piece {
  __device__ Piece(const Schedule& schedule, std::int64_t worker, std::int64_t its_row)
      : row(its_row), index(static_cast<int>(worker - schedule.first_worker(its_row))) {
    const std::int64_t first = row * schedule.periods, last = first + schedule.periods;
    begin = static_cast<int>(last - min(schedule.begin(worker + 1), last));
    end = static_cast<int>(last - max(schedule.begin(worker), first));
  }

  std::int64_t row;
  int index;  ///< of the row's pieces, 0 is the one with the last steps
  int begin, end;
};

/// Who does which part of the pass ahead. The pieces that have others in front of them in their
/// rows, at most one a worker, stand in one line, worker after worker; every block has an equal
/// stretch of it. The part of a stretch that lies in one piece is a segment.
struct AheadSchedule {
  /// Two for each multiprocessor.
  static constexpr std::int64_t kBlocks = 2 * Schedule::kWorkers;
  /// Periods that are worth a block of their own.
  static constexpr std::int64_t kFewestPeriods = 4;

  explicit AheadSchedule(const Schedule& schedule) {
    if (!schedule.at_once()) return;
    // In few divisions, since the GPU may wait for it.
    const std::int64_t periods = schedule.periods, workers = schedule.workers;
    std::int64_t row_begin = 0, begin = 0;
    for (std::int64_t worker = 0; worker < workers; ++worker) {
      const std::int64_t end = schedule.begin(worker + 1);
      while (row_begin + periods < end) row_begin += periods;
      const bool goes_on = end < row_begin + periods;
      pieces[worker + 1] = pieces[worker] + (goes_on ? end - std::max(begin, row_begin) : 0);
      begin = end;
    }
    const std::int64_t size = pieces[workers];
    blocks = std::min(kBlocks, ceil_div(size, kFewestPeriods));
    stretch = size / blocks;
    longer = size % blocks;
    std::int64_t block = 0;  // that the worker's piece begins in
    for (std::int64_t worker = 0; worker < workers; ++worker) {
      segments[worker + 1] = segments[worker];
      if (pieces[worker] == pieces[worker + 1]) continue;
      for (++segments[worker + 1]; this->begin(block + 1) < pieces[worker + 1]; ++block) {
        ++segments[worker + 1];
      }
      if (this->begin(block + 1) == pieces[worker + 1]) ++block;
    }
  }
  /// Where a block's stretch begins; that of `blocks` at the line's end.
  __host__ __device__ std::int64_t begin(std::int64_t block) const {
    return block * stretch + (block < longer ? block : longer);
  }
  /// Whose stretch a place of the line lies in.
  __host__ __device__ std::int64_t block_of(std::int64_t place) const {
    const std::int64_t block = place / (stretch + 1);
    return block < longer ? block : (place - longer) / stretch;
  }

  std::int64_t pieces[Schedule::kWorkers + 1] = {};  ///< where each worker's begins; the line's end
  /// The number of each worker's first segment. Those of a row's pieces follow each other.
  int segments[Schedule::kWorkers + 1] = {};
  std::int64_t blocks = 0;
  std::int64_t stretch = 1;  ///< periods of a block
  std::int64_t longer = 0;   ///< of the first blocks, that have one more
};

/// Working memory of the pass.
struct Partials {
  Partials(ScratchReader scratch, std::int64_t B, std::int64_t D, const Schedule& schedule)
      : pieces(schedule.most_pieces()),
        b_c(scratch.take<float>(schedule.blocks * B * schedule.periods * kPeriod * kRowStates)),
        a_log(scratch.take<float>(pieces * B * D * kStates)),
        d_skip(scratch.take<float>(pieces * B * D)),
        dt_bias(scratch.take<float>(pieces * B * D)),
        gamma(scratch.take<float4>(handed_over(schedule) * kTileVectors * kBlockTiles)),
        delta(scratch.take<float4>(handed_over(schedule) * kDeltaVectors * kBlockTiles)),
        counters(scratch.take<int>(counter_count(schedule))) {}

  static std::int64_t bytes(std::int64_t B, std::int64_t D, const Schedule& schedule) {
    const auto floats = ScratchReader::padded_bytes<float>;
    const auto vectors = ScratchReader::padded_bytes<float4>;
    const std::int64_t pieces = schedule.most_pieces(), tiles = handed_over(schedule) * kBlockTiles;
    return static_cast<std::int64_t>(
        floats(schedule.blocks * B * schedule.periods * kPeriod * kRowStates) +
        floats(pieces * B * D * kStates) + 2 * floats(pieces * B * D) +
        vectors(tiles * kTileVectors) + vectors(tiles * kDeltaVectors) +
        ScratchReader::padded_bytes<int>(counter_count(schedule)));
  }

  static constexpr int kTileVectors = 4 * 32;  ///< of a tile's states: line c is lane's channel c
  static constexpr int kDeltaVectors = 8;      ///< of a tile's channels
  /// Gradients of a block's states that some piece starts from.
  static std::int64_t handed_over(const Schedule& schedule) {
    const std::int64_t pieces = schedule.most_pieces();
    if (pieces == 1) return 0;
    return schedule.at_once() ? schedule.workers + AheadSchedule::kBlocks : schedule.rows;
  }
  /// The next worker's number, and whether a tile's gradient was handed over.
  static std::int64_t counter_count(const Schedule& schedule) {
    return 1 + schedule.rows * kBlockTiles;
  }

  std::int64_t pieces;      ///< room for so many of a row
  float* b_c;               ///< (blocks, B, periods, kPeriod, kRowStates): grad_b, then grad_c
  float* a_log;             ///< (pieces, B, D, kStates), 0 for those that a row does not have
  float *d_skip, *dt_bias;  ///< (pieces, B, D), the same
  /// Gradients of states. When a row's pieces run at once: (segments, kBlockTiles, kTileVectors),
  /// by the pass ahead, what a segment adds to the gradient in front of it; otherwise (rows,
  /// kBlockTiles, kTileVectors), the gradient behind a row's second piece.
  float4* gamma;
  float4* delta;  ///< (segments, kBlockTiles, kDeltaVectors): sums over the segment
  int* counters;
};

/// The rows of a tensor, (B * L) of them, addressed in few instructions.
template <class T>
struct TileRows {
  TileRows() = default;
  explicit TileRows(const Tensor& tensor)
      : data(static_cast<std::byte*>(tensor.data)),
        stride_bytes(static_cast<unsigned>(tensor.row_stride * size_of(tensor.dtype))) {}
  __host__ __device__ explicit operator bool() const { return data != nullptr; }
  __device__ T* at(unsigned row, unsigned column) const {
    return reinterpret_cast<T*>(data + std::uint64_t{row} * stride_bytes + column * sizeof(T));
  }

  std::byte* data = nullptr;
  unsigned stride_bytes = 0;
};

/// Operands and results of the pass.
struct BackwardTiles {
  TileRows<bf16> u, dt, b, c, z, y, grad_y;
  TileRows<bf16> grad_u, grad_dt, grad_z;
  GradMode u_mode, dt_mode, z_mode;
  bool writes_all;  ///< grad_u, grad_dt and grad_z are wanted, and overwritten
  const float *a_log, *d_skip, *dt_bias;
  const std::int32_t* document_start;
  const Line* states;
  int B, L, D, chunks;
  Schedule schedule;
  AheadSchedule ahead;
  Partials partials;
};

/// The pass ahead: fills partials.gamma and partials.delta for rows whose pieces run at once.
void scan_ahead(CudaExec& gpu, const BackwardTiles& pass);
/// Sums the partials into the gradients of b, c and the parameters.
void sum_tiles(CudaExec& gpu, const BackwardTiles& pass, const SelectiveScan::In<Grad>& to);

/// The fast backward pass. Errors: Unsupported when rows of u, dt, z, y or the gradient of y do not
/// begin at multiples of 16 bytes, or those of the gradients of u, dt or z at multiples of 8, or
/// sizes are past the 32 bits that in-kernel counters have.
void backward_tiles(CudaExec& gpu, const BackwardArgs<SelectiveScan>& args);
/// Scratch that it wants.
std::int64_t backward_tiles_scratch_bytes(const SelectiveScan::In<Spec>& in);

}  // namespace jiboia::scan_tiles
