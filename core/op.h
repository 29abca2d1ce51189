#pragma once
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>

#include "core/exec.h"
#include "core/fields.h"
#include "core/tensor.h"

/// The calling convention between an op and whoever runs it (the tape, a test, a benchmark).
///
/// An op is a struct with
///   kName                        its tag in errors, traces and benchmarks
///   In<T>, Out<T>                its inputs and outputs, as structs of members of one type T
///   kInputs, kOutputs            the members' names
///   Attrs                        plain values (NoAttrs when there are none), trivially copyable
///   kInputKinds                  what each input is, which decides its dtype and its gradient's
///   kBackwardReads{Inputs,Outputs}  which values backward() looks at; others may be freed before
///   infer(In<Spec>, Attrs)       every argument check there is, and the outputs' specs
///   forward(Backend&, ForwardArgs<Op>)    fills the outputs
///   backward(Backend&, BackwardArgs<Op>)  writes or adds the gradients, as each one's mode says
///   scratch_bytes(Backend&, Pass, In<Spec>, Attrs)   optional: working memory that it wants
///   again(In<T>, Out<T>)         optional: other inputs that give outputs again, bit for bit, from
///                                values that backward() reads
/// for both backends, CpuExec (f32 and f64) and CudaExec (f32 and bf16, fp32 inside).
/// A loss is an op with kIsLoss = true. It ends a graph, the gradient of its result is known to be
/// 1, and so instead of backward() it has
///   forward_backward(Backend&, LossArgs<Op>)  results and gradients in one pass
namespace jiboia {

struct NoAttrs {};

/// The two passes of an op.
enum class Pass : std::uint8_t { kForward, kBackward };

/// What an input is to an op that stores activations in dtype T. accumulator_of(T) is fp32 for
/// bf16 and T itself for f32 and f64.
enum class InputKind : std::uint8_t {
  kActivation,  ///< T, and so is its gradient
  kWeight,      ///< T, its gradient accumulator_of(T)
  kFull,        ///< accumulator_of(T), and so is its gradient
  kIndex,       ///< i32, no gradient
};

/// The dtype of an input among activations of dtype `activation`.
constexpr Dtype dtype_of(InputKind kind, Dtype activation) {
  if (kind == InputKind::kIndex) return Dtype::kI32;
  return kind == InputKind::kFull ? accumulator_of(activation) : activation;
}
/// The dtype of its gradient. Not for kIndex.
constexpr Dtype gradient_dtype_of(InputKind kind, Dtype activation) {
  return kind == InputKind::kActivation ? activation : accumulator_of(activation);
}

/// In which dtype activations are stored: that of the residual stream, or bf16 beside fp32.
enum class Activations : std::uint8_t { kFull, kBf16 };
/// Those of a model whose matrices have the given dtype.
constexpr Activations activations_beside(Dtype matrices) {
  return matrices == Dtype::kBf16 ? Activations::kBf16 : Activations::kFull;
}

/// How a gradient meets what its memory holds.
enum class GradMode : std::uint8_t { kOverwrite, kAdd };

/// Where a gradient goes. Absent: nobody wants it, and the op skips it.
struct Grad : Tensor {
  GradMode mode = GradMode::kOverwrite;
  Grad() = default;
  Grad(const Tensor& tensor, GradMode m) : Tensor(tensor), mode(m) {}
};

template <class Op>
struct ForwardArgs {
  typename Op::template In<Tensor> in;
  typename Op::template Out<Tensor> out;
  typename Op::Attrs attrs{};
  std::span<std::byte> scratch{};
};

template <class Op>
struct BackwardArgs {
  typename Op::template In<Tensor> in;
  typename Op::template Out<Tensor> out;
  typename Op::Attrs attrs{};
  typename Op::template Out<Tensor> grad_out;  ///< absent where no one contributed a gradient
  typename Op::template In<Grad> grad_in;
  std::span<std::byte> scratch{};
};

template <class Op>
struct LossArgs {
  typename Op::template In<Tensor> in;
  typename Op::template Out<Tensor> out;
  typename Op::Attrs attrs{};
  typename Op::template In<Grad> grad_in;
  std::span<std::byte> scratch{};
};

template <class Op>
concept Loss = requires {
  requires Op::kIsLoss;
};

/// Working memory that `Op` wants for a pass, 0 when it does not say.
template <class Op, class Backend>
std::int64_t scratch_bytes(const Backend& backend, Pass pass,
                           const typename Op::template In<Spec>& in,
                           const typename Op::Attrs& attrs) {
  if constexpr (requires { Op::scratch_bytes(backend, pass, in, attrs); }) {
    return Op::scratch_bytes(backend, pass, in, attrs);
  } else {
    return 0;
  }
}

/// Views scratch memory as consecutive arrays, 64-byte aligned.
class ScratchReader {
 public:
  explicit ScratchReader(std::span<std::byte> scratch) : scratch_(scratch) {}
  /// The next `count` elements of type T. Errors: Internal when the scratch is too small.
  template <class T>
  T* take(std::int64_t count) {
    const std::size_t bytes = padded_bytes<T>(count);
    require(bytes <= scratch_.size(), ErrorKind::kInternal,
            "scratch has {} bytes left, {} are needed", scratch_.size(), bytes);
    T* result = reinterpret_cast<T*>(scratch_.data());
    scratch_ = scratch_.subspan(bytes);
    return result;
  }
  /// Bytes that take<T>(count) uses.
  template <class T>
  static constexpr std::size_t padded_bytes(std::int64_t count) {
    return (static_cast<std::size_t>(count) * sizeof(T) + 63) / 64 * 64;
  }

 private:
  std::span<std::byte> scratch_;
};

}  // namespace jiboia
