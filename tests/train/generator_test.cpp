#include "train/generator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "tests/support/tiny_model.h"

namespace jiboia {
namespace {

std::map<std::int32_t, int> counts(const std::vector<float>& logits,
                                   const SamplingOptions& options) {
  std::map<std::int32_t, int> result;
  for (std::uint64_t i = 0; i < 20'000; ++i) ++result[sample(logits, options, i)];
  return result;
}

const std::vector<float> kLogits = {std::log(1.f), std::log(5.f), std::log(3.f), std::log(1.f)};

TEST(Sample, DrawsByProbability) {
  const auto drawn = counts(kLogits, {.seed = 4});
  EXPECT_NEAR(drawn.at(0) / 2e4, 0.1, 0.01);
  EXPECT_NEAR(drawn.at(1) / 2e4, 0.5, 0.015);
  EXPECT_NEAR(drawn.at(2) / 2e4, 0.3, 0.015);
}

TEST(Sample, TemperatureSharpens) {
  // Squared probabilities: 1, 25, 9, 1 of 36.
  EXPECT_NEAR(counts(kLogits, {.temperature = 0.5}).at(1) / 2e4, 25 / 36.0, 0.015);
  EXPECT_EQ(counts(kLogits, {.temperature = 0}).at(1), 20'000);
}

TEST(Sample, TopPKeepsTheLikeliest) {
  EXPECT_THAT(counts(kLogits, {.top_p = 0.7}), testing::SizeIs(2));
  EXPECT_NEAR(counts(kLogits, {.top_p = 0.7}).at(1) / 2e4, 5 / 8.0, 0.015);
  EXPECT_THAT(counts(kLogits, {.top_p = 0}), testing::SizeIs(1));
}

TEST(Sample, LeavesOutRowsThatPadTheVocabulary) {
  EXPECT_EQ(counts(kLogits, {.temperature = 0, .vocab_size = 1}).at(0), 20'000);
}

TEST(Sample, EqualSeedsGiveEqualTokensAndNanIsAnError) {
  for (std::uint64_t i = 0; i < 100; ++i) {
    EXPECT_EQ(sample(kLogits, {.seed = 9}, i), sample(kLogits, {.seed = 9}, i));
  }
  EXPECT_NE(counts(kLogits, {.seed = 1}), counts(kLogits, {.seed = 2}));
  const std::vector<float> bad = {0, std::nanf("")};
  EXPECT_THROW(sample(bad, {}, 0), Error);
}

TEST(Generator, ReadsPromptsOfAnyLengthInWhatIsPlanned) {
  Exec exec = CpuExec(1);
  // Of this model pieces of 119 to 124 tokens take more memory than longer ones.
  ModelConfig config = test::tiny_config();
  config.hidden_size = 16;
  config.state_size = 8;
  const MambaLm model(config);
  ParameterStore parameters(exec, model.parameters(), Dtype::kF32, StoreContents::kValues);
  initialise(parameters, 1);
  Workspace workspace(exec, Generator::planned_bytes(model, Activations::kFull, exec));
  Generator generator(model, parameters, workspace.arena());
  for (std::size_t length = 1; length <= 130; ++length) {
    const std::vector<std::int32_t> prompt(length, 3);
    int tokens = 0;
    EXPECT_NO_THROW(generator.generate(prompt, 9, {}, std::nullopt, [&](std::int32_t) {
      return ++tokens < 2;
    })) << length;
    EXPECT_EQ(tokens, 2);
    EXPECT_EQ(workspace.arena().live_blocks(), 0);
  }
}

}  // namespace
}  // namespace jiboia
