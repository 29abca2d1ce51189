#include "autograd/tape.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

#include "core/buffer.h"
#include "core/memory.h"
#include "kernels/add_rms_norm/add_rms_norm.h"
#include "kernels/cross_entropy/cross_entropy.h"
#include "kernels/linear/linear.h"
#include "tests/support/test_tensor.h"

namespace jiboia::test {
namespace {

using testing::HasSubstr;

/// A sink that keeps gradients and counts calls.
class RecordingSink : public GradSink {
 public:
  explicit RecordingSink(const std::vector<TestTensor>& parameters) {
    for (const TestTensor& parameter : parameters) gradients_.emplace_back(parameter.spec());
    acquired_.resize(parameters.size());
    ready_.resize(parameters.size());
  }
  Grad acquire(ParameterId id) override {
    const bool first = acquired_[index(id)]++ == 0;
    return {gradients_[index(id)].tensor(), first ? GradMode::kOverwrite : GradMode::kAdd};
  }
  void ready(ParameterId id) override {
    EXPECT_GT(acquired_[index(id)], 0);
    ++ready_[index(id)];
  }
  const TestTensor& gradient(std::size_t i) const { return gradients_[i]; }
  const std::vector<int>& acquired() const { return acquired_; }
  const std::vector<int>& ready_calls() const { return ready_; }

 private:
  std::vector<TestTensor> gradients_;
  std::vector<int> acquired_, ready_;
};

TestTensor random_tensor(const Shape& shape, std::uint32_t stream) {
  TestTensor tensor(Spec(Dtype::kF64, shape));
  const Philox random(1, RandomPurpose::kTest, stream);
  for (std::int64_t i = 0; i < tensor.size(); ++i) {
    tensor.set(i, random.normal(static_cast<std::uint64_t>(i)));
  }
  return tensor;
}

/// A small graph with everything that is hard: slices of columns with readers of their own, a
/// value with two readers, a parameter that is used twice, an output that nobody reads.
/// Parameters: 0 table (5, 4), 1 split (6, 4), 2 left (4, 3), 3 right (4, 3), 4 norm (4).
struct Graph {
  std::vector<TestTensor> parameters = {random_tensor({5, 4}, 0), random_tensor({6, 4}, 1),
                                        random_tensor({4, 3}, 2), random_tensor({4, 3}, 3),
                                        random_tensor({4}, 4)};
  TestTensor x = random_tensor({2, 3, 4}, 5);
  TestTensor targets = [] {
    TestTensor result(Spec(Dtype::kI32, {2, 3}));
    for (std::int64_t i = 0; i < 6; ++i) result.set(i, static_cast<double>(i * 2 % 5));
    return result;
  }();

  std::vector<Tensor> values() const {
    std::vector<Tensor> result;
    for (const TestTensor& parameter : parameters) result.push_back(parameter.tensor());
    return result;
  }

