#include "train/model/hf_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "data/file.h"
#include "data/json.h"
#include "tests/support/temporary_folder.h"

namespace jiboia {
namespace {

using testing::AllOf;
using testing::HasSubstr;

class HfConfigTest : public testing::Test {
 protected:
  ModelConfig read(const std::string& text) {
    write_file_atomically(folder_ / "config.json", text);
    return read_model_config(folder_.path());
  }
  /// The message of the Checkpoint error that reading `text` must give.
  std::string refusal(const std::string& text) {
    try {
      read(text);
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kCheckpoint);
      EXPECT_THAT(error.what(), HasSubstr((folder_ / "config.json").string()));
      return error.what();
    }
    ADD_FAILURE() << "no error for " << text;
    return "";
  }

  TemporaryFolder folder_;
};

/// No field has its default.
ModelConfig unusual_config() {
  return {.vocab_size = 1001,
          .hidden_size = 33,
          .num_hidden_layers = 3,
          .state_size = 5,
          .conv_kernel = 3,
          .expand = 3,
          .time_step_rank = 7,
          .layer_norm_epsilon = 2.5e-6,
          .use_bias = true,
          .use_conv_bias = false,
          .tie_word_embeddings = false,
          .residual_in_fp32 = false,
          .initialisation = Initialisation::kMambaSsm,
          .initializer_range = 0.02,
          .rescale_prenorm_residual = true,
          .time_step_min = 0.002,
          .time_step_max = 0.2,
          .time_step_floor = 2e-4,
          .time_step_scale = 0.5,
          .time_step_init_scheme = TimeStepInitScheme::kConstant,
          .bos_token_id = 1,
          .eos_token_id = 2,
          .pad_token_id = -1};
}

TEST_F(HfConfigTest, MissingFieldsTakeMambaConfigsDefaults) {
  const ModelConfig config = read(R"({"model_type": "mamba"})");
  EXPECT_EQ(config, resolved(ModelConfig{}));
  EXPECT_EQ(config.time_step_rank, 48);
}

TEST_F(HfConfigTest, EveryFieldSurvivesARoundTripButTheRescaling) {
  ModelConfig expected = unusual_config();
  expected.rescale_prenorm_residual = false;  // transformers 5 would do it again
  EXPECT_EQ(read(hugging_face_config(unusual_config(), Dtype::kF32)), expected);
  const ModelConfig defaults = resolved(ModelConfig{});
  EXPECT_EQ(read(hugging_face_config(defaults, Dtype::kBf16)), defaults);
}

TEST_F(HfConfigTest, WritesEveryFieldOfMambaConfig) {
  const nlohmann::json json =
      parse_json(hugging_face_config(unusual_config(), Dtype::kBf16), {"written"});
  const nlohmann::json expected = parse_json(R"({
    "architectures": ["MambaForCausalLM"], "model_type": "mamba", "vocab_size": 1001,
    "hidden_size": 33, "intermediate_size": 99, "expand": 3, "state_size": 5, "conv_kernel": 3,
    "num_hidden_layers": 3, "time_step_rank": 7, "layer_norm_epsilon": 2.5e-6,
    "hidden_act": "silu", "use_bias": true, "use_conv_bias": false, "residual_in_fp32": false,
    "rescale_prenorm_residual": false, "initialisation": "mamba_ssm", "initializer_range": 0.02,
    "time_step_min": 0.002, "time_step_max": 0.2, "time_step_floor": 0.0002,
    "time_step_scale": 0.5, "time_step_init_scheme": "constant", "tie_word_embeddings": false,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": null, "use_cache": true,
    "use_mambapy": false, "torch_dtype": "bfloat16", "transformers_version": "4.39.0"})",
                                             {"expected"});
  EXPECT_EQ(json, expected);
  EXPECT_THROW(hugging_face_config(unusual_config(), Dtype::kF64), Error);
}

