#pragma once
#include <algorithm>
#include <cstdint>
#include <span>

#include "core/memory.h"

namespace jiboia {

/// Lets the host read and write values where an Exec computes, piece by piece: on the CPU in place,
/// on a GPU through staging memory. The exec must outlive it. Waits for the exec's work.
class HostAccess {
 public:
  explicit HostAccess(Exec& exec) : exec_(exec) {}

  /// Calls visit(std::span<const T>) with all elements of a contiguous tensor, in order.
  template <class T, class Visit>
  void read(const Tensor& from, Visit visit) {
    wait(exec_);
    for_each_piece<T>(from, [&](std::int64_t, const Tensor& there, const Tensor& here) {
      if (here.data != there.data) {
        copy(exec_, there, here);
        wait(exec_);
      }
      visit(std::span<const T>(here.as<T>(), static_cast<std::size_t>(here.size())));
    });
  }

  /// Calls fill(first, std::span<T>) for consecutive pieces of a contiguous tensor, whose elements
  /// become what it writes; `first` is the piece's first element.
  template <class T, class Fill>
  void write(const Tensor& to, Fill fill) {
    for_each_piece<T>(to, [&](std::int64_t first, const Tensor& there, const Tensor& here) {
      wait(exec_);
      fill(first, std::span<T>(here.as<T>(), static_cast<std::size_t>(here.size())));
      if (here.data != there.data) copy(exec_, here, there);
    });
    wait(exec_);
  }

  /// Copies all elements of an f32 or bf16 tensor. Errors: Internal, Unsupported.
  void read_as_float(const Tensor& from, std::span<float> out);

 private:
  static constexpr std::int64_t kPieceBytes = std::int64_t{64} << 20;

  /// Calls piece(first, there, here) for the parts of `tensor`, where the exec has them and where
  /// the host can touch them.
  template <class T, class Piece>
  void for_each_piece(const Tensor& tensor, Piece piece) {
    require(tensor.contiguous(), ErrorKind::kInternal, "host access to {}, whose rows lie apart",
            tensor.to_string());
    const std::int64_t size = tensor.size();
    const bool in_place = !is_cuda(exec_);
    const std::int64_t step = in_place ? size : kPieceBytes / static_cast<std::int64_t>(sizeof(T));
    const std::int64_t piece_bytes = std::min(kPieceBytes, tensor.bytes());
    if (!in_place && staging_.bytes() < piece_bytes) {
      staging_ = allocate_staging(exec_, piece_bytes, "a transfer to or from the GPU");
    }
    for (std::int64_t first = 0; first < size; first += step) {
      const Spec spec(tensor.dtype, {std::min(step, size - first)});
      const Tensor there(spec, tensor.as<T>() + first);
      piece(first, there, in_place ? there : Tensor(spec, staging_.data()));
    }
  }

  Exec& exec_;
  Buffer staging_;
};

}  // namespace jiboia
