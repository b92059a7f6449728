#include "mirabelle/convert/hugging_face_config.h"

#include <cmath>

#include "mirabelle/core/files.h"
#include "mirabelle/core/json.h"

namespace mirabelle {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

enum class Family { kLlama, kQwen2, kQwen3 };

/// A JSON object of which null is as good as missing.
class Fields {
 public:
  Fields(json object, std::string where) : object_(std::move(object)), where_(std::move(where)) {
    MIRABELLE_CHECK_DATA(object_.is_object(), where_, ": is no JSON object");
  }
  bool has(const std::string& key) const {
    return object_.contains(key) && !object_[key].is_null();
  }
  template <typename T>
  T get(const std::string& key) const {
    MIRABELLE_CHECK_DATA(has(key), where_, ": lacks ", key);
    return json_value<T>(object_[key], where_ + ": " + key);
  }
  template <typename T>
  T get_or(const std::string& key, const T& missing) const {
    return has(key) ? get<T>(key) : missing;
  }
  Fields object(const std::string& key) const { return {get<json>(key), where_ + ": " + key}; }
  const std::string& where() const { return where_; }

 private:
  json object_;
  std::string where_;
};

Family family_of(const Fields& fields) {
  const auto names = fields.get<std::vector<std::string>>("architectures");
  const std::string name = names.empty() ? "" : names[0];
  MIRABELLE_CHECK_DATA(
      name == "LlamaForCausalLM" || name == "Qwen2ForCausalLM" || name == "Qwen3ForCausalLM",
      fields.where(), ": architecture ", shown(name),
      ", wanted LlamaForCausalLM, Qwen2ForCausalLM or Qwen3ForCausalLM");
  return name == "LlamaForCausalLM"   ? Family::kLlama
         : name == "Qwen2ForCausalLM" ? Family::kQwen2
                                      : Family::kQwen3;
}

void refuse_other_options(const Fields& fields) {
  const auto activation = fields.get_or<std::string>("hidden_act", "silu");
  MIRABELLE_CHECK_DATA(activation == "silu", fields.where(), ": hidden_act ", shown(activation),
                       ", wanted silu");
  for (const char* option : {"attention_bias", "mlp_bias", "use_sliding_window"}) {
    MIRABELLE_CHECK_DATA(!fields.get_or(option, false), fields.where(), ": ", option,
                         " is true, which our models do not have");
  }
}

/// Of `rope`, which transformers 4 calls rope_scaling and transformers 5 rope_parameters.
void read_rope_scaling(TransformerConfig& model, const Fields& rope, int64_t max_positions) {
  const auto type =
      rope.get_or<std::string>("rope_type", rope.get_or<std::string>("type", "default"));
  if (type == "default") return;
  MIRABELLE_CHECK_DATA(type == "linear" || type == "llama3" || type == "yarn", rope.where(),
                       ": rope_type ", shown(type), ", wanted default, linear, llama3 or yarn");
  model.rope_scaling = type;
  model.rope_factor = rope.get<double>("factor");
  if (type == "linear") return;
  const bool is_llama3 = type == "llama3";
  model.rope_original_tokens = rope.get_or("original_max_position_embeddings", max_positions);
  model.rope_low_rotations = rope.get_or(is_llama3 ? "low_freq_factor" : "beta_slow", 1.0);
  model.rope_high_rotations =
      rope.get_or(is_llama3 ? "high_freq_factor" : "beta_fast", is_llama3 ? 4.0 : 32.0);
  for (const char* other : {"mscale", "mscale_all_dim", "attention_factor"}) {
    MIRABELLE_CHECK_DATA(!rope.has(other), rope.where(), ": has ", other,
                         ", which our models do not have");
  }
  MIRABELLE_CHECK_DATA(rope.get_or("truncate", true), rope.where(),
                       ": truncate is false, which our models do not have");
}

TransformerConfig model_config(const Fields& fields, Family family, int64_t max_positions) {
  TransformerConfig model;
  model.hidden_size = fields.get<int64_t>("hidden_size");
  model.num_layers = fields.get<int64_t>("num_hidden_layers");
  model.num_heads = fields.get<int64_t>("num_attention_heads");
  model.num_kv_heads = fields.get_or("num_key_value_heads", model.num_heads);
  model.ffn_hidden_size = fields.get<int64_t>("intermediate_size");
  // Qwen3's default is 128, whatever the hidden size
  model.explicit_head_dim = fields.get_or<int64_t>("head_dim", family == Family::kQwen3 ? 128 : 0);
  if (model.num_heads > 0 && model.explicit_head_dim * model.num_heads == model.hidden_size) {
    model.explicit_head_dim = 0;
  }
  model.qkv_bias = family == Family::kQwen2;
  model.query_key_norm = family == Family::kQwen3;
  model.dropout = 0;
  model.norm_epsilon = fields.get_or("rms_norm_eps", 1e-6);
  model.tie_embeddings = fields.get_or("tie_word_embeddings", false);
  model.initializer_range = fields.get_or("initializer_range", 0.02);
  model.rope_theta = fields.get_or("rope_theta", 10000.0);
  if (fields.has("rope_scaling")) {
    read_rope_scaling(model, fields.object("rope_scaling"), max_positions);
  }
  if (fields.has("rope_parameters")) {
    const Fields rope = fields.object("rope_parameters");
    model.rope_theta = rope.get_or("rope_theta", model.rope_theta);
    read_rope_scaling(model, rope, max_positions);
  }
  return model;
}

ordered_json rope_json(const TransformerConfig& model) {
  const std::string& type = model.rope_scaling;
  ordered_json rope = {{"rope_type", type == "none" ? "default" : type}};
  if (type != "none") rope["factor"] = model.rope_factor;
  if (type == "llama3" || type == "yarn") {
    const bool is_llama3 = type == "llama3";
    rope["original_max_position_embeddings"] = model.rope_original_tokens;
    rope[is_llama3 ? "low_freq_factor" : "beta_slow"] = model.rope_low_rotations;
    rope[is_llama3 ? "high_freq_factor" : "beta_fast"] = model.rope_high_rotations;
  }
  return rope;
}

}  // namespace

