#include "train/optim/optimizer.h"

#include <algorithm>
#include <cmath>

#include "kernels/adamw/adamw.h"
#include "kernels/global_norm/global_norm.h"

namespace jiboia {

Optimizer::Optimizer(const OptimConfig& config, ParameterStore& parameters)
    : config_(config),
      parameters_(parameters),
      groups_{{.name = "decay", .weight_decay = config.weight_decay}, {.name = "no decay"}} {
  for (std::size_t i = 0; i < parameters.count(); ++i) {
    const bool decays =
        config.weight_decay_scope == WeightDecayScope::kAll || parameters.spec(i).decays;
    Group& group = groups_[decays ? 0 : 1];
    group.parameters.push_back(i);
    group.elements += parameters.range(i).size;
  }
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

double Optimizer::step(Exec& exec, double lr, std::int64_t update, std::int64_t micro_batches) {
  return std::visit(
      [&](auto& backend) {
        const double mean = 1.0 / static_cast<double>(micro_batches);
        const double norm = mean * global_norm(backend, parameters_.flat_gradients());
        if (!std::isfinite(norm)) fail_on_gradient(update);
        const double clip =
            config_.grad_clip > 0 ? std::min(1.0, config_.grad_clip / (norm + 1e-6)) : 1;
        for (const Group& group : groups_) {
          for (std::size_t i : group.parameters) {
            const auto flat = [&](const Tensor& t) {
              return Tensor(Spec(t.dtype, {t.size()}), t.data);
            };
            adamw(backend, {.value = flat(parameters_.value(i)),
                            .gradient = flat(parameters_.gradient(i)),
                            .exp_avg = flat(parameters_.exp_avg(i)),
                            .exp_avg_sq = flat(parameters_.exp_avg_sq(i)),
                            .lr = lr,
                            .beta1 = config_.betas[0],
                            .beta2 = config_.betas[1],
                            .eps = config_.eps,
                            .weight_decay = group.weight_decay,
                            .grad_scale = mean * clip,
                            .update = update});
          }
        }
        return norm;
      },
      exec);
}

void Optimizer::fail_on_gradient(std::int64_t update) const {
  CpuExec cpu(1);
  for (std::size_t i = 0; i < parameters_.count(); ++i) {
    const double norm = global_norm(cpu, parameters_.gradient(i));
    if (!std::isfinite(norm)) {
      fail(ErrorKind::kNumerics,
           "step {}: the gradient of {} has the norm {}; no parameter was updated and the "
           "checkpoints are as they were. Try a lower optim.lr, a longer schedule.warmup_steps or "
           "other data; if the newest checkpoint has diverged already, remove it to go on from the "
           "one before",
           update, parameters_.spec(i).name, norm);
    }
  }
  fail(ErrorKind::kNumerics, "step {}: the gradient's global norm overflowed", update);
}

}  // namespace jiboia