TEST_F(HfConfigTest, KnowsItsOwnConfigurations) {
  const std::string own = hugging_face_config(resolved(ModelConfig{}), Dtype::kF32);
  EXPECT_TRUE(is_own_config(own));
  auto saved_by_transformers = nlohmann::json::parse(own);
  saved_by_transformers["transformers_version"] = "4.56.1";
  EXPECT_FALSE(is_own_config(saved_by_transformers.dump()));
  for (const char* other :
       {"", "[]", "mine", R"({"model_type": "mamba"})", R"({"initialisation": 1})"})
    EXPECT_FALSE(is_own_config(other)) << other;
}

TEST_F(HfConfigTest, WritesTheGenerationConfig) {
  EXPECT_EQ(parse_json(hugging_face_generation_config(unusual_config()), {"written"}),
            parse_json(R"({"_from_model_config": true, "bos_token_id": 1, "eos_token_id": 2,
                           "pad_token_id": null, "transformers_version": "4.39.0"})",
                       {"expected"}));
}

TEST_F(HfConfigTest, ReadsPublishedConfigurations) {
  const ModelConfig mambarim = read(R"({"_name_or_path": "./mambarim-110M",
    "architectures": ["MambaForCausalLM"], "bos_token_id": 1, "conv_kernel": 4, "eos_token_id": 2,
    "expand": 2, "hidden_act": "silu", "hidden_size": 768, "initializer_range": 0.1,
    "intermediate_size": 1536, "layer_norm_epsilon": 1e-05, "model_type": "mamba",
    "num_hidden_layers": 12, "pad_token_id": 3, "rescale_prenorm_residual": false,
    "residual_in_fp32": true, "state_size": 16, "time_step_floor": 0.0001,
    "time_step_init_scheme": "random", "time_step_max": 0.1, "time_step_min": 0.001,
    "time_step_rank": 48, "time_step_scale": 1.0, "torch_dtype": "float32",
    "transformers_version": "4.39.0.dev0", "use_bias": false, "use_cache": true,
    "use_conv_bias": true, "vocab_size": 32000})");
  ModelConfig expected = resolved(ModelConfig{.vocab_size = 32000, .num_hidden_layers = 12});
  expected.bos_token_id = 1;
  expected.eos_token_id = 2;
  expected.pad_token_id = 3;
  EXPECT_EQ(mambarim, expected);

  // Has mamba_ssm's names beside Hugging Face's, which are the ones that count.
  const ModelConfig mamba7b = read(R"({"model_type": "mamba", "hidden_size": 4096, "n_layer": 64,
    "d_model": 1, "num_hidden_layers": 64, "vocab_size": 50432, "pad_vocab_size_multiple": 8,
    "time_step_rank": 256, "rms_norm": true, "fused_add_norm": true})");
  EXPECT_EQ(mamba7b, resolved(ModelConfig{
                         .vocab_size = 50432, .hidden_size = 4096, .num_hidden_layers = 64}));
}

TEST_F(HfConfigTest, ReadsAutomaticAndAbsentValues) {
  const ModelConfig config = read(R"({"model_type": "mamba", "hidden_size": 100, "expand": null,
    "time_step_rank": "auto", "intermediate_size": 200, "hidden_act": "swish",
    "bos_token_id": null})");
  EXPECT_EQ(config.time_step_rank, 7);  // ceil(100 / 16)
  EXPECT_EQ(config.intermediate_size(), 200);
  EXPECT_EQ(config.bos_token_id, -1);
  EXPECT_EQ(config.eos_token_id, 0);
}

TEST_F(HfConfigTest, ReadsMambaSsmsConfigurations) {
  const ModelConfig config = read(R"({"d_model": 768, "n_layer": 24, "vocab_size": 50277,
    "ssm_cfg": {}, "rms_norm": true, "residual_in_fp32": true, "fused_add_norm": true,
    "pad_vocab_size_multiple": 8})");
  ModelConfig expected = model_defaults(Initialisation::kMambaSsm);
  expected.hidden_size = 768;
  expected.num_hidden_layers = 24;
  expected.vocab_size = 50280;
  EXPECT_EQ(config, resolved(expected));

  const ModelConfig other = read(R"({"d_model": 64, "n_layer": 2, "vocab_size": 100,
    "pad_vocab_size_multiple": 1, "tie_embeddings": false, "residual_in_fp32": false,
    "attn_layer_idx": [], "d_intermediate": 0,
    "ssm_cfg": {"layer": "Mamba1", "d_state": 5, "d_conv": 3, "expand": 3, "dt_rank": 9,
                "bias": true, "conv_bias": false}})");
  EXPECT_EQ(other.vocab_size, 100);
  EXPECT_FALSE(other.tie_word_embeddings || other.residual_in_fp32 || other.use_conv_bias);
  EXPECT_TRUE(other.use_bias);
  EXPECT_EQ(other.state_size, 5);
  EXPECT_EQ(other.conv_kernel, 3);
  EXPECT_EQ(other.expand, 3);
  EXPECT_EQ(other.time_step_rank, 9);
}