HuggingFaceConfig read_hugging_face_config(const std::filesystem::path& file) {
  const Fields fields(parse_json(read_text_file(file), file.string()), file.string());
  const Family family = family_of(fields);
  refuse_other_options(fields);
  HuggingFaceConfig config;
  config.vocab_size = fields.get<int64_t>("vocab_size");
  config.max_positions = fields.get_or<int64_t>("max_position_embeddings", 2048);
  config.model = model_config(fields, family, config.max_positions);
  if (fields.has("bos_token_id")) config.bos_token = fields.get<int64_t>("bos_token_id");
  MIRABELLE_CHECK_DATA(
      config.vocab_size > 0 && config.vocab_size <= 1 << 30 && config.max_positions > 0,
      file.string(),
      ": wanted vocab_size from 1 to 2^30 and "
      "max_position_embeddings above 0, got ",
      config.vocab_size, " and ", config.max_positions);
  try {
    config.model.check();
  } catch (const Error& error) {
    throw_error(ErrorKind::kData, file.string(), ": ", error.what());
  }
  return config;
}

std::string hugging_face_architecture(const TransformerConfig& model) {
  MIRABELLE_CHECK_USAGE(
      !model.query_key_norm || !model.qkv_bias,
      "no model of transformers has both model.query_key_norm and model.qkv_bias");
  return model.query_key_norm ? "Qwen3ForCausalLM"
         : model.qkv_bias     ? "Qwen2ForCausalLM"
                              : "LlamaForCausalLM";
}

ordered_json hugging_face_config(const HuggingFaceConfig& config, const std::string& dtype) {
  const TransformerConfig& model = config.model;
  const std::string architecture = hugging_face_architecture(model);
  const std::string type = architecture == "LlamaForCausalLM"   ? "llama"
                           : architecture == "Qwen2ForCausalLM" ? "qwen2"
                                                                : "qwen3";
  ordered_json rope = rope_json(model);
  const bool is_scaled = model.rope_scaling != "none";
  ordered_json result = {{"architectures", ordered_json::array({architecture})},
                         {"model_type", type},
                         {"vocab_size", config.vocab_size},
                         {"hidden_size", model.hidden_size},
                         {"intermediate_size", model.ffn_hidden_size},
                         {"num_hidden_layers", model.num_layers},
                         {"num_attention_heads", model.num_heads},
                         {"num_key_value_heads", model.num_kv_heads},
                         {"head_dim", model.head_dim()},
                         {"hidden_act", "silu"},
                         {"max_position_embeddings", config.max_positions},
                         {"rms_norm_eps", model.norm_epsilon},
                         {"tie_word_embeddings", model.tie_embeddings},
                         {"initializer_range", model.initializer_range},
                         {"attention_bias", false},
                         {"attention_dropout", 0.0},
                         {"rope_theta", model.rope_theta},  // transformers 4 reads these two
                         {"rope_scaling", is_scaled ? rope : ordered_json()}};
  rope["rope_theta"] = model.rope_theta;
  result["rope_parameters"] = rope;  // and transformers 5 this
  result["torch_dtype"] = result["dtype"] = dtype;
  if (type == "llama") result["mlp_bias"] = false;
  if (type != "llama") result["use_sliding_window"] = false;
  result["bos_token_id"] = config.bos_token ? ordered_json(*config.bos_token) : ordered_json();
  result["eos_token_id"] = result["pad_token_id"] = ordered_json();
  return result;
}

}  // namespace mirabelle
