#include "autograd/tape.h"

#include <algorithm>
#include <utility>

namespace jiboia {

Tape::Tape(Exec& exec, Arena& arena, std::span<const Tensor> parameters, GradSink* sink,
           TapeMode mode)
    : exec_(exec),
      arena_(arena),
      sink_(sink),
      mode_(mode),
      recording_(mode == TapeMode::kTrain),
      parameter_uses_(parameters.size(), 0) {
  slots_.reserve(parameters.size() + 1024);
  for (const Tensor& parameter : parameters) {
    Slot slot;
    slot.spec = parameter;
    slot.data = static_cast<std::byte*>(parameter.data);
    slot.kind = SlotKind::kParameter;
    slots_.push_back(std::move(slot));
  }
}

Tape::~Tape() {
  for (Slot& slot : slots_) {
    arena_.free(slot.memory);
    arena_.free(slot.grad_memory);
  }
}

Var Tape::constant(const Tensor& value) {
  if (!value) return {};
  require(value.contiguous(), ErrorKind::kInternal, "a constant on the tape must be contiguous");
  Slot slot;
  slot.spec = value;
  slot.data = static_cast<std::byte*>(value.data);
  slots_.push_back(std::move(slot));
  return Var{value, static_cast<std::int32_t>(slots_.size()) - 1, 0};
}

Var Tape::parameter(ParameterId id) {
  require(index(id) < parameter_uses_.size(), ErrorKind::kInternal,
          "parameter {} of a tape with {} parameters", index(id), parameter_uses_.size());
  return Var{slots_[index(id)].spec, static_cast<std::int32_t>(id), 0};
}

Var Tape::activation(const Spec& spec, const char* label) {
  Slot slot;
  slot.spec = spec.packed();
  slot.label = label;
  slot.kind = SlotKind::kActivation;
  slot.memory = arena_.allocate(slot.spec.bytes(), MemoryUse::kValue, label);
  slot.data = slot.memory.data;
  slot.record = records_.size();
  slots_.push_back(std::move(slot));
  return Var{slots_.back().spec, static_cast<std::int32_t>(slots_.size()) - 1, 0};
}

Tensor Tape::value(const Var& var) const {
  if (!var) return {};
  const Slot& slot = slot_of(var);
  return {var, slot.data ? slot.data + var.first_column * size_of(var.dtype) : nullptr};
}

void Tape::release(const Var& value, RecomputeCost cost) {
  if (!value) return;
  Slot& slot = slot_of(value);
  if (slot.kind != SlotKind::kActivation) return;
  const bool again = selective_ && cost == RecomputeCost::kLow;
  if (again || !slot.kept_for_backward) free_value(slot);
}

void Tape::restore(const Var& var) {
  if (!var) return;
  const Slot& slot = slot_of(var);
  if (slot.kind != SlotKind::kActivation || slot.memory) return;
  Record* made_by = slot.record < records_.size() ? &records_[slot.record] : nullptr;
  require(made_by && made_by->forward_again, ErrorKind::kInternal,
          "{}: backward reads what is neither kept nor made by an op that could run again",
          slot.label);
  // Null meanwhile, so that an op which wants its own output is found out.
  const Step again = std::exchange(made_by->forward_again, nullptr);
  again(*this, made_by->payload);
  made_by->forward_again = again;
  require(static_cast<bool>(slot.memory), ErrorKind::kInternal,
          "{}: backward reads it, and the op that made it does not make it again", slot.label);
}

void Tape::keep_for_backward(const Var& var) {
  if (var) slot_of(var).kept_for_backward = true;
}

void Tape::free_value(Slot& slot) {
  arena_.free(slot.memory);
  if (slot.kind == SlotKind::kActivation) slot.data = nullptr;
}

void Tape::retire(const Var& output) {
  if (!output) return;
  Slot& slot = slot_of(output);
  free_value(slot);
  arena_.free(slot.grad_memory);
  slot.grad_written.clear();
}

Grad Tape::grad_destination(const Var& var) {
  if (!var) return {};
  Slot& slot = slot_of(var);
  if (slot.kind == SlotKind::kConstant) return {};
  if (slot.kind == SlotKind::kParameter) {
    return measuring() ? Grad{} : sink_->acquire(static_cast<ParameterId>(var.slot));
  }
  if (!slot.grad_memory) {
    slot.grad_memory = arena_.allocate(slot.spec.bytes(), MemoryUse::kGradient, slot.label);
  }
  const Columns columns{var.first_column, var.first_column + var.columns()};
  GradMode mode = GradMode::kOverwrite;
  for (const Columns& written : slot.grad_written) {
    if (columns.end <= written.begin || written.end <= columns.begin) continue;
    require(written.begin <= columns.begin && columns.end <= written.end, ErrorKind::kUnsupported,
            "{}: gradients of columns [{}, {}) and [{}, {}) overlap in part", slot.label,
            written.begin, written.end, columns.begin, columns.end);
    mode = GradMode::kAdd;
  }
  if (mode == GradMode::kOverwrite) slot.grad_written.push_back(columns);
  std::byte* data = slot.grad_memory.data;
  return {Tensor(var, data ? data + var.first_column * size_of(var.dtype) : nullptr), mode};
}

Tensor Tape::grad_of_output(const Var& var) const {
  if (!var || !slot_of(var).grad_memory) return {};
  const Slot& slot = slot_of(var);
  std::int64_t covered = 0;
  for (const Columns& written : slot.grad_written) covered += written.end - written.begin;
  require(covered == slot.spec.columns(), ErrorKind::kUnsupported,
          "{}: only {} of {} columns have a reader that returns a gradient", slot.label, covered,
          slot.spec.columns());
  return {slot.spec, slot.grad_memory.data};
}

void Tape::count_parameter_uses(std::span<const Var> inputs) {
  for (const Var& var : inputs) {
    if (var && slot_of(var).kind == SlotKind::kParameter) {
      ++parameter_uses_[static_cast<std::size_t>(var.slot)];
    }
  }
}

void Tape::finish_parameter_uses(std::span<const Var> inputs) {
  for (const Var& var : inputs) {
    if (!var || slot_of(var).kind != SlotKind::kParameter) continue;
    if (--parameter_uses_[static_cast<std::size_t>(var.slot)] == 0 && !measuring()) {
      sink_->ready(static_cast<ParameterId>(var.slot));
    }
  }
}

void Tape::move_gradient(const Var& from, const Var& to) {
  if (!from || from.slot == to.slot) return;  // absent, or passed through
  Slot& source = slot_of(from);
  Slot& target = slot_of(to);
  require(from.columns() == source.spec.columns() && to.columns() == target.spec.columns(),
          ErrorKind::kUnsupported, "{}: a segment returned a slice of columns", source.label);
  target.grad_memory = std::exchange(source.grad_memory, {});
  target.grad_written = std::exchange(source.grad_written, {});
}

void Tape::backward() {
  require(recording_, ErrorKind::kInternal, "backward() on a tape that does not record");
  walk_back(0);
  payloads_.clear();
}

void Tape::walk_back(std::size_t first_record) {
  while (records_.size() > first_record) {
    const Record last = records_.back();
    records_.pop_back();
    last.backward(*this, last.payload);
  }
}

}  // namespace jiboia
