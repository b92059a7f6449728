#pragma once

#include "mirabelle/core/config_fields.h"
#include "mirabelle/core/error.h"

namespace mirabelle {

/// A decoder-only transformer: pre-RMSNorm, rotary positions, grouped-query attention, SwiGLU.
struct TransformerConfig {
  int64_t hidden_size = 128;
  int64_t num_layers = 4;
  int64_t num_heads = 4;
  int64_t num_kv_heads = 4;
  int64_t ffn_hidden_size = 384;
  double dropout = 0.2;
  double rope_theta = 10000;
  double norm_epsilon = 1e-6;
  bool tie_embeddings = true;
  double initializer_range = 0.02;

  int64_t head_dim() const { return hidden_size / num_heads; }
  int64_t group_size() const { return num_heads / num_kv_heads; }

  void visit(ConfigFields& fields) {
    fields.field("hidden_size", hidden_size, "width of the residual stream");
    fields.field("num_layers", num_layers, "transformer blocks");
    fields.field("num_heads", num_heads, "query heads of each block");
    fields.field("num_kv_heads", num_kv_heads, "key/value heads of each block");
    fields.field("ffn_hidden_size", ffn_hidden_size, "width inside the SwiGLU feed-forward");
    fields.field("dropout", dropout, "rate on the embeddings and on both branches of each block");
    fields.field("rope_theta", rope_theta, "base of the rotary wavelengths");
    fields.field("norm_epsilon", norm_epsilon, "added to the mean square in RMSNorm");
    fields.field("tie_embeddings", tie_embeddings, "use the embedding as output head");
    fields.field("initializer_range", initializer_range, "standard deviation of the first weights");
  }

  void check() const {
    MIRABELLE_CHECK_USAGE(hidden_size > 0 && num_layers > 0 && ffn_hidden_size > 0 &&
                              num_heads > 0 && num_kv_heads > 0,
                          "model.hidden_size, num_layers, num_heads, num_kv_heads and "
                          "ffn_hidden_size must be positive");
    MIRABELLE_CHECK_USAGE(hidden_size % num_heads == 0, "model.hidden_size ", hidden_size,
                          " must be divisible by model.num_heads ", num_heads);
    MIRABELLE_CHECK_USAGE(head_dim() % 2 == 0, "model.hidden_size / model.num_heads is ",
                          head_dim(), "; rotary embeddings want an even number");
    MIRABELLE_CHECK_USAGE(num_heads % num_kv_heads == 0, "model.num_heads ", num_heads,
                          " must be divisible by model.num_kv_heads ", num_kv_heads);
    MIRABELLE_CHECK_USAGE(dropout >= 0 && dropout < 1, "model.dropout must be in [0, 1), not ",
                          dropout);
    MIRABELLE_CHECK_USAGE(norm_epsilon > 0 && rope_theta > 0 && initializer_range > 0,
                          "model.norm_epsilon, rope_theta and initializer_range must be positive");
  }
};

}  // namespace mirabelle
