#pragma once
#include <cstdint>

namespace jiboia {

/// The row that stands at `position` of epoch `epoch`: for fixed seed, epoch and rows a bijection
/// of [0, rows), computed in O(1) without storage, so that resuming costs nothing. Every seed and
/// every epoch give an order of their own.
///
/// A Feistel network of eight rounds permutes the smallest domain 4^k >= rows; results outside
/// [0, rows) are sent through it again until they fall inside (cycle walking; four times at most on
/// average, since 4^k < 4 rows). Needs 0 <= position < rows.
/// Source: Black & Rogaway 2002, "Ciphers with Arbitrary Finite Domains".
std::int64_t permuted_row(std::uint64_t seed, std::int64_t epoch, std::int64_t position,
                          std::int64_t rows);

}  // namespace jiboia
