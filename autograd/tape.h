#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "autograd/differentiable.h"
#include "autograd/grad_sink.h"
#include "autograd/op_timer.h"
#include "autograd/recompute.h"
#include "core/arena.h"
#include "core/trace.h"

namespace jiboia {

/// A value on the tape: what a Tensor is to an op. Default: an optional input that is not given.
struct Var : Spec {
  std::int32_t slot = -1;
  std::int64_t first_column = 0;  ///< of this slice within the slot's value

  /// Columns [begin, begin + count) of every row; its gradient is the same slice of the parent's.
  Var column_slice(std::int64_t begin, std::int64_t count) const {
    Var slice = *this;
    static_cast<Spec&>(slice) = jiboia::column_slice(*this, begin, count);
    slice.first_column += begin;
    return slice;
  }
};

/// Whether a tape keeps what a backward pass needs.
enum class TapeMode : std::uint8_t { kTrain, kEvaluate };

/// Records the ops of one micro-step and walks them backwards.
///
/// Memory: every value, gradient and scratch block comes from the arena and goes back as soon as
/// its last reader has run. With a measuring arena no op runs and no memory is touched, but
/// everything else happens: the plan is a dry run of the same code.
///
/// Gradients: the first op to write an activation's gradient overwrites it, later ones add; slices
/// of columns count on their own. Gradients of parameters go where the GradSink says.
/// All ops run in order on `exec`; nothing here is thread-safe.
class Tape {
 public:
  /// `parameters[i]` is the value of ParameterId i. `sink` may be null in kEvaluate mode.
  Tape(Exec& exec, Arena& arena, std::span<const Tensor> parameters, GradSink* sink, TapeMode mode);
  ~Tape();
  Tape(const Tape&) = delete;
  Tape& operator=(const Tape&) = delete;

  /// A value from outside that gets no gradient and outlives the tape: tokens, targets.
  Var constant(const Tensor& value);
  Var parameter(ParameterId id);

  /// Infers, allocates, runs and records one op. Errors: whatever Op::infer finds wrong.
  template <Differentiable Op>
  typename Op::template Out<Var> apply(const typename Op::template In<Var>& in,
                                       const typename Op::Attrs& attrs = {});

  /// Runs a loss. In kTrain mode this forms its inputs' gradients too.
  template <DifferentiableLoss Op>
  typename Op::template Out<Var> apply_loss(const typename Op::template In<Var>& in,
                                            const typename Op::Attrs& attrs = {});

  /// Runs `function(tape, object, state)`, a part of a model, as one segment. In kEvaluate mode,
  /// and with Recompute::kBlock, what it allocates is freed when it returns, but for its result;
  /// with kBlock the backward pass runs it again. With kSelective what it releases at low cost is
  /// freed. State: a struct of Vars. `object` must live until backward() has returned.
  template <class Object, class State>
  State segment(Recompute recompute, State (*function)(Tape&, const Object&, const State&),
                const Object& object, const State& state);

  /// No op to come reads this value: its memory goes as soon as no backward needs it. Only a
  /// whole value may be released, not a slice.
  /// In a segment with Recompute::kSelective, memory of low `cost` goes at once: the first backward
  /// to read the value has the op that made it run again, on the inputs that Op::again() names,
  /// where there is one, or else on the same. Something must keep these for the backward pass.
  void release(const Var& value, RecomputeCost cost = RecomputeCost::kHigh);

  Tensor value(const Var& var) const;

  /// Walks the records in reverse. Afterwards only losses have values.
  void backward();

  /// Every op from now on is measured by `timer`, or by nothing when it is null.
  void set_timer(OpTimer* timer) { timer_ = timer; }

  bool measuring() const { return arena_.measuring(); }
  Exec& exec() { return exec_; }
  Arena& arena() { return arena_; }

 private:
  enum class SlotKind : std::uint8_t { kConstant, kParameter, kActivation };
  struct Columns {
    std::int64_t begin, end;
  };
  struct Slot {
    Spec spec;
    const char* label = "";
    std::byte* data = nullptr;
    SlotKind kind = SlotKind::kConstant;
    Arena::Block memory{};
    bool kept_for_backward = false;
    std::size_t record = 0;  // of the op that made it, while recording
    Arena::Block grad_memory{};
    std::vector<Columns> grad_written{};
  };
  using Step = void (*)(Tape&, std::size_t payload);  // offset in payloads_
  struct Record {
    Step backward;
    Step forward_again;  // null for a segment
    std::size_t payload;
  };
  template <class Op>
  struct OpPayload {
    typename Op::template In<Var> in;
    typename Op::template Out<Var> out;
    typename Op::Attrs attrs;
  };
  template <class Object, class State>
  struct SegmentPayload {
    State (*function)(Tape&, const Object&, const State&);
    const Object* object;
    State in, out;
  };

  template <class Op>
  typename Op::template Out<Var> allocate_outputs(const typename Op::template In<Var>& in,
                                                  const typename Op::Attrs& attrs);
  template <class Op>
  Arena::Block allocate_scratch(Pass pass, const typename Op::template In<Var>& in,
                                const typename Op::Attrs& attrs);
  template <class Op>
  void run_forward(const typename Op::template In<Var>& in,
                   const typename Op::template Out<Var>& out, const typename Op::Attrs& attrs);
  /// Fills those outputs of a recorded op again that have no memory any more.
  template <class Op>
  static void forward_again(Tape& tape, std::size_t payload);
  template <class Op>
  static void backward_op(Tape& tape, std::size_t payload);
  template <class Object, class State>
  static void backward_segment(Tape& tape, std::size_t payload);
  /// Runs a segment without recording and frees what only it needed.
  template <class Object, class State>
  State run_unrecorded(State (*function)(Tape&, const Object&, const State&), const Object& object,
                       const State& state);

  template <class Payload>
  void record(Step back, Step again, const Payload& payload);
  template <class Payload>
  Payload payload_at(std::size_t offset) const;
  void walk_back(std::size_t first_record);

  Var activation(const Spec& spec, const char* label);
  void keep_for_backward(const Var& var);
  /// Gives the value back that release() let go.
  void restore(const Var& var);
  void free_value(Slot& slot);
  /// Where the gradient of an op's input goes; absent for constants.
  Grad grad_destination(const Var& var);
  /// The gradient of an op's output; absent when nobody wrote one.
  Tensor grad_of_output(const Var& var) const;
  void count_parameter_uses(std::span<const Var> inputs);
  void finish_parameter_uses(std::span<const Var> inputs);
  /// Hands the gradient that was formed for `from` to `to`.
  void move_gradient(const Var& from, const Var& to);
  /// An output's value and gradient have had their last reader.
  void retire(const Var& output);
  Slot& slot_of(const Var& var) { return slots_[static_cast<std::size_t>(var.slot)]; }
  const Slot& slot_of(const Var& var) const { return slots_[static_cast<std::size_t>(var.slot)]; }

  Exec& exec_;
  Arena& arena_;
  GradSink* sink_;
  OpTimer* timer_ = nullptr;
  TapeMode mode_;
  bool recording_;
  bool selective_ = false;   // in a segment with Recompute::kSelective
  bool first_pass_ = true;   // false while a segment is computed again
  std::vector<Slot> slots_;  // the parameters come first, in order of their ids
  std::vector<Record> records_;
  std::vector<std::byte> payloads_;
  std::vector<std::int32_t> parameter_uses_;  // by id: uses whose gradients are still to come
};

}  // namespace jiboia

#include "autograd/tape_inl.h"
