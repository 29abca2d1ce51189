#include "train/model/model_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

namespace jiboia {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

TEST(ModelConfig, ResolvesTheRankOfTheTimeStep) {
  EXPECT_EQ(resolved({.hidden_size = 768}).time_step_rank, 48);
  EXPECT_EQ(resolved({.hidden_size = 33}).time_step_rank, 3);  // rounded up
  EXPECT_EQ(resolved({.hidden_size = 1}).time_step_rank, 1);
  EXPECT_EQ(resolved({.hidden_size = 768, .time_step_rank = 5}).time_step_rank, 5);
}

TEST(ModelConfig, HasTheInnerWidthOfItsExpansion) {
  const ModelConfig config{.hidden_size = 7, .expand = 3};
  EXPECT_EQ(config.intermediate_size(), 21);
}

TEST(ModelConfig, TakesDefaultsFromTheInitialisation) {
  EXPECT_EQ(model_defaults(Initialisation::kMambaSsm).initializer_range, 0.02);
  EXPECT_TRUE(model_defaults(Initialisation::kMambaSsm).rescale_prenorm_residual);
  for (const auto era : {Initialisation::kHuggingFace439, Initialisation::kHuggingFace456}) {
    EXPECT_EQ(model_defaults(era).initialisation, era);
    EXPECT_EQ(model_defaults(era).initializer_range, 0.1);
    EXPECT_FALSE(model_defaults(era).rescale_prenorm_residual);
  }
}

TEST(ModelConfig, AcceptsItsDefaultsAndTheSmallestModel) {
  EXPECT_FALSE(find_problem(ModelConfig{}));
  EXPECT_FALSE(find_problem(ModelConfig{.vocab_size = 1,
                                        .hidden_size = 1,
                                        .num_hidden_layers = 1,
                                        .state_size = 1,
                                        .conv_kernel = 1,
                                        .expand = 1,
                                        .time_step_rank = 1,
                                        .bos_token_id = -1}));
}

TEST(ModelConfig, RefusesEverySizeOutOfRange) {
  for (const auto& option : model_options()) {
    ModelConfig config;
    const FieldRef field = option.field(config);
    if (const auto* size = std::get_if<std::int64_t*>(&field)) {
      for (const std::int64_t wrong : {std::int64_t{-2}, std::int64_t{1} << 62}) {
        **size = wrong;
        const auto problem = find_problem(config);
        ASSERT_TRUE(problem) << option.path << " = " << wrong;
        EXPECT_EQ(problem->paths[0], option.path);
        EXPECT_THAT(problem->message, HasSubstr(std::to_string(wrong)));
      }
    } else if (const auto* number = std::get_if<double*>(&field)) {
      for (const double wrong : {0.0, 1e-38, 1e20}) {  // 1e-38: fp32 has fewer digits for it
        **number = wrong;
        const auto problem = find_problem(config);
        ASSERT_TRUE(problem) << option.path << " = " << wrong;
        EXPECT_THAT(problem->message, HasSubstr(option.path));
        EXPECT_THAT(problem->message, HasSubstr("expected a number from 1e-37 to 1"));
      }
    }
  }
  EXPECT_TRUE(find_problem(ModelConfig{.state_size = 0}));
  EXPECT_TRUE(find_problem(ModelConfig{.vocab_size = 0}));
  EXPECT_TRUE(find_problem(ModelConfig{.layer_norm_epsilon = std::nan("")}));
}

TEST(ModelConfig, NamesBothKeysThatDisagree) {
  const auto token = find_problem(ModelConfig{.vocab_size = 3, .eos_token_id = 3});
  ASSERT_TRUE(token);
  EXPECT_THAT(token->paths, ElementsAre("eos_token_id", "vocab_size"));
  const auto step = find_problem(ModelConfig{.time_step_min = 0.2});
  ASSERT_TRUE(step);
  EXPECT_THAT(step->paths, ElementsAre("time_step_min", "time_step_max"));
}

}  // namespace
}  // namespace jiboia
