#pragma once
// Templates of tape.h.
#include <array>
#include <cstring>
#include <string>

#include "autograd/tape.h"

namespace jiboia {

namespace detail {

/// "add_rms_norm.rstd": names of an op's outputs in plans, made once for each op.
template <class Op>
const char* output_label(std::size_t i) {
  static const auto labels = [] {
    std::array<std::string, std::size(Op::kOutputs)> result;
    for (std::size_t k = 0; k < result.size(); ++k) {
      result[k] = std::string(Op::kName) + "." + Op::kOutputs[k];
    }
    return result;
  }();
  return labels[i].c_str();
}

/// Calls visit(var) for the inputs, then the outputs, whose values backward() looks at.
template <class Op, class Visit>
void visit_backward_reads(const typename Op::template In<Var>& in,
                          const typename Op::template Out<Var>& out, Visit visit) {
  const auto visit_those = [&](const auto& vars, const auto& reads) {
    for (std::size_t i = 0; i < fields<const Var>(vars).size(); ++i) {
      if (fields<const bool>(reads)[i]) visit(fields<const Var>(vars)[i]);
    }
  };
  visit_those(in, Op::kBackwardReadsInputs);
  visit_those(out, Op::kBackwardReadsOutputs);
}

}  // namespace detail

template <class Op>
typename Op::template Out<Var> Tape::allocate_outputs(const typename Op::template In<Var>& in,
                                                      const typename Op::Attrs& attrs) {
  using InSpec = typename Op::template In<Spec>;
  const auto specs =
      Op::infer(map_fields<Spec, InSpec, Var>(in, [](const Var& v) { return v; }), attrs);
  typename Op::template Out<Var> out;
  auto spec_fields = fields<const Spec>(specs);
  auto var_fields = fields<Var>(out);
  static_assert(var_fields.size() == std::size(Op::kOutputs));
  for (std::size_t i = 0; i < var_fields.size(); ++i) {
    if (spec_fields[i]) var_fields[i] = activation(spec_fields[i], detail::output_label<Op>(i));
  }
  return out;
}

template <class Op>
Arena::Block Tape::allocate_scratch(Pass pass, const typename Op::template In<Var>& in,
                                    const typename Op::Attrs& attrs) {
  using InSpec = typename Op::template In<Spec>;
  const auto specs = map_fields<Spec, InSpec, Var>(in, [](const Var& v) { return v; });
  const std::int64_t bytes = std::visit(
      [&](const auto& backend) { return scratch_bytes<Op>(backend, pass, specs, attrs); }, exec_);
  return bytes ? arena_.allocate(bytes, MemoryUse::kScratch, Op::kName) : Arena::Block{};
}

template <class Op>
void Tape::run_forward(const typename Op::template In<Var>& in,
                       const typename Op::template Out<Var>& out, const typename Op::Attrs& attrs) {
  using InTensor = typename Op::template In<Tensor>;
  using OutTensor = typename Op::template Out<Tensor>;
  Arena::Block scratch = allocate_scratch<Op>(Pass::kForward, in, attrs);
  if (!measuring()) {
    const auto value_of = [this](const Var& v) { return value(v); };
    const ForwardArgs<Op> args{.in = map_fields<Tensor, InTensor, Var>(in, value_of),
                               .out = map_fields<Tensor, OutTensor, Var>(out, value_of),
                               .attrs = attrs,
                               .scratch = {scratch.data, static_cast<std::size_t>(scratch.bytes)}};
    const OpTimer::Scope scope(timer_, exec_, Op::kName, Pass::kForward);
    std::visit(
        [&](auto& backend) {
          const TraceRange range(backend, Op::kName);
          Op::forward(backend, args);
        },
        exec_);
  }
  arena_.free(scratch);
}

template <Differentiable Op>
typename Op::template Out<Var> Tape::apply(const typename Op::template In<Var>& in,
                                           const typename Op::Attrs& attrs) {
  const auto out = allocate_outputs<Op>(in, attrs);
  run_forward<Op>(in, out, attrs);
  if (mode_ == TapeMode::kTrain && first_pass_) count_parameter_uses(fields<const Var>(in));
  if (recording_) {
    detail::visit_backward_reads<Op>(in, out, [this](const Var& v) { keep_for_backward(v); });
    record(&Tape::backward_op<Op>, &Tape::forward_again<Op>, OpPayload<Op>{in, out, attrs});
  }
  return out;
}

template <class Op>
void Tape::forward_again(Tape& tape, std::size_t payload_offset) {
  using InSpec = typename Op::template In<Spec>;
  const auto payload = tape.payload_at<OpPayload<Op>>(payload_offset);
  auto in = payload.in;
  if constexpr (requires { Op::again(payload.in, payload.out); }) {
    in = Op::again(payload.in, payload.out);
  }
  for (const Var& input : fields<const Var>(in)) tape.restore(input);

  // An op that runs on other inputs may make fewer outputs.
  const auto specs =
      Op::infer(map_fields<Spec, InSpec, Var>(in, [](const Var& v) { return v; }), payload.attrs);
  auto out = payload.out;
  std::vector<Slot*> unwanted;
  for (std::size_t i = 0; i < fields<Var>(out).size(); ++i) {
    Var& output = fields<Var>(out)[i];
    if (!fields<const Spec>(specs)[i]) output = Var();
    if (!output) continue;
    Slot& slot = tape.slot_of(output);
    if (slot.memory) continue;
    slot.memory = tape.arena_.allocate(slot.spec.bytes(), MemoryUse::kValue, slot.label);
    slot.data = slot.memory.data;
    if (!slot.kept_for_backward) unwanted.push_back(&slot);
  }
  tape.run_forward<Op>(in, out, payload.attrs);
  for (Slot* slot : unwanted) tape.free_value(*slot);
}

template <DifferentiableLoss Op>
typename Op::template Out<Var> Tape::apply_loss(const typename Op::template In<Var>& in,
                                                const typename Op::Attrs& attrs) {
  using InTensor = typename Op::template In<Tensor>;
  using InGrad = typename Op::template In<Grad>;
  using OutTensor = typename Op::template Out<Tensor>;
  const auto out = allocate_outputs<Op>(in, attrs);
  const Pass pass = mode_ == TapeMode::kTrain ? Pass::kBackward : Pass::kForward;
  Arena::Block scratch = allocate_scratch<Op>(pass, in, attrs);
  InGrad grads{};
  if (pass == Pass::kBackward) {
    count_parameter_uses(fields<const Var>(in));
    grads = map_fields<Grad, InGrad, Var>(in, [this](const Var& v) { return grad_destination(v); });
  }
  if (!measuring()) {
    const auto value_of = [this](const Var& v) { return value(v); };
    const auto in_values = map_fields<Tensor, InTensor, Var>(in, value_of);
    const auto out_values = map_fields<Tensor, OutTensor, Var>(out, value_of);
    const std::span<std::byte> memory{scratch.data, static_cast<std::size_t>(scratch.bytes)};
    const OpTimer::Scope scope(timer_, exec_, Op::kName, pass);
    std::visit(
        [&](auto& backend) {
          const TraceRange range(backend, Op::kName);
          if (pass == Pass::kBackward) {
            Op::forward_backward(backend,
                                 LossArgs<Op>{in_values, out_values, attrs, grads, memory});
          } else {
            Op::forward(backend, ForwardArgs<Op>{in_values, out_values, attrs, memory});
          }
        },
        exec_);
  }
  arena_.free(scratch);
  if (pass == Pass::kBackward) finish_parameter_uses(fields<const Var>(in));
  return out;
}

template <class Op>
void Tape::backward_op(Tape& tape, std::size_t payload_offset) {
  using InTensor = typename Op::template In<Tensor>;
  using OutTensor = typename Op::template Out<Tensor>;
  using InGrad = typename Op::template In<Grad>;
  const auto payload = tape.payload_at<OpPayload<Op>>(payload_offset);
  const auto grad_out = map_fields<Tensor, OutTensor, Var>(
      payload.out, [&](const Var& v) { return tape.grad_of_output(v); });
  bool wanted = false;
  for (const Tensor& grad : fields<const Tensor>(grad_out)) wanted = wanted || grad;
  if (wanted) {
    detail::visit_backward_reads<Op>(payload.in, payload.out,
                                     [&](const Var& v) { tape.restore(v); });
    const auto grad_in = map_fields<Grad, InGrad, Var>(
        payload.in, [&](const Var& v) { return tape.grad_destination(v); });
    Arena::Block scratch = tape.allocate_scratch<Op>(Pass::kBackward, payload.in, payload.attrs);
    if (!tape.measuring()) {
      const auto value_of = [&](const Var& v) { return tape.value(v); };
      const BackwardArgs<Op> args{
          .in = map_fields<Tensor, InTensor, Var>(payload.in, value_of),
          .out = map_fields<Tensor, OutTensor, Var>(payload.out, value_of),
          .attrs = payload.attrs,
          .grad_out = grad_out,
          .grad_in = grad_in,
          .scratch = {scratch.data, static_cast<std::size_t>(scratch.bytes)}};
      const OpTimer::Scope scope(tape.timer_, tape.exec_, Op::kName, Pass::kBackward);
      std::visit(
          [&](auto& backend) {
            const TraceRange range(backend, Op::kName);
            Op::backward(backend, args);
          },
          tape.exec_);
    }
    tape.arena_.free(scratch);
  }
  tape.finish_parameter_uses(fields<const Var>(payload.in));
  for (const Var& output : fields<const Var>(payload.out)) tape.retire(output);
}

template <class Object, class State>
State Tape::run_unrecorded(State (*function)(Tape&, const Object&, const State&),
                           const Object& object, const State& state) {
  const std::size_t first_slot = slots_.size();
  const bool was_recording = std::exchange(recording_, false);
  State result = function(*this, object, state);
  recording_ = was_recording;
  for (std::size_t i = first_slot; i < slots_.size(); ++i) {
    bool is_result = false;
    for (const Var& var : fields<const Var>(result)) {
      is_result = is_result || var.slot == static_cast<std::int32_t>(i);
    }
    if (!is_result) free_value(slots_[i]);
  }
  return result;
}

template <class Object, class State>
State Tape::segment(Recompute recompute, State (*function)(Tape&, const Object&, const State&),
                    const Object& object, const State& state) {
  if (!recording_) return run_unrecorded(function, object, state);
  if (recompute != Recompute::kBlock) {
    const bool was_selective = std::exchange(selective_, recompute == Recompute::kSelective);
    const State result = function(*this, object, state);
    selective_ = was_selective;
    return result;
  }
  for (const Var& input : fields<const Var>(state)) keep_for_backward(input);
  const State result = run_unrecorded(function, object, state);
  record(&Tape::backward_segment<Object, State>, nullptr,
         SegmentPayload<Object, State>{function, &object, state, result});
  return result;
}

template <class Object, class State>
void Tape::backward_segment(Tape& tape, std::size_t payload_offset) {
  const auto payload = tape.payload_at<SegmentPayload<Object, State>>(payload_offset);
  const std::size_t first_slot = tape.slots_.size();
  const std::size_t first_record = tape.records_.size();
  const std::size_t first_payload = tape.payloads_.size();

  for (const Var& output : fields<const Var>(payload.out)) {
    bool passed_through = !output;
    for (const Var& input : fields<const Var>(payload.in)) {
      passed_through = passed_through || output.slot == input.slot;
    }
    if (!passed_through) tape.free_value(tape.slot_of(output));
  }
  tape.first_pass_ = false;
  const State again = payload.function(tape, *payload.object, payload.in);
  tape.first_pass_ = true;
  for (std::size_t i = 0; i < fields<const Var>(again).size(); ++i) {
    tape.move_gradient(fields<const Var>(payload.out)[i], fields<const Var>(again)[i]);
  }
  tape.walk_back(first_record);

  for (std::size_t i = first_slot; i < tape.slots_.size(); ++i) tape.free_value(tape.slots_[i]);
  tape.slots_.resize(first_slot);
  tape.payloads_.resize(first_payload);
}

template <class Payload>
void Tape::record(Step back, Step again, const Payload& payload) {
  static_assert(std::is_trivially_copyable_v<Payload>);
  const std::size_t offset = payloads_.size();
  payloads_.resize(offset + sizeof(Payload));
  std::memcpy(payloads_.data() + offset, &payload, sizeof(Payload));
  records_.push_back({back, again, offset});
}

template <class Payload>
Payload Tape::payload_at(std::size_t offset) const {
  Payload payload;
  std::memcpy(&payload, payloads_.data() + offset, sizeof(Payload));
  return payload;
}

}  // namespace jiboia