TEST_F(HfConfigTest, RefusesWhatIsNotMamba1) {
  EXPECT_THAT(refusal(R"({"model_type": "mamba2"})"),
              AllOf(HasSubstr("model_type"), HasSubstr("mamba2")));
  EXPECT_THAT(refusal(R"({"hidden_size": 8})"), HasSubstr("model_type"));
  EXPECT_THAT(refusal(R"({"model_type": "mamba", "hidden_act": "gelu"})"),
              AllOf(HasSubstr("hidden_act"), HasSubstr("gelu")));
  EXPECT_THAT(refusal(R"({"d_model": 8, "rms_norm": false})"), HasSubstr("rms_norm"));
  EXPECT_THAT(refusal(R"({"d_model": 8, "ssm_cfg": {"layer": "Mamba2"}})"), HasSubstr("layer"));
  EXPECT_THAT(refusal(R"({"d_model": 8, "attn_layer_idx": [1]})"), HasSubstr("attn_layer_idx"));
  EXPECT_THAT(refusal(R"({"d_model": 8, "d_intermediate": 16})"), HasSubstr("d_intermediate"));
}

TEST_F(HfConfigTest, RefusesImpossibleValues) {
  EXPECT_THAT(refusal(R"({"model_type": "mamba", "state_size": 0})"), HasSubstr("state_size"));
  EXPECT_THAT(refusal(R"({"model_type": "mamba", "hidden_size": -5})"), HasSubstr("hidden_size"));
  EXPECT_THAT(refusal(R"({"model_type": "mamba", "hidden_size": 8.0})"), HasSubstr("hidden_size"));
  EXPECT_THAT(refusal(R"({"model_type": "mamba", "layer_norm_epsilon": 1e39})"),
              HasSubstr("layer_norm_epsilon is 1e+39, expected a number from 1e-37 to 1"));
  EXPECT_THAT(refusal(R"({"model_type": "mamba", "use_bias": 1})"), HasSubstr("use_bias"));
  EXPECT_THAT(refusal(R"({"model_type": "mamba", "time_step_rank": "big"})"),
              HasSubstr("time_step_rank"));
  EXPECT_THAT(refusal(R"({"model_type": "mamba", "time_step_init_scheme": "none"})"),
              HasSubstr("time_step_init_scheme"));
  EXPECT_THAT(refusal(R"({"model_type": "mamba", "eos_token_id": 50280})"),
              AllOf(HasSubstr("eos_token_id"), HasSubstr("vocab_size")));
  EXPECT_THAT(refusal(R"({"d_model": 8, "vocab_size": 9223372036854775807})"),
              HasSubstr("vocab_size"));
  EXPECT_THAT(refusal(R"({"d_model": 8, "pad_vocab_size_multiple": 0})"),
              HasSubstr("pad_vocab_size_multiple"));
  for (const char* size : {"0", "-2", "1535", "9223372036854775807"}) {
    EXPECT_THAT(refusal(fmt::format(R"({{"model_type": "mamba", "intermediate_size": {}}})", size)),
                HasSubstr(fmt::format("intermediate_size: is {}, expected 1536: expand 2", size)));
  }
  EXPECT_THAT(refusal("[]"), HasSubstr("object"));
  EXPECT_THAT(refusal(R"({"model_type": "mamba", "model_type": "mamba"})"),
              HasSubstr("model_type"));
}

}  // namespace
}  // namespace jiboia