  double run(Tape& tape) const {
    const auto p = [&](int i) { return tape.parameter(static_cast<ParameterId>(i)); };
    const Var x_var = tape.constant(x.tensor());
    const Var both = tape.apply<Linear>({.x = x_var, .weight = p(1)}).y;
    const Var left = tape.apply<Linear>({.x = both.column_slice(0, 3), .weight = p(2)}).y;
    const Var right = tape.apply<Linear>({.x = both.column_slice(3, 3), .weight = p(3)}).y;
    // `left` is read twice more: as a residual and as an update.
    const auto first = tape.apply<AddRmsNorm>({.residual = left, .update = right, .weight = p(4)});
    const auto second =
        tape.apply<AddRmsNorm>({.residual = first.normed, .update = left, .weight = p(4)});
    const Var again = tape.apply<Linear>({.x = second.normed, .weight = p(0)}).y;
    (void)again;  // nobody reads it: the table's gradient comes from the loss alone
    const auto loss = tape.apply_loss<CrossEntropy>(
        {.x = second.sum, .weight = p(0), .targets = tape.constant(targets.tensor())},
        {.z_loss = 0.1});
    const double result = tape.measuring() ? 0 : read_scalar(tape.exec(), tape.value(loss.loss));
    return result;
  }
};

TEST(Tape, GradientsOfSlicesFanOutAndSharedParametersEqualFiniteDifferences) {
  Graph graph;
  RecordingSink sink(graph.parameters);
  Exec exec = CpuExec(1);
  const Buffer memory = allocate_host(1 << 16, "a test");
  {
    Arena arena(memory.data(), memory.bytes());
    const auto values = graph.values();
    Tape tape(exec, arena, values, &sink, TapeMode::kTrain);
    graph.run(tape);
    tape.backward();
  }
  EXPECT_THAT(sink.ready_calls(), testing::Each(1));
  EXPECT_EQ(sink.acquired()[4], 2);
  for (std::size_t p = 0; p < graph.parameters.size(); ++p) {
    for (std::int64_t i = 0; i < graph.parameters[p].size(); ++i) {
      const auto loss_at = [&](double delta) {
        Graph moved = graph;
        moved.parameters[p].set(i, graph.parameters[p].get(i) + delta);
        Arena arena(memory.data(), memory.bytes());
        const auto values = moved.values();
        Tape tape(exec, arena, values, nullptr, TapeMode::kEvaluate);
        return moved.run(tape);
      };
      const double want = (loss_at(1e-5) - loss_at(-1e-5)) / 2e-5;
      EXPECT_NEAR(sink.gradient(p).get(i), want, 1e-6 * std::abs(want) + 1e-8) << p << ", " << i;
    }
  }
}

struct Pair {
  Var first, second;
};

/// A segment that hands its first value through and makes the second.
Pair double_norm(Tape& tape, const ParameterId& weight, const Pair& in) {
  const auto norm = tape.apply<AddRmsNorm>(
      {.residual = in.first, .update = in.second, .weight = tape.parameter(weight)});
  const auto again =
      tape.apply<AddRmsNorm>({.residual = norm.normed, .weight = tape.parameter(weight)});
  return {in.first, again.normed};
}

/// A segment within a segment.
Pair nested(Tape& tape, const ParameterId& weight, const Pair& in) {
  const Pair once = tape.segment(Recompute::kBlock, &double_norm, weight, in);
  return double_norm(tape, weight, once);
}

struct SegmentRun {
  std::vector<double> gradients;
  std::int64_t peak_bytes = 0;
};

SegmentRun run_segments(Recompute recompute) {
  const std::vector<TestTensor> parameters = {random_tensor({4, 4}, 1), random_tensor({4}, 2),
                                              random_tensor({5, 4}, 3)};
  std::vector<Tensor> values;
  for (const TestTensor& parameter : parameters) values.push_back(parameter.tensor());
  RecordingSink sink(parameters);
  Exec exec = CpuExec(1);
  const Buffer memory = allocate_host(1 << 16, "a test");
  Arena arena(memory.data(), memory.bytes());
  Tape tape(exec, arena, values, &sink, TapeMode::kTrain);
  const TestTensor x = random_tensor({1, 9, 4}, 5);
  const TestTensor targets(Spec(Dtype::kI32, {1, 9}));
  const ParameterId weight{1};
  const Var y =
      tape.apply<Linear>({.x = tape.constant(x.tensor()), .weight = tape.parameter(ParameterId{0})})
          .y;
  Pair state{y, y};
  // Both members are one value: one op must not get it twice, so the second is made first.
  state.second = tape.apply<AddRmsNorm>({.residual = y, .weight = tape.parameter(weight)}).normed;
  for (int i = 0; i < 3; ++i) state = tape.segment(recompute, &nested, weight, state);
  tape.apply_loss<CrossEntropy>({.x = state.second,
                                 .weight = tape.parameter(ParameterId{2}),
                                 .targets = tape.constant(targets.tensor())});
  tape.backward();
  EXPECT_EQ(arena.live_blocks(), 3);
  EXPECT_THAT(sink.ready_calls(), testing::Each(1));
  SegmentRun result{.peak_bytes = arena.peak_bytes()};
  for (std::size_t p = 0; p < parameters.size(); ++p) {
    for (double g : sink.gradient(p).values()) result.gradients.push_back(g);
  }
  return result;
}

TEST(Tape, SegmentsComputedAgainGiveTheSameBits) {
  const SegmentRun kept = run_segments(Recompute::kNone);
  const SegmentRun again = run_segments(Recompute::kBlock);
  EXPECT_EQ(kept.gradients, again.gradients);
  EXPECT_LT(again.peak_bytes, kept.peak_bytes);
}

/// Two linear layers behind a norm, released at low cost as soon as they are read.
Pair released_early(Tape& tape, const ParameterId& weight, const Pair& in) {
  const auto norm = tape.apply<AddRmsNorm>(
      {.residual = in.first, .update = in.second, .weight = tape.parameter(ParameterId{1})});
  const Var matrix = tape.parameter(weight);
  const Var once = tape.apply<Linear>({.x = norm.normed, .weight = matrix}).y;
  tape.release(norm.normed, RecomputeCost::kLow);
  const Var twice = tape.apply<Linear>({.x = once, .weight = matrix}).y;
  tape.release(once, RecomputeCost::kLow);
  return {norm.sum, twice};
}

TEST(Tape, ReleasedValuesAreComputedAgainToTheSameBits) {
  const std::vector<TestTensor> parameters = {random_tensor({4, 4}, 1), random_tensor({4}, 2),
                                              random_tensor({5, 4}, 3)};
  std::vector<Tensor> values;
  for (const TestTensor& parameter : parameters) values.push_back(parameter.tensor());
  const TestTensor x = random_tensor({1, 64, 4}, 5);
  const TestTensor targets(Spec(Dtype::kI32, {1, 64}));
  Exec exec = CpuExec(1);
  const Buffer memory = allocate_host(1 << 17, "a test");
  const auto run = [&](Recompute recompute, const Buffer* backing) {
    RecordingSink sink(parameters);
    Arena arena = backing ? Arena(backing->data(), backing->bytes()) : Arena();
    Tape tape(exec, arena, values, &sink, TapeMode::kTrain);
    const ParameterId weight{0};
    Pair state;
    state.first =
        tape.apply<Linear>({.x = tape.constant(x.tensor()), .weight = tape.parameter(weight)}).y;
    state.second = tape.apply<Linear>({.x = state.first, .weight = tape.parameter(weight)}).y;
    for (int i = 0; i < 4; ++i) state = tape.segment(recompute, &released_early, weight, state);
    const Var last = tape.apply<AddRmsNorm>({.residual = state.first,
                                             .update = state.second,
                                             .weight = tape.parameter(ParameterId{1})})
                         .normed;
    tape.apply_loss<CrossEntropy>({.x = last,
                                   .weight = tape.parameter(ParameterId{2}),
                                   .targets = tape.constant(targets.tensor())});
    tape.backward();
    EXPECT_EQ(arena.live_blocks(), 3);
    SegmentRun result{.peak_bytes = arena.peak_bytes()};
    for (std::size_t p = 0; backing && p < parameters.size(); ++p) {
      for (double g : sink.gradient(p).values()) result.gradients.push_back(g);
    }
    return result;
  };
  const SegmentRun kept = run(Recompute::kNone, &memory);
  const SegmentRun again = run(Recompute::kSelective, &memory);
  EXPECT_EQ(kept.gradients, again.gradients);
  EXPECT_LT(again.peak_bytes, kept.peak_bytes);
  EXPECT_EQ(run(Recompute::kSelective, nullptr).peak_bytes, again.peak_bytes);
}

/// Adds nothing to `x`, makes `second` only beside an `extra`, and is run again without one.
struct Forgetful {
  static constexpr const char* kName = "forgetful";
  static constexpr const char* kOutputs[] = {"first", "second"};
  template <class T = Tensor>
  struct In {
    T x, extra;
  };
  template <class T = Tensor>
  struct Out {
    T first, second;
  };
  using Attrs = NoAttrs;
  static constexpr In<bool> kBackwardReadsInputs{};
  static constexpr Out<bool> kBackwardReadsOutputs{};
  template <class T>
  static In<T> again(const In<T>& in, const Out<T>&) {
    return {.x = in.x, .extra = {}};
  }
  static Out<Spec> infer(const In<Spec>& in, const Attrs&) { return {in.x, in.extra}; }
  static void forward(auto& exec, const ForwardArgs<Forgetful>& args) {
    copy(exec, args.in.x, args.out.first);
    if (args.out.second) copy(exec, args.in.extra, args.out.second);
  }
  static void backward(auto&, const BackwardArgs<Forgetful>&) {}
};

using SegmentFunction = Pair (*)(Tape&, const ParameterId&, const Pair&);

/// Releases what the op's own backward pass reads, when the op is not there to run again.
Pair released_own_output(Tape& tape, const ParameterId& weight, const Pair& in) {
  const auto norm = tape.apply<AddRmsNorm>(
      {.residual = in.first, .update = in.second, .weight = tape.parameter(weight)});
  const auto next =
      tape.apply<AddRmsNorm>({.residual = norm.normed, .weight = tape.parameter(weight)});
  tape.release(norm.sum, RecomputeCost::kLow);
  return {in.first, next.normed};
}

/// Releases a value together with what it would be made from.
Pair released_with_its_input(Tape& tape, const ParameterId& weight, const Pair& in) {
  const auto norm = tape.apply<AddRmsNorm>(
      {.residual = in.first, .update = in.second, .weight = tape.parameter(weight)});
  const auto next =
      tape.apply<AddRmsNorm>({.residual = norm.normed, .weight = tape.parameter(weight)});
  tape.release(norm.sum, RecomputeCost::kLow);
  tape.release(norm.normed, RecomputeCost::kLow);
  return {in.first, next.normed};
}

/// Releases what its op does not make when it is run again.
Pair released_for_good(Tape& tape, const ParameterId& weight, const Pair& in) {
  const auto both = tape.apply<Forgetful>({.x = in.first, .extra = in.second});
  const auto norm =
      tape.apply<AddRmsNorm>({.residual = both.second, .weight = tape.parameter(weight)});
  tape.release(both.second, RecomputeCost::kLow);
  return {in.first, norm.normed};
}

TEST(Tape, ValuesThatNothingMakesAgainAreNotMadeUp) {
  const std::vector<TestTensor> parameters = {random_tensor({4, 4}, 1), random_tensor({4}, 2),
                                              random_tensor({5, 4}, 3)};
  std::vector<Tensor> values;
  for (const TestTensor& parameter : parameters) values.push_back(parameter.tensor());
  Exec exec = CpuExec(1);
  const Buffer memory = allocate_host(1 << 16, "a test");
  const TestTensor x = random_tensor({1, 9, 4}, 5);
  const TestTensor targets(Spec(Dtype::kI32, {1, 9}));
  const ParameterId weight{1};
  const auto error_of = [&](SegmentFunction segment) -> std::string {
    RecordingSink sink(parameters);
    Arena arena(memory.data(), memory.bytes());
    Tape tape(exec, arena, values, &sink, TapeMode::kTrain);
    const Var y = tape.apply<Linear>({.x = tape.constant(x.tensor()),
                                      .weight = tape.parameter(ParameterId{0})})
                      .y;
    Pair state{y, tape.apply<AddRmsNorm>({.residual = y, .weight = tape.parameter(weight)}).normed};
    state = tape.segment(Recompute::kSelective, segment, weight, state);
    tape.apply_loss<CrossEntropy>({.x = state.second,
                                   .weight = tape.parameter(ParameterId{2}),
                                   .targets = tape.constant(targets.tensor())});
    try {
      tape.backward();
    } catch (const Error& error) {
      return error.what();
    }
    return "nothing was refused";
  };
  EXPECT_THAT(error_of(&released_own_output), HasSubstr("add_rms_norm.sum: backward reads"));
  EXPECT_THAT(error_of(&released_with_its_input), HasSubstr("add_rms_norm.sum: backward reads"));
  EXPECT_THAT(error_of(&released_for_good), HasSubstr("forgetful.second: backward reads"));
}

TEST(Tape, EverythingGoesBackToTheArena) {
  Graph graph;
  RecordingSink sink(graph.parameters);
  Exec exec = CpuExec(1);
  const Buffer memory = allocate_host(1 << 16, "a test");
  Arena arena(memory.data(), memory.bytes());
  const auto values = graph.values();
  for (int i = 0; i < 3; ++i) {
    Tape tape(exec, arena, values, &sink, TapeMode::kTrain);
    graph.run(tape);
    tape.backward();
    EXPECT_EQ(arena.live_blocks(), 3);  // the three outputs of the loss
  }
  EXPECT_EQ(arena.live_blocks(), 0);
}

/// Runs a graph whose loss reads the sum of two slices of columns of one value.
void read_slices(std::int64_t first_column, std::int64_t second_column) {
  const std::vector<TestTensor> parameters = {random_tensor({6, 4}, 1), random_tensor({4, 3}, 2),
                                              random_tensor({4}, 3), random_tensor({5, 4}, 4)};
  std::vector<Tensor> values;
  for (const TestTensor& parameter : parameters) values.push_back(parameter.tensor());
  RecordingSink sink(parameters);
  Exec exec = CpuExec(1);
  const Buffer memory = allocate_host(1 << 16, "a test");
  Arena arena(memory.data(), memory.bytes());
  Tape tape(exec, arena, values, &sink, TapeMode::kTrain);
  const TestTensor x = random_tensor({1, 2, 4}, 5);
  const TestTensor targets(Spec(Dtype::kI32, {1, 2}));
  const auto p = [&](int i) { return tape.parameter(static_cast<ParameterId>(i)); };
  const Var y = tape.apply<Linear>({.x = tape.constant(x.tensor()), .weight = p(0)}).y;
  const Var a = tape.apply<Linear>({.x = y.column_slice(first_column, 3), .weight = p(1)}).y;
  const Var b = tape.apply<Linear>({.x = y.column_slice(second_column, 3), .weight = p(1)}).y;
  const auto norm = tape.apply<AddRmsNorm>({.residual = a, .update = b, .weight = p(2)});
  tape.apply_loss<CrossEntropy>(
      {.x = norm.sum, .weight = p(3), .targets = tape.constant(targets.tensor())});
  tape.backward();
}

TEST(Tape, SlicesMustCoverTheValueAndNotOverlapInPart) {
  EXPECT_NO_THROW(read_slices(0, 3));
  EXPECT_THROW(read_slices(0, 2), Error);
  EXPECT_THROW(read_slices(0, 0), Error);
}

}  // namespace
}  // namespace jiboia::test
