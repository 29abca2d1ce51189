#include "train/model/hf_config.h"

#include <algorithm>
#include <array>
#include <string_view>
#include <variant>

#include "data/json.h"

namespace jiboia {
namespace {

constexpr const char* kTransformersVersion = "4.39.0";  // the first one that has Mamba
constexpr std::array kTokenIds{"bos_token_id", "eos_token_id", "pad_token_id"};

bool is_token_id(std::string_view key) { return std::ranges::count(kTokenIds, key) > 0; }

/// Sets a field of ModelConfig from a value of another type's name in JSON; absent and null keep
/// what is there.
void field_from_json(const JsonObject& json, const std::string& key, const FieldRef& field) {
  if (auto* flag = std::get_if<bool*>(&field)) {
    **flag = json.get_bool(key, **flag);
  } else if (auto* integer = std::get_if<std::int64_t*>(&field)) {
    **integer = json.get_int64(key, **integer);
  } else if (auto* number = std::get_if<double*>(&field)) {
    **number = json.get_double(key, **number);
  } else {
    EnumRef choice = std::get<EnumRef>(field);
    const std::string name = json.get_string(key, choice.name());
    if (!choice.set(name)) json.fail_at(key, fmt::format("'{:.40}' is unknown", name));
  }
}

nlohmann::ordered_json field_to_json(const FieldRef& field) {
  if (auto* flag = std::get_if<bool*>(&field)) return **flag;
  if (auto* integer = std::get_if<std::int64_t*>(&field)) return **integer;
  if (auto* number = std::get_if<double*>(&field)) return **number;
  return std::get<EnumRef>(field).name();
}

/// time_step_rank and dt_rank: a number, or "auto", which ModelConfig spells 0.
std::int64_t read_rank(const JsonObject& json, const char* key) {
  const nlohmann::json* value = json.find(key);
  return value && *value == "auto" ? 0 : json.get_int64(key, 0);
}

ModelConfig read_hugging_face(const nlohmann::json& value, const JsonObject& json) {
  const std::string type = json.get_string("model_type");
  if (type != "mamba") json.fail_at("model_type", fmt::format("'{:.40}' is not 'mamba'", type));
  const std::string activation = json.get_string("hidden_act", "silu");
  if (activation != "silu" && activation != "swish")
    json.fail_at("hidden_act", fmt::format("'{:.40}' is not 'silu'", activation));

  ModelConfig config;
  for (const Option<ModelConfig>& option : model_options()) {
    if (option.path != "time_step_rank") field_from_json(json, option.path, option.field(config));
    // A token id that is absent is MambaConfig's default; one that is null does not exist.
    const auto member = value.find(option.path);
    if (is_token_id(option.path) && member != value.end() && member->is_null())
      *std::get<std::int64_t*>(option.field(config)) = -1;
  }
  config.time_step_rank = read_rank(json, "time_step_rank");
  return config;
}

/// Source: mamba_ssm 2.2, models/config_mamba.py (defaults) and models/mixer_seq_simple.py.
ModelConfig read_mamba_ssm(const JsonObject& json) {
  const auto refuse_unless = [](const JsonObject& object, bool supported, const char* key) {
    if (!supported) object.fail_at(key, "asks for more than Mamba-1 blocks with RMSNorm");
  };
  refuse_unless(json, json.get_bool("rms_norm", true), "rms_norm");
  refuse_unless(json, json.get_int64("d_intermediate", 0) == 0, "d_intermediate");
  refuse_unless(json, !json.find("attn_layer_idx") || json.get_array("attn_layer_idx").empty(),
                "attn_layer_idx");

  ModelConfig config = model_defaults(Initialisation::kMambaSsm);
  config.hidden_size = json.get_int64("d_model");
  config.num_hidden_layers = json.get_int64("n_layer", 64);
  config.residual_in_fp32 = json.get_bool("residual_in_fp32", true);
  config.tie_word_embeddings = json.get_bool("tie_embeddings", true);

  constexpr std::int64_t kMaxVocabSize = 1 << 30;
  const std::int64_t vocab_size = json.get_int64("vocab_size", 50277);
  const std::int64_t multiple = json.get_int64("pad_vocab_size_multiple", 8);
  if (vocab_size < 1 || vocab_size > kMaxVocabSize)
    json.fail_at("vocab_size", fmt::format("is {}, not a size", vocab_size));
  if (multiple < 1 || multiple > kMaxVocabSize)
    json.fail_at("pad_vocab_size_multiple", fmt::format("is {}, not a size", multiple));
  config.vocab_size = (vocab_size + multiple - 1) / multiple * multiple;

  if (json.find("ssm_cfg")) {
    const JsonObject ssm = json.get_object("ssm_cfg");
    refuse_unless(ssm, ssm.get_string("layer", "Mamba1") == "Mamba1", "layer");
    config.state_size = ssm.get_int64("d_state", config.state_size);
    config.conv_kernel = ssm.get_int64("d_conv", config.conv_kernel);
    config.expand = ssm.get_int64("expand", config.expand);
    config.time_step_rank = read_rank(ssm, "dt_rank");
    config.use_bias = ssm.get_bool("bias", config.use_bias);
    config.use_conv_bias = ssm.get_bool("conv_bias", config.use_conv_bias);
  }
  return config;
}

void add_token_ids(nlohmann::ordered_json& json, const ModelConfig& config) {
  const std::array ids{config.bos_token_id, config.eos_token_id, config.pad_token_id};
  for (std::size_t i = 0; i < ids.size(); ++i)
    json[kTokenIds[i]] = ids[i] < 0 ? nlohmann::ordered_json() : nlohmann::ordered_json(ids[i]);
}

}  // namespace

ModelConfig read_model_config(const std::filesystem::path& folder) {
  const std::filesystem::path path = folder / "config.json";
  const nlohmann::json value = read_json_file(path, ErrorKind::kCheckpoint);
  const JsonObject json(value, {path.string(), ErrorKind::kCheckpoint});
  const bool is_mamba_ssm = !json.find("model_type") && json.find("d_model");
  const ModelConfig config =
      resolved(is_mamba_ssm ? read_mamba_ssm(json) : read_hugging_face(value, json));
  if (const auto problem = find_problem(config))
    fail(ErrorKind::kCheckpoint, "{}: {}", path.string(), problem->message);
  const std::int64_t inner = config.intermediate_size();
  if (!is_mamba_ssm && json.get_int64("intermediate_size", inner) != inner)
    json.fail_at(
        "intermediate_size",
        fmt::format("is {}, expected {}: expand {} times hidden_size {}",
                    json.get_int64("intermediate_size"), inner, config.expand, config.hidden_size));
  return config;
}

std::string hugging_face_config(const ModelConfig& config, Dtype weights) {
  require(weights == Dtype::kF32 || weights == Dtype::kBf16, ErrorKind::kUnsupported,
          "models are written as f32 or bf16, not as {}", to_string(weights));
  nlohmann::ordered_json json = {{"architectures", {"MambaForCausalLM"}}, {"model_type", "mamba"}};
  ModelConfig copy = config;
  for (const Option<ModelConfig>& option : model_options()) {
    if (!is_token_id(option.path)) json[option.path] = field_to_json(option.field(copy));
  }
  // transformers 5 divides out_proj by sqrt(num_hidden_layers) whenever it loads a model that says
  // true. The weights are drawn: how they were is not for those who load them.
  json["rescale_prenorm_residual"] = false;
  json["intermediate_size"] = config.intermediate_size();
  json["hidden_act"] = "silu";
  add_token_ids(json, config);
  json["use_cache"] = true;
  json["use_mambapy"] = false;
  json["torch_dtype"] = weights == Dtype::kBf16 ? "bfloat16" : "float32";
  json["transformers_version"] = kTransformersVersion;
  return json.dump(2) + "\n";
}

bool is_own_config(const std::string& text) {
  const auto json = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  return json.is_object() && json.contains("initialisation") &&
         json.value("transformers_version", nlohmann::json()) == kTransformersVersion;
}

std::string hugging_face_generation_config(const ModelConfig& config) {
  nlohmann::ordered_json json = {{"_from_model_config", true}};
  add_token_ids(json, config);
  json["transformers_version"] = kTransformersVersion;
  return json.dump(2) + "\n";
}

}  // namespace jiboia
