#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

#include "tests/support/tiny_model.h"

namespace jiboia::test {
namespace {

std::vector<ModelConfig> variants() {
  ModelConfig plain = tiny_config();
  plain.use_bias = false;
  ModelConfig untied = tiny_config();
  untied.tie_word_embeddings = false;
  untied.use_conv_bias = false;
  untied.expand = 3;
  untied.state_size = 5;
  untied.conv_kernel = 1;
  return {tiny_config(), plain, untied};
}

/// Values large enough that every gradient counts.
void randomise(ParameterStore& parameters) {
  initialise(parameters, 5);
  for (std::size_t p = 0; p < parameters.count(); ++p) {
    const Tensor value = parameters.value(p);
    const Philox random(6, RandomPurpose::kTest, static_cast<std::uint32_t>(p));
    visit_float(value.dtype, [&]<class T>() {
      for (std::int64_t i = 0; i < value.size(); ++i) {
        value.as<T>()[i] += static_cast<T>(0.3 * random.normal(static_cast<std::uint64_t>(i)));
      }
    });
  }
}

std::vector<std::byte> bytes_of_gradients(const ParameterStore& parameters) {
  const Tensor flat = parameters.flat_gradients();
  const auto* data = static_cast<const std::byte*>(flat.data);
  return {data, data + flat.bytes()};
}

TEST(MambaLm, GradientsEqualFiniteDifferences) {
  Exec exec = CpuExec(2);
  for (const ModelConfig& config : variants()) {
    const MambaLm model(config);
    ParameterStore parameters(exec, model.parameters(), Dtype::kF64,
                              StoreContents::kValuesAndTraining);
    randomise(parameters);
    TokenBatch batch = random_batch(config, 2, 21);
    batch.document_start.assign(42, 0);
    for (std::size_t i = 9; i < 21; ++i) batch.document_start[i] = 9;
    run_loss(model, parameters, batch, 1e-2, Recompute::kNone, exec);
    const std::vector<std::byte> gradients = bytes_of_gradients(parameters);
    const auto* gradient = reinterpret_cast<const double*>(gradients.data());
    for (std::size_t p = 0; p < parameters.count(); ++p) {
      double* value = parameters.value(p).as<double>();
      const std::int64_t size = parameters.value(p).size();
      for (std::int64_t i = 0; i < size; i += std::max<std::int64_t>(1, size / 7)) {
        const double x = value[i], step = 1e-5;
        value[i] = x + step;
        const double above = run_loss(model, parameters, batch, 1e-2, Recompute::kNone, exec).loss;
        value[i] = x - step;
        const double below = run_loss(model, parameters, batch, 1e-2, Recompute::kNone, exec).loss;
        value[i] = x;
        const double want = (above - below) / (2 * step);
        EXPECT_NEAR(gradient[parameters.range(p).begin + i], want, 1e-5 * std::abs(want) + 1e-8)
            << parameters.spec(p).name << "[" << i << "]";
      }
    }
  }
}

TEST(MambaLm, DryRunPlansExactlyTheMemoryThatIsUsed) {
  Exec exec = CpuExec(1);
  for (const ModelConfig& config : variants()) {
    for (Recompute recompute : {Recompute::kNone, Recompute::kSelective, Recompute::kBlock}) {
      const MambaLm model(config);
      ParameterStore parameters(exec, model.parameters(), Dtype::kF32,
                                StoreContents::kValuesAndTraining);
      initialise(parameters, 1);
      TokenBatch batch = random_batch(config, 2, 50);
      const LossRun run = run_loss(model, parameters, batch, 0, recompute, exec);
      EXPECT_EQ(run.peak_bytes, run.planned_bytes);
      EXPECT_EQ(run.live_blocks, 3);  // the loss's outputs
    }
  }
}

TEST(MambaLm, RecomputeGivesTheSameBitsInLessMemory) {
  Exec exec = CpuExec(2);
  ModelConfig config = tiny_config();
  config.num_hidden_layers = 4;
  const MambaLm model(config);
  ParameterStore parameters(exec, model.parameters(), Dtype::kF32,
                            StoreContents::kValuesAndTraining);
  initialise(parameters, 1);
  TokenBatch batch = random_batch(config, 3, 70);
  const LossRun kept = run_loss(model, parameters, batch, 1e-4, Recompute::kNone, exec);
  const auto gradients = bytes_of_gradients(parameters);
  const LossRun again = run_loss(model, parameters, batch, 1e-4, Recompute::kBlock, exec);
  EXPECT_EQ(kept.loss, again.loss);
  EXPECT_TRUE(gradients == bytes_of_gradients(parameters));
  EXPECT_LT(again.peak_bytes, kept.peak_bytes / 2);
  const LossRun selective = run_loss(model, parameters, batch, 1e-4, Recompute::kSelective, exec);
  EXPECT_EQ(kept.loss, selective.loss);
  EXPECT_TRUE(gradients == bytes_of_gradients(parameters));
  EXPECT_LT(selective.peak_bytes, kept.peak_bytes * 5 / 6);
  EXPECT_GT(selective.peak_bytes, again.peak_bytes);
}

TEST(MambaLm, BitsDoNotDependOnThreads) {
  std::vector<std::vector<std::byte>> results;
  for (int threads : {1, 2, 3}) {
    Exec exec = CpuExec(threads);
    const MambaLm model(tiny_config());
    ParameterStore parameters(exec, model.parameters(), Dtype::kF32,
                              StoreContents::kValuesAndTraining);
    initialise(parameters, 1);
    TokenBatch batch = random_batch(tiny_config(), 5, 90);
    run_loss(model, parameters, batch, 1e-4, Recompute::kNone, exec);
    results.push_back(bytes_of_gradients(parameters));
  }
  EXPECT_TRUE(results[0] == results[1]);
  EXPECT_TRUE(results[0] == results[2]);
}

TEST(MambaLm, PackedDocumentsEqualSeparateOnes) {
  Exec exec = CpuExec(1);
  const ModelConfig config = tiny_config();
  const MambaLm model(config);
  ParameterStore parameters(exec, model.parameters(), Dtype::kF64,
                            StoreContents::kValuesAndTraining);
  randomise(parameters);
  // Two documents of 17 tokens, packed into one row and as two rows.
  TokenBatch separate = random_batch(config, 2, 17);
  TokenBatch packed = separate;
  packed.rows = 1;
  packed.seq_len = 34;
  packed.document_start.assign(34, 0);
  for (std::size_t i = 17; i < 34; ++i) packed.document_start[i] = 17;
  const double want = run_loss(model, parameters, separate, 0, Recompute::kNone, exec).loss;
  std::vector<double> gradients(parameters.flat_gradients().as<double>(),
                                parameters.flat_gradients().as<double>() + parameters.flat_size());
  EXPECT_NEAR(run_loss(model, parameters, packed, 0, Recompute::kNone, exec).loss, want, 1e-13);
  for (std::size_t i = 0; i < gradients.size(); ++i) {
    EXPECT_NEAR(parameters.flat_gradients().as<double>()[i], gradients[i], 1e-13);
  }
}

TEST(MambaLm, RecurrentPiecesGiveTheLogitsOfTheWhole) {
  Exec exec = CpuExec(1);
  for (const ModelConfig& config : variants()) {
    const MambaLm model(config);
    ParameterStore parameters(exec, model.parameters(), Dtype::kF64, StoreContents::kValues);
    randomise(parameters);
    TokenBatch batch = random_batch(config, 1, 40);
    Workspace workspace(exec, 1 << 20);
    const auto logits_of = [&](std::int64_t begin, std::int64_t count, RecurrentState* state) {
      Tape tape(exec, workspace.arena(), parameters.values(), nullptr, TapeMode::kEvaluate);
      const Tensor tokens(Spec(Dtype::kI32, {1, count}), batch.tokens.data() + begin);
      const Var hidden = state ? model.hidden(tape, tokens, *state) : model.hidden(tape, tokens);
      const Tensor logits = tape.value(model.logits(tape, hidden));
      return std::vector<double>(logits.as<double>(), logits.as<double>() + logits.size());
    };
    const std::vector<double> whole = logits_of(0, 40, nullptr);
    const Buffer memory =
        allocate(exec, RecurrentState::bytes(config, 1, Dtype::kF64), "the state of a test");
    RecurrentState state(config, 1, Dtype::kF64, memory.data());
    std::vector<double> pieces;
    std::int64_t begin = 0;
    for (std::int64_t count : {1, 1, 17, 2, 16, 3}) {
      for (double logit : logits_of(begin, count, &state)) pieces.push_back(logit);
      begin += count;
    }
    ASSERT_EQ(pieces.size(), whole.size());
    for (std::size_t i = 0; i < whole.size(); ++i) EXPECT_NEAR(pieces[i], whole[i], 1e-12);
    EXPECT_EQ(workspace.arena().live_blocks(), 0);
  }
}

TEST(MambaLm, CountsThePublishedParameters) {
  ModelConfig mambarim;
  mambarim.vocab_size = 32000;
  mambarim.hidden_size = 768;
  mambarim.num_hidden_layers = 12;
  const auto count = [](const ModelConfig& config) {
    const MambaLm model(resolved(config));
    return ParameterStore::plan(model.parameters(), Dtype::kF32, StoreContents::kValues)
        .parameter_count;
  };
  EXPECT_EQ(count(mambarim), 69'836'544);
  ModelConfig mamba7b;
  mamba7b.vocab_size = 50432;
  mamba7b.hidden_size = 4096;
  mamba7b.num_hidden_layers = 64;
  EXPECT_EQ(count(mamba7b), 6'946'557'952);
  mamba7b.tie_word_embeddings = false;
  EXPECT_EQ(count(mamba7b), 7'153'127'424);
}

Tensor value_of(const ParameterStore& parameters, const std::string& name) {
  const auto found = std::ranges::find(parameters.specs(), name, &ParameterSpec::name);
  require(found != parameters.specs().end(), ErrorKind::kInvalidArgument, "no parameter {}", name);
  return parameters.value(static_cast<std::size_t>(found - parameters.specs().begin()));
}

struct Moments {
  double mean = 0, deviation = 0, smallest = 1e30, largest = -1e30;
};
Moments moments_of(const ParameterStore& parameters, const std::string& name) {
  const Tensor value = value_of(parameters, name);
  Moments m;
  double squares = 0;
  const auto n = static_cast<double>(value.size());
  for (std::int64_t i = 0; i < value.size(); ++i) {
    const double x = value.as<float>()[i];
    m.mean += x / n;
    squares += x * x / n;
    m.smallest = std::min(m.smallest, x);
    m.largest = std::max(m.largest, x);
  }
  m.deviation = std::sqrt(squares - m.mean * m.mean);
  return m;
}

ParameterStore initialised(Initialisation initialisation) {
  static Exec exec = CpuExec(1);
  ModelConfig config = model_defaults(initialisation);
  config.vocab_size = 500;
  config.hidden_size = 64;
  config.num_hidden_layers = 4;
  const MambaLm model(resolved(config));
  ParameterStore parameters(exec, model.parameters(), Dtype::kF32, StoreContents::kValues);
  initialise(parameters, 1);
  return parameters;
}

constexpr const char* kLayer = "backbone.layers.1.mixer.";

TEST(Initialise, DrawsWhatMambaSsmDraws) {
  const ParameterStore parameters = initialised(Initialisation::kMambaSsm);
  EXPECT_NEAR(moments_of(parameters, "backbone.embeddings.weight").deviation, 0.02, 5e-4);
  const Moments in_proj = moments_of(parameters, std::string(kLayer) + "in_proj.weight");
  EXPECT_NEAR(in_proj.largest, 1 / 8.0, 1e-3);  // 1 / sqrt(64)
  EXPECT_NEAR(in_proj.smallest, -1 / 8.0, 1e-3);
  const Moments out_proj = moments_of(parameters, std::string(kLayer) + "out_proj.weight");
  EXPECT_NEAR(out_proj.largest, 1 / std::sqrt(128.0) / 2, 1e-3);  // over sqrt(4 layers)
  EXPECT_NEAR(moments_of(parameters, std::string(kLayer) + "conv1d.bias").largest, 0.5, 0.05);
  EXPECT_EQ(moments_of(parameters, std::string(kLayer) + "D").deviation, 0);
}

TEST(Initialise, DrawsWhatTransformersDrew) {
  const ParameterStore old = initialised(Initialisation::kHuggingFace439);
  EXPECT_NEAR(moments_of(old, "backbone.embeddings.weight").deviation, 0.1, 2e-3);
  EXPECT_NEAR(moments_of(old, std::string(kLayer) + "in_proj.weight").largest, 1 / 8.0, 1e-3);
  EXPECT_NEAR(moments_of(old, std::string(kLayer) + "out_proj.weight").largest,
              1 / std::sqrt(128.0), 1e-3);
  EXPECT_NEAR(moments_of(old, std::string(kLayer) + "conv1d.bias").largest, 0.5, 0.05);
  const ParameterStore now = initialised(Initialisation::kHuggingFace456);
  EXPECT_NEAR(moments_of(now, std::string(kLayer) + "in_proj.weight").deviation, 0.1, 2e-3);
  EXPECT_NEAR(moments_of(now, std::string(kLayer) + "x_proj.weight").deviation, 0.1, 2e-3);
  EXPECT_EQ(moments_of(now, std::string(kLayer) + "conv1d.bias").largest, 0);
}

TEST(Initialise, TimeStepsStartBetweenTheirBounds) {
  const ParameterStore parameters = initialised(Initialisation::kMambaSsm);
  const Tensor bias = value_of(parameters, std::string(kLayer) + "dt_proj.bias");
  for (std::int64_t i = 0; i < bias.size(); ++i) {
    const double dt = std::log1p(std::exp(static_cast<double>(bias.as<float>()[i])));
    EXPECT_GE(dt, 1e-3 * (1 - 1e-5));
    EXPECT_LE(dt, 1e-1 * (1 + 1e-5));
  }
  const Tensor a_log = value_of(parameters, std::string(kLayer) + "A_log");
  for (std::int64_t i = 0; i < a_log.size(); ++i) {
    EXPECT_NEAR(a_log.as<float>()[i], std::log(static_cast<double>(i % 16 + 1)), 1e-6);
  }
}

}  // namespace
}  // namespace jiboia::test
