#include "mirabelle/model/model_share.h"

#include <algorithm>

#include "mirabelle/core/error.h"

namespace mirabelle {

void ModelShare::check(const TransformerConfig& model, int64_t padded_vocab_size) const {
  MIRABELLE_CHECK_USAGE(
      num_shards > 0 && tensor_parallel_size > 0 && num_shards % tensor_parallel_size == 0,
      "parallel.tensor_parallel_size ", tensor_parallel_size, " must divide the ", num_shards,
      " shards of the model (training.reproducible_shards)");
  const auto check_divisible = [&](const char* what, int64_t value) {
    MIRABELLE_CHECK_USAGE(
        value % num_shards == 0, what, " ", value, " must be divisible by the ", num_shards,
        " shards of the model (",
        reproducible ? "training.reproducible_shards" : "parallel.tensor_parallel_size", ")");
  };
  check_divisible("model.num_heads", model.num_heads);
  check_divisible("model.ffn_hidden_size", model.ffn_hidden_size);
  check_divisible("the padded vocabulary of", padded_vocab_size);
  MIRABELLE_CHECK_USAGE(
      model.num_kv_heads % num_shards == 0 || num_shards % model.num_kv_heads == 0,
      "model.num_kv_heads ", model.num_kv_heads, " and the ", num_shards,
      " shards of the model: one must divide the other");
}

namespace {

/// Eight in the whole model, where that divides the features: 48 to some hundred features each.
int64_t ffn_blocks(int64_t ffn_hidden_size, int64_t num_shards) {
  int64_t blocks = std::max<int64_t>(8 / num_shards, 1);
  while (ffn_hidden_size % blocks != 0) blocks /= 2;
  return blocks;
}

}  // namespace

ShardSizes::ShardSizes(const TransformerConfig& model, int64_t padded_vocab_size,
                       int64_t num_shards)
    : num_heads(model.num_heads / num_shards),
      num_kv_heads(num_shards < model.num_kv_heads ? model.num_kv_heads / num_shards : 1),
      ffn_hidden_size(model.ffn_hidden_size / num_shards),
      vocab_size(padded_vocab_size / num_shards),
      num_ffn_blocks(ffn_blocks(ffn_hidden_size, num_shards)),
      ffn_block_size(ffn_hidden_size / num_ffn_blocks),
      kv_replicas(num_shards < model.num_kv_heads ? 1 : num_shards / model.num_kv_heads),
      group_size(num_heads / num_kv_heads),
      attention_width(num_heads * model.head_dim()),
      qkv_width((num_heads + 2 * num_kv_heads) * model.head_dim()) {}

}  // namespace mirabelle
