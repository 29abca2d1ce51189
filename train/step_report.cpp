#include "train/step_report.h"

namespace jiboia {

StepReport::StepReport(Exec& exec, std::int64_t micro_batches)
    : exec_(exec),
      micro_batches_(micro_batches),
      memory_(allocate_staging(
          exec, kLosses + 2 * micro_batches * static_cast<std::int64_t>(sizeof(float)),
          "a step's losses")) {}

void StepReport::add(std::int64_t micro_batch, const Tensor& loss, const Tensor& lse_squared) {
  const Spec scalar(Dtype::kF32, {1});
  copy(exec_, loss, Tensor(scalar, losses() + micro_batch));
  copy(exec_, lse_squared, Tensor(scalar, losses() + micro_batches_ + micro_batch));
}

void StepReport::end(const Optimizer::Findings& findings) {
  copy(exec_, findings.gradient_norm, Tensor(findings.gradient_norm, memory_.data()));
  copy(exec_, findings.first_not_finite,
       Tensor(findings.first_not_finite, memory_.data() + sizeof(double)));
  end_.record(exec_);
}

double StepReport::mean(std::int64_t first) const {
  const double share = 1.0 / static_cast<double>(micro_batches_);
  double sum = 0;
  for (std::int64_t i = 0; i < micro_batches_; ++i) {
    sum += share * static_cast<double>(losses()[first + i]);
  }
  return sum;
}

}  // namespace jiboia
