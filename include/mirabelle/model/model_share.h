#pragma once

#include <cstdint>

#include "mirabelle/core/tensor.h"
#include "mirabelle/model/transformer_config.h"

namespace mirabelle {

/// Which part of a model a rank holds.
///
/// Every split tensor is cut in `num_shards` equal shards: attention heads, the feed-forward's
/// inner features and the vocabulary's rows (Shoeybi et al. 2019). A tensor-parallel rank holds
/// neighbouring shards and computes one after the other; what the shards add to a result is summed
/// in one binary tree, over the local shards first, then over the ranks. With as many shards as
/// ranks that is plain tensor parallelism. With a fixed number of shards the sums do not depend on
/// the number of ranks, nor on anything else of the layout: that is the reproducible mode.
struct ModelShare {
  int64_t num_shards = 1;
  int64_t tensor_parallel_size = 1;  ///< ranks that share the shards; divides num_shards
  int64_t tensor_parallel_rank = 0;
  /// Between the split tensors (norms, residual stream, dropout) a rank has a part of the tokens
  /// only (Korthikanti et al. 2022). Only in training.
  bool sequence_parallel = false;
  /// Every sum over shards, tokens or parts that a layout could cut is cut in the same way for all.
  bool reproducible = false;
  /// Regions of the flat arrays are padded to a multiple of it, to be dealt out evenly.
  int64_t flat_multiple = 1;

  int64_t num_local_shards() const { return num_shards / tensor_parallel_size; }
  int64_t first_shard() const { return tensor_parallel_rank * num_local_shards(); }
  bool is_split() const { return num_shards > 1; }

  /// Training batches must have a multiple of so many tokens.
  int64_t token_multiple() const {
    return reproducible ? num_shards : sequence_parallel ? tensor_parallel_size : 1;
  }

  /// Throws a kUsage Error that names what cannot be cut.
  void check(const TransformerConfig& model, int64_t padded_vocab_size) const;
};

/// The heads and features of one shard. Where there are fewer key/value heads than shards, each is
/// held by several neighbouring shards.
struct ShardSizes {
  ShardSizes(const TransformerConfig& model, int64_t padded_vocab_size, int64_t num_shards);

  int64_t num_heads, num_kv_heads, ffn_hidden_size, vocab_size;
  /// Gate and up projection alternate in the fused matrix block by block: SwiGLU reads both, and a
  /// core's prefetcher follows one short stream better than two long ones (1.8 times as fast).
  int64_t num_ffn_blocks, ffn_block_size;
  /// Of the fused projection of some tokens, as SwiGLU takes it.
  Shape gate_up_shape(int64_t num_tokens) const {
    return {num_tokens, num_ffn_blocks, 2, ffn_block_size};
  }
  int64_t kv_replicas;      ///< shards that hold the same key/value head
  int64_t group_size;       ///< query heads per key/value head
  int64_t attention_width;  ///< num_heads * head_dim
  int64_t qkv_width;        ///< (num_heads + 2 num_kv_heads) * head_dim
};

}  // namespace mirabelle
