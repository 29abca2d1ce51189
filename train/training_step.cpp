#include "train/training_step.h"

namespace jiboia {
namespace {

bool same(const Tensor& a, const Tensor& b) {
  return a.data == b.data && a.dtype == b.dtype && a.shape == b.shape && a.present == b.present;
}
bool same(const TokenTensors& a, const TokenTensors& b) {
  return same(a.tokens, b.tokens) && same(a.targets, b.targets) &&
         same(a.document_start, b.document_start);
}

}  // namespace

TrainingStep::TrainingStep(const RunConfig& config, const MambaLm& model,
                           ParameterStore& parameters, Optimizer& optimizer, Arena& arena)
    : config_(config),
      model_(model),
      parameters_(parameters),
      optimizer_(optimizer),
      arena_(arena),
      first_{Graph("first micro-step", config.train.cuda_graphs)},
      further_{Graph("further micro-step", config.train.cuda_graphs)},
      update_("optimizer", config.train.cuda_graphs) {}

void TrainingStep::measure_ops(OpTimer& timer) {
  timer_ = &timer;
  for (Graph* graph : {&first_.graph, &further_.graph, &update_}) graph->set_use(GraphUse::kNever);
}

TrainingStep::Losses TrainingStep::micro_step(const TokenTensors& batch, std::int64_t index) {
  MicroStep& step = index == 0 ? first_ : further_;
  if (!same(batch, step.batch)) step.graph.forget();
  step.batch = batch;
  step.graph.run(parameters_.exec(), [&] { step.losses = run_micro_step(batch, index == 0); });
  return step.losses;
}

TrainingStep::Losses TrainingStep::run_micro_step(const TokenTensors& batch, bool first) {
  // In here, so that the store knows of every parameter whether it has a gradient even when graphs
  // run instead of this.
  if (first) parameters_.begin_gradients();
  Tape tape(parameters_.exec(), arena_, parameters_.values(), &parameters_, TapeMode::kTrain);
  tape.set_timer(timer_);
  const LossVars losses = model_.loss(tape, batch, config_.loss.z_loss, config_.train.recompute);
  tape.backward();
  return {tape.value(losses.loss), tape.value(losses.lse_squared)};
}

Optimizer::Findings TrainingStep::update(double lr, std::int64_t number) {
  optimizer_.set_rates(lr, number);
  const OpTimer::Scope scope(timer_, parameters_.exec(), "optimizer", Pass::kForward);
  update_.run(parameters_.exec(), [&] {
    parameters_.end_gradients();
    optimizer_.apply(config_.train.micro_batches());
  });
  return optimizer_.findings();
}

}  // namespace jiboia
