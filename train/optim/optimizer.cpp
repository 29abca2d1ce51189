#include "train/optim/optimizer.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/global_norm/global_norm.h"

namespace jiboia {
namespace {

constexpr std::int64_t kFindingBytes = 256;  // of each, so that both are aligned

std::int64_t decay_blocks(std::int64_t flat_size) { return ceil_div(flat_size, kDecayBlock); }

}  // namespace

Optimizer::Optimizer(const OptimConfig& config, ParameterStore& parameters)
    : config_(config),
      betas_{.beta1 = config.betas[0], .beta2 = config.betas[1]},
      parameters_(parameters),
      groups_{{.name = "decay", .weight_decay = config.weight_decay}, {.name = "no decay"}} {
  for (std::size_t i = 0; i < parameters.count(); ++i) {
    const bool in_decay =
        config.weight_decay_scope == WeightDecayScope::kAll || decays(parameters.spec(i).role);
    Group& group = groups_[in_decay ? 0 : 1];
    group.parameters.push_back(i);
    group.elements += parameters.range(i).size;
  }

  Exec& exec = parameters.exec();
  const std::int64_t blocks = decay_blocks(parameters.flat_size());
  decays_ = allocate(exec, blocks, "the optimizer's decay groups");
  findings_ = allocate(exec, 2 * kFindingBytes, "the gradient's norm");
  scratch_ = allocate(exec, global_norm_scratch_bytes(parameters.flat_size()),
                      "partial sums of the gradient's norm");
  rates_ = make_upload_ring(exec, kRateSlots, sizeof(AdamWRates));
  std::vector<std::uint8_t> decays(static_cast<std::size_t>(blocks), 0);
  for (std::size_t i : groups_[0].parameters) {
    const FlatRange range = parameters.range(i);
    std::fill_n(decays.begin() + range.begin / kDecayBlock, decay_blocks(range.size), 1);
  }
  const Spec table(Dtype::kU8, {blocks});
  copy(exec, Tensor(table, decays.data()), Tensor(table, decays_.data()));
  wait(exec);
}

std::string Optimizer::describe() const {
  std::string text;
  for (const Group& group : groups_) {
    if (group.parameters.empty()) continue;
    // One line a group: kinds of parameters, without their layers.
    std::vector<std::string> kinds;
    for (std::size_t i : group.parameters) {
      std::string name = parameters_.spec(i).name;
      if (name.starts_with("backbone.layers.")) name = name.substr(name.find('.', 16) + 1);
      if (std::find(kinds.begin(), kinds.end(), name) == kinds.end()) kinds.push_back(name);
    }
    text += fmt::format("{}group \"{}\", weight decay {}: {} tensors, {} elements ({})",
                        text.empty() ? "" : "\n", group.name, group.weight_decay,
                        group.parameters.size(), group.elements, fmt::join(kinds, ", "));
  }
  return text;
}

Optimizer::Findings Optimizer::findings() const {
  return {.gradient_norm = Tensor(Spec(Dtype::kF64, {1}), findings_.data()),
          .first_not_finite = Tensor(Spec(Dtype::kI64, {1}), findings_.data() + kFindingBytes)};
}

void Optimizer::find_norm(const Tensor& flat) {
  const GlobalNorm args{.flat = flat,
                        .norm = findings().gradient_norm,
                        .first_not_finite = findings().first_not_finite};
  const std::span<std::byte> scratch(scratch_.data(), static_cast<std::size_t>(scratch_.bytes()));
  std::visit([&](auto& backend) { global_norm(backend, args, scratch); }, parameters_.exec());
}

bool Optimizer::values_are_finite() {
  Exec& exec = parameters_.exec();
  for (const Tensor& flat : {parameters_.flat_values(), parameters_.flat_exp_avg_sq()}) {
    find_norm(flat);
    if (!std::isfinite(read_scalar(exec, findings().gradient_norm))) return false;
  }
  return true;
}

void Optimizer::set_rates(double lr, std::int64_t update) {
  const AdamWRates rates =
      adamw_rates({.lr = lr, .weight_decay = config_.weight_decay, .update = update}, betas_);
  std::memcpy(rates_->fill(), &rates, sizeof(rates));
  rates_->upload(sizeof(rates));
}

void Optimizer::apply(std::int64_t micro_batches) {
  const std::int64_t blocks = decay_blocks(parameters_.flat_size());
  const AdamWUpdate update{.value = parameters_.flat_values(),
                           .gradient = parameters_.flat_gradients(),
                           .exp_avg = parameters_.flat_exp_avg(),
                           .exp_avg_sq = parameters_.flat_exp_avg_sq(),
                           .compute = parameters_.flat_rounded(),
                           .decays = Tensor(Spec(Dtype::kU8, {blocks}), decays_.data()),
                           .gradient_norm = findings().gradient_norm,
                           .rates = Tensor(Spec(Dtype::kF64, {kAdamWRates}), rates_->data()),
                           .betas = betas_,
                           .eps = config_.eps,
                           .grad_clip = config_.grad_clip,
                           .gradient_scale = 1.0 / static_cast<double>(micro_batches)};
  find_norm(parameters_.flat_gradients());
  std::visit([&](auto& backend) { adamw(backend, update); }, parameters_.exec());
}

void Optimizer::fail_on_gradient(std::int64_t update, std::int64_t first_not_finite) const {
  for (std::size_t i = 0; i < parameters_.count(); ++i) {
    const FlatRange range = parameters_.range(i);
    if (first_not_finite < range.begin || first_not_finite >= range.begin + range.size) continue;
    fail(ErrorKind::kNumerics,
         "step {}: the gradient of {} is not finite; no parameter was updated and the checkpoints "
         "are as they were. Try a lower optim.lr, a longer schedule.warmup_steps or other data; if "
         "the newest checkpoint has diverged already, remove it to go on from the one before",
         update, parameters_.spec(i).name);
  }
  fail(ErrorKind::kNumerics, "step {}: the gradient's global norm overflowed", update);
}

std::int64_t Optimizer::planned_bytes(const Exec& exec, std::int64_t flat_size) {
  return decay_blocks(flat_size) + 2 * kFindingBytes + global_norm_scratch_bytes(flat_size) +
         upload_ring_bytes(exec, kRateSlots, sizeof(AdamWRates));
}

}  // namespace jiboia
