#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "mirabelle/model/transformer_config.h"

namespace mirabelle {

/// What config.json of a model of Hugging Face says.
struct HuggingFaceConfig {
  TransformerConfig model;
  int64_t vocab_size = 0;
  int64_t max_positions = 0;  ///< tokens of a context
  std::optional<int64_t> bos_token;
};

/// Reads config.json of LlamaForCausalLM (Llama 1 to 3), Qwen2ForCausalLM (Qwen2, Qwen2.5) or
/// Qwen3ForCausalLM, as transformers 4 and 5 write it. Dropout becomes 0. Throws a kData Error that
/// names the file and the field for what is missing, makes no sense, or is an option of these
/// families that our models do not have: another activation, biases beyond queries, keys and
/// values, sliding windows, other ways of scaling rotary positions.
HuggingFaceConfig read_hugging_face_config(const std::filesystem::path& file);

/// The class of transformers that has this model: Qwen3ForCausalLM with query_key_norm,
/// Qwen2ForCausalLM with qkv_bias, else LlamaForCausalLM. Throws a kUsage Error for a model that
/// none of them has.
std::string hugging_face_architecture(const TransformerConfig& model);

/// config.json of that class, for transformers 4 and 5. dtype: of the weights.
nlohmann::ordered_json hugging_face_config(const HuggingFaceConfig& config,
                                           const std::string& dtype);

}  // namespace mirabelle
