#include "kernels/adamw/adamw.h"

#include <gmock/gmock.h>

#include <cmath>
#include <limits>

#include "core/half.h"
#include "core/rng.h"
#include "tests/support/placed.h"

namespace jiboia::test {
namespace {

/// Host copies of what an update reads and writes.
template <class T>
struct State {
  std::vector<T> value, gradient, exp_avg, exp_avg_sq;
  std::vector<std::uint16_t> compute;  ///< may be absent

  bool operator==(const State&) const = default;
};

template <class T>
State<T> random_state(std::int64_t n) {
  State<T> state;
  const Philox random(3, RandomPurpose::kTest);
  for (std::int64_t i = 0; i < n; ++i) {
    const auto at = static_cast<std::uint64_t>(4 * i);
    state.value.push_back(static_cast<float>(random.normal(at)));
    state.gradient.push_back(static_cast<float>(random.normal(at + 1)));
    state.exp_avg.push_back(static_cast<float>(0.1 * random.normal(at + 2)));
    state.exp_avg_sq.push_back(static_cast<float>(random.uniform(at + 3)));
  }
  return state;
}

/// An update without its tensors, which come from a State.
struct Numbers : AdamWSchedule {
  AdamWBetas betas;
  double eps = 1e-8, grad_clip = 0, gradient_scale = 0.25;
};
Numbers numbers() { return {{.lr = 1e-2, .weight_decay = 0.3}}; }

AdamWUpdate update_of(const Numbers& numbers) {
  return {.betas = numbers.betas,
          .eps = numbers.eps,
          .grad_clip = numbers.grad_clip,
          .gradient_scale = numbers.gradient_scale};
}

std::vector<double> rates_of(const Numbers& numbers) {
  const AdamWRates rates = adamw_rates(numbers, numbers.betas);
  return {rates.keep, rates.step, rates.root_correction};
}

/// Every block decays.
std::vector<std::uint8_t> all_decay(std::int64_t n) {
  return std::vector<std::uint8_t>(static_cast<std::size_t>((n + kDecayBlock - 1) / kDecayBlock),
                                   1);
}

/// `before` after one update on `exec`. `begin` elements are left out of it, which moves the
/// others away from round addresses.
template <class T>
State<T> updated(Exec& exec, const State<T>& before, const Numbers& with, double norm,
                 const std::vector<std::uint8_t>& decays, std::int64_t begin = 0) {
  AdamWUpdate args = update_of(with);
  Placed<T> value(exec, before.value), gradient(exec, before.gradient);
  Placed<T> exp_avg(exec, before.exp_avg), exp_avg_sq(exec, before.exp_avg_sq);
  Placed<std::uint16_t> compute(exec, before.compute, Dtype::kBf16);
  Placed<std::uint8_t> decay_table(exec, decays);
  Placed<double> gradient_norm(exec, {norm}), rates(exec, rates_of(with));
  args.value = value.tensor(begin);
  args.gradient = gradient.tensor(begin);
  args.exp_avg = exp_avg.tensor(begin);
  args.exp_avg_sq = exp_avg_sq.tensor(begin);
  if (!before.compute.empty()) args.compute = compute.tensor(begin);
  args.decays = decay_table.tensor();
  args.gradient_norm = gradient_norm.tensor();
  args.rates = rates.tensor();
  std::visit([&](auto& backend) { adamw(backend, args); }, exec);
  EXPECT_EQ(decay_table.values(), decays);
  return {value.values(), gradient.values(), exp_avg.values(), exp_avg_sq.values(),
          compute.values()};
}

/// The formula, element by element, in f64.
template <class T>
State<double> formula(const State<T>& before, const Numbers& args, double norm,
                      const std::vector<std::uint8_t>& decays) {
  State<double> after;
  const double clip =
      args.grad_clip > 0 ? std::min(1.0, args.grad_clip / (args.gradient_scale * norm + 1e-6)) : 1;
  const double t = static_cast<double>(args.update);
  const auto [beta1, beta2] = args.betas;
  for (std::size_t i = 0; i < before.value.size(); ++i) {
    const double g = args.gradient_scale * clip * static_cast<double>(before.gradient[i]);
    const double m = beta1 * static_cast<double>(before.exp_avg[i]) + (1 - beta1) * g;
    const double v = beta2 * static_cast<double>(before.exp_avg_sq[i]) + (1 - beta2) * g * g;
    const double m_hat = m / (1 - std::pow(beta1, t));
    const double v_hat = v / (1 - std::pow(beta2, t));
    const double decay = decays[i / kDecayBlock] ? args.weight_decay : 0;
    after.value.push_back(static_cast<double>(before.value[i]) * (1 - args.lr * decay) -
                          args.lr * m_hat / (std::sqrt(v_hat) + args.eps));
    after.gradient.push_back(static_cast<double>(before.gradient[i]));
    after.exp_avg.push_back(m);
    after.exp_avg_sq.push_back(v);
  }
  return after;
}

/// "" when both are within `limit` of each other, else the first that is not.
template <class T>
std::string compare(const char* what, const std::vector<T>& got, const std::vector<double>& want,
                    double limit) {
  if (got.size() != want.size()) return fmt::format("{} has {} elements", what, got.size());
  for (std::size_t i = 0; i < want.size(); ++i) {
    const double value = static_cast<double>(got[i]);
    if (!(std::abs(value - want[i]) <= limit)) {
      return fmt::format("{}[{}] is {:.9g}, expected {:.9g}", what, i, value, want[i]);
    }
  }
  return "";
}
template <class T>
std::string compare(const State<T>& got, const State<double>& want, double limit) {
  for (const std::string& text : {compare("value", got.value, want.value, limit),
                                  compare("gradient", got.gradient, want.gradient, limit),
                                  compare("exp_avg", got.exp_avg, want.exp_avg, limit),
                                  compare("exp_avg_sq", got.exp_avg_sq, want.exp_avg_sq, limit)}) {
    if (!text.empty()) return text;
  }
  return "";
}

TEST(AdamW, EqualsItsFormula) {
  Exec cpu = CpuExec(2);
  for (std::int64_t t :
       {std::int64_t{1}, std::int64_t{2}, std::int64_t{1000}, std::int64_t{10'000'000}}) {
    const auto before = random_state<double>(100);
    Numbers args = numbers();
    args.update = t;
    const auto after = updated(cpu, before, args, 1, all_decay(100));
    EXPECT_EQ(compare(after, formula(before, args, 1, all_decay(100)), 1e-13), "") << t;
  }
}

TEST(AdamW, SinglePrecisionIsCloseAndTheSameOnAnyNumberOfThreads) {
  constexpr std::int64_t n = 40'000;
  Exec one = CpuExec(1), three = CpuExec(3);
  const auto exact = formula(random_state<double>(n), numbers(), 1, all_decay(n));
  const auto first = updated(one, random_state<float>(n), numbers(), 1, all_decay(n));
  EXPECT_EQ(compare(first, exact, 3e-6), "");
  EXPECT_EQ(first, updated(three, random_state<float>(n), numbers(), 1, all_decay(n)));
}

/// 150 elements: three blocks, of which the second does not decay.
void expect_decay_by_table(Exec& exec) {
  const auto before = random_state<float>(150);
  Numbers args = numbers();
  args.weight_decay = 10;  // that not even single precision hides
  const std::vector<std::uint8_t> decays = {1, 0, 1};
  const auto after = updated(exec, before, args, 1, decays);
  EXPECT_EQ(compare(after, formula(before, args, 1, decays), 1e-6), "");
  EXPECT_NE(compare(after, formula(before, args, 1, {1, 1, 1}), 1e-6), "");
}

void expect_clip(Exec& exec) {
  const auto before = random_state<float>(100);
  Numbers args = numbers();
  args.grad_clip = 2;
  // gradient_scale is 1/4: norms up to 8 are left as they are.
  EXPECT_EQ(updated(exec, before, args, 7.9, all_decay(100)),
            updated(exec, before, numbers(), 1e9, all_decay(100)));
  for (double norm : {8.5, 80.0, 1e30}) {
    EXPECT_EQ(compare(updated(exec, before, args, norm, all_decay(100)),
                      formula(before, args, norm, all_decay(100)), 1e-6),
              "")
        << norm;
  }
}

void expect_no_change_by_a_norm_that_is_not_finite(Exec& exec) {
  auto before = random_state<float>(300);
  before.compute.assign(300, 7);
  for (double norm : {std::nan(""), std::numeric_limits<double>::infinity()}) {
    EXPECT_EQ(updated(exec, before, numbers(), norm, all_decay(300)), before) << norm;
  }
}

void expect_copy_of_values(Exec& exec) {
  for (std::int64_t n : {1, 3, 64, 1023, 5001}) {
    auto before = random_state<float>(n);
    before.compute.assign(static_cast<std::size_t>(n), 0x7FC0);
    const auto after = updated(exec, before, numbers(), 1, all_decay(n));
    for (std::size_t i = 0; i < after.value.size(); ++i) {
      ASSERT_EQ(after.compute[i], bf16_from_float(after.value[i])) << i << " of " << n;
    }
    auto without = after;
    without.compute.clear();
    before.compute.clear();
    EXPECT_EQ(updated(exec, before, numbers(), 1, all_decay(n)), without) << n;
  }
}

/// Many sizes, and addresses that are no multiples of 16 bytes; twice, with the same bits.
void expect_formula_at_many_sizes(Exec& exec) {
  for (std::int64_t n : {1, 3, 63, 64, 65, 1023, 1024, 1025, 40'003}) {
    for (std::int64_t begin : {0, 1, 2, 3}) {
      if (begin >= n) continue;
      auto before = random_state<float>(n);
      before.compute.assign(static_cast<std::size_t>(n), 0x3F80);
      const auto after = updated(exec, before, numbers(), 1, all_decay(n - begin), begin);
      const auto exact = formula(before, numbers(), 1, all_decay(n));
      for (std::int64_t k = 0; k < n; ++k) {
        const auto i = static_cast<std::size_t>(k);
        const bool changed = k >= begin;
        const auto old = static_cast<double>(before.value[i]);
        ASSERT_NEAR(after.value[i], changed ? exact.value[i] : old, 3e-6) << i << " of " << n;
        ASSERT_NEAR(after.exp_avg[i], changed ? exact.exp_avg[i] : before.exp_avg[i], 1e-6) << i;
        ASSERT_NEAR(after.exp_avg_sq[i], changed ? exact.exp_avg_sq[i] : before.exp_avg_sq[i], 1e-6)
            << i;
        ASSERT_EQ(after.compute[i], changed ? bf16_from_float(after.value[i]) : 0x3F80) << i;
      }
      EXPECT_EQ(after.gradient, before.gradient);
      EXPECT_EQ(updated(exec, before, numbers(), 1, all_decay(n - begin), begin), after);
    }
  }
}

void expect_nothing_for_no_elements(Exec& exec) {
  const State<float> none;
  EXPECT_EQ(updated(exec, none, numbers(), 1, {}), none);
}

TEST(AdamW, DecaysBlocksByTheTable) {
  Exec cpu = CpuExec(1);
  expect_decay_by_table(cpu);
}

TEST(AdamW, ClipsByTheNorm) {
  Exec cpu = CpuExec(1);
  expect_clip(cpu);
}

TEST(AdamW, ChangesNothingWhenTheNormIsNotFinite) {
  Exec cpu = CpuExec(1);
  expect_no_change_by_a_norm_that_is_not_finite(cpu);
}

TEST(AdamW, WritesARoundedCopyOfTheValues) {
  Exec cpu = CpuExec(1);
  expect_copy_of_values(cpu);
}

TEST(AdamW, TakesManySizesAndAddresses) {
  Exec cpu = CpuExec(1);
  expect_formula_at_many_sizes(cpu);
  expect_nothing_for_no_elements(cpu);
}

TEST(AdamWCuda, DecaysBlocksByTheTable) { run_on_gpu(expect_decay_by_table); }
TEST(AdamWCuda, ClipsByTheNorm) { run_on_gpu(expect_clip); }
TEST(AdamWCuda, ChangesNothingWhenTheNormIsNotFinite) {
  run_on_gpu(expect_no_change_by_a_norm_that_is_not_finite);
}
TEST(AdamWCuda, WritesARoundedCopyOfTheValues) { run_on_gpu(expect_copy_of_values); }
TEST(AdamWCuda, TakesManySizesAndAddresses) { run_on_gpu(expect_formula_at_many_sizes); }
TEST(AdamWCuda, TakesNoElements) { run_on_gpu(expect_nothing_for_no_elements); }

TEST(AdamW, RefusesTensorsThatDoNotFit) {
  Exec exec = CpuExec(1);
  CpuExec& cpu = std::get<CpuExec>(exec);
  const Placed<float> eight(exec, std::vector<float>(8)), nine(exec, std::vector<float>(9));
  const Placed<double> one(exec, {1});
  const Placed<std::uint8_t> decays(exec, {1}), more_decays(exec, {1, 1});
  const Placed<double> rates(exec, rates_of(numbers()));
  AdamWUpdate right = update_of(numbers());
  right.value = right.gradient = right.exp_avg = right.exp_avg_sq = eight.tensor();
  right.decays = decays.tensor();
  right.gradient_norm = one.tensor();
  right.rates = rates.tensor();
  EXPECT_NO_THROW(adamw(cpu, right));
  const auto refuses = [&](Tensor AdamWUpdate::*member, const Tensor& tensor) {
    AdamWUpdate args = right;
    args.*member = tensor;
    EXPECT_THROW(adamw(cpu, args), Error) << tensor.to_string();
  };
  for (auto member : {&AdamWUpdate::value, &AdamWUpdate::gradient, &AdamWUpdate::exp_avg,
                      &AdamWUpdate::exp_avg_sq}) {
    refuses(member, nine.tensor());
    refuses(member, {});
  }
  refuses(&AdamWUpdate::compute, eight.tensor());
  refuses(&AdamWUpdate::decays, more_decays.tensor());
  refuses(&AdamWUpdate::decays, {});
  refuses(&AdamWUpdate::gradient_norm, eight.tensor());
  refuses(&AdamWUpdate::gradient_norm, {});
  refuses(&AdamWUpdate::rates, one.tensor());
  refuses(&AdamWUpdate::rates, {});
}

}  // namespace
}  // namespace jiboia::test
