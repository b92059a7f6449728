#pragma once

#include <string>

#include "mirabelle/core/config_fields.h"
#include "mirabelle/core/error.h"

namespace mirabelle {

/// A decoder-only transformer: pre-RMSNorm, rotary positions, grouped-query attention, SwiGLU; with
/// the options of the Llama, Qwen2 and Qwen3 families.
struct TransformerConfig {
  int64_t hidden_size = 128;
  int64_t num_layers = 4;
  int64_t num_heads = 4;
  int64_t num_kv_heads = 4;
  int64_t explicit_head_dim = 0;
  int64_t ffn_hidden_size = 384;
  bool qkv_bias = false;
  bool query_key_norm = false;
  double dropout = 0.2;
  double rope_theta = 10000;
  std::string rope_scaling = "none";
  double rope_factor = 1;
  int64_t rope_original_tokens = 0;
  double rope_low_rotations = 1;
  double rope_high_rotations = 4;
  double norm_epsilon = 1e-6;
  bool tie_embeddings = true;
  double initializer_range = 0.02;

  int64_t head_dim() const {
    return explicit_head_dim > 0 ? explicit_head_dim : hidden_size / num_heads;
  }
  int64_t group_size() const { return num_heads / num_kv_heads; }

  void visit(ConfigFields& fields) {
    fields.field("hidden_size", hidden_size, "width of the residual stream");
    fields.field("num_layers", num_layers, "transformer blocks");
    fields.field("num_heads", num_heads, "query heads of each block");
    fields.field("num_kv_heads", num_kv_heads, "key/value heads of each block");
    fields.field("head_dim", explicit_head_dim, "width of a head; 0 = hidden_size / num_heads");
    fields.field("ffn_hidden_size", ffn_hidden_size, "width inside the SwiGLU feed-forward");
    fields.field("qkv_bias", qkv_bias, "add a bias to queries, keys and values, as Qwen2 does");
    fields.field("query_key_norm", query_key_norm,
                 "normalise each query and key head before rotation, as Qwen3 does");
    fields.field("dropout", dropout, "rate on the embeddings and on both branches of each block");
    fields.field("rope_theta", rope_theta, "base of the rotary wavelengths");
    fields.field(
        "rope_scaling", rope_scaling,
        "of the wavelengths, for contexts longer than those of pre-training: none, linear, "
        "llama3 or yarn");
    fields.field("rope_factor", rope_factor, "how much longer; divides the frequencies");
    fields.field("rope_original_tokens", rope_original_tokens,
                 "llama3 and yarn: the context of pre-training");
    fields.field("rope_low_rotations", rope_low_rotations,
                 "llama3 and yarn: features that turn less often in that context are scaled");
    fields.field("rope_high_rotations", rope_high_rotations,
                 "llama3 and yarn: features that turn more often are not; usual are 1 and 4 for "
                 "llama3, 1 and 32 for yarn");
    fields.field("norm_epsilon", norm_epsilon, "added to the mean square in RMSNorm");
    fields.field("tie_embeddings", tie_embeddings, "use the embedding as output head");
    fields.field("initializer_range", initializer_range, "standard deviation of the first weights");
  }

  void check() const {
    MIRABELLE_CHECK_USAGE(hidden_size > 0 && num_layers > 0 && ffn_hidden_size > 0 &&
                              num_heads > 0 && num_kv_heads > 0,
                          "model.hidden_size, num_layers, num_heads, num_kv_heads and "
                          "ffn_hidden_size must be positive");
    MIRABELLE_CHECK_USAGE(
        explicit_head_dim > 0 || (explicit_head_dim == 0 && hidden_size % num_heads == 0),
        "model.hidden_size ", hidden_size, " must be divisible by model.num_heads ", num_heads,
        ", or model.head_dim be given, which is ", explicit_head_dim);
    MIRABELLE_CHECK_USAGE(head_dim() % 2 == 0,
                          "model.head_dim (hidden_size / num_heads, if it is "
                          "0) is ",
                          head_dim(), "; rotary embeddings want an even number");
    MIRABELLE_CHECK_USAGE(num_heads % num_kv_heads == 0, "model.num_heads ", num_heads,
                          " must be divisible by model.num_kv_heads ", num_kv_heads);
    MIRABELLE_CHECK_USAGE(dropout >= 0 && dropout < 1, "model.dropout must be in [0, 1), not ",
                          dropout);
    MIRABELLE_CHECK_USAGE(norm_epsilon > 0 && rope_theta > 0 && initializer_range > 0,
                          "model.norm_epsilon, rope_theta and initializer_range must be positive");
    check_rope_scaling();
  }

 private:
  void check_rope_scaling() const {
    const bool is_by_rotations = rope_scaling == "llama3" || rope_scaling == "yarn";
    MIRABELLE_CHECK_USAGE(is_by_rotations || rope_scaling == "none" || rope_scaling == "linear",
                          "model.rope_scaling must be none, linear, llama3 or yarn, not '",
                          rope_scaling, "'");
    MIRABELLE_CHECK_USAGE(rope_scaling == "none" || rope_factor >= 1,
                          "model.rope_factor must be at least 1, is ", rope_factor);
    MIRABELLE_CHECK_USAGE(!is_by_rotations || (rope_original_tokens > 0 && rope_low_rotations > 0 &&
                                               rope_low_rotations < rope_high_rotations),
                          "model.rope_scaling ", rope_scaling,
                          " wants rope_original_tokens > 0 and 0 < rope_low_rotations < "
                          "rope_high_rotations, got ",
                          rope_original_tokens, ", ", rope_low_rotations, " and ",
                          rope_high_rotations);
  }
};

}  // namespace mirabelle
