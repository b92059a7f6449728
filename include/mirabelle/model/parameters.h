#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "mirabelle/core/buffer.h"
#include "mirabelle/model/model_share.h"
#include "mirabelle/model/transformer_config.h"

namespace mirabelle {

/// A rectangle of a logical tensor and where it is stored. Checkpoints speak of logical tensors
/// (the names and shapes of Hugging Face's Llama), storage is fused and holds one rank's share;
/// pieces join the two.
struct LogicalPiece {
  std::string name;       ///< e.g. "model.layers.0.self_attn.q_proj.weight"
  Shape shape;            ///< of the whole logical tensor: [rows, columns] or [rows]
  int64_t row_begin = 0;  ///< this piece: rows [row_begin, row_begin + num_rows) ...
  int64_t num_rows = 0;
  int64_t column_begin = 0;  ///< ... and columns [column_begin, column_begin + num_columns)
  int64_t num_columns = 0;   ///< 1 if the tensor has one axis
  int64_t offset = 0;        ///< of its first element in the flat storage; row-major from there
  /// Of the shards and ranks that hold this rectangle the first: the one that is stored in
  /// checkpoints and counted in norms.
  bool is_primary = true;

  int64_t num_elements() const { return num_rows * num_columns; }
};

/// A logical tensor as a whole.
struct LogicalTensor {
  std::string name;
  Shape shape;
};

/// Elements [begin, end) of a flat array.
struct FlatRange {
  int64_t begin = 0, end = 0;
  int64_t size() const { return end - begin; }
  bool operator==(const FlatRange&) const = default;
};

/// Neighbouring matrices of one shape in a flat array.
struct MatrixBatch {
  int64_t offset = 0, count = 0, rows = 0, columns = 0;
  Shape shape() const { return {count, rows, columns}; }
  FlatRange range() const { return {offset, offset + shape().num_elements()}; }
};

/// Where every parameter of a rank's share stands in one flat array: matrices first, in the order
/// of the forward pass, then the norms' weights and the biases, so that the optimizer decays a
/// prefix and the gradients of later layers are final first. S local shards, sizes of ShardSizes:
///
///   region 0      embedding        [S, vocab_size, hidden_size]      also the head if tied
///   regions 1..L  qkv              [S, num_kv_heads, group_size + 2, head_dim, hidden_size]
///                 attention_output [S, hidden_size, attention_width]
///                 gate_up          [S, num_ffn_blocks, 2, ffn_block_size, hidden_size]
///                 down             [S, hidden_size, ffn_hidden_size]
///   then          head             [S, vocab_size, hidden_size]      unless tied
///   the last      norms            [2 * num_layers + 1, hidden_size] attention, feed-forward, ...,
///                                                                    final; the same on all ranks
///                 head_norms       [num_layers, 2, head_dim]         of queries, of keys; the same
///                                                                    on all; if query_key_norm
///                 qkv_biases       [num_layers, S, num_kv_heads, group_size + 2, head_dim]
///                                                                    if qkv_bias
///
/// Every region is padded to share.flat_multiple with elements that stay 0.
class ParameterLayout {
 public:
  ParameterLayout(const TransformerConfig& config, int64_t padded_vocab_size,
                  const ModelShare& share = {});

  struct Layer {
    int64_t qkv, attention_output, gate_up, down;  ///< offsets
  };
  const ModelShare& share() const { return share_; }
  const ShardSizes& sizes() const { return sizes_; }
  int64_t num_elements() const { return regions_.back().end; }
  int64_t num_matrix_elements() const { return norms(); }  ///< the decayed prefix
  int64_t embedding() const { return 0; }
  int64_t head() const { return head_; }
  int64_t norms() const { return regions_.back().begin; }
  int64_t head_norms() const { return head_norms_; }
  int64_t qkv_biases() const { return qkv_biases_; }
  const std::vector<Layer>& layers() const { return layers_; }

  /// Parts of the flat array that are used, and whose gradients are final, at one time; together
  /// they are all of it.
  const std::vector<FlatRange>& regions() const { return regions_; }
  int64_t layer_region(int64_t layer) const { return 1 + layer; }
  bool is_layer_region(int64_t region) const {
    return 0 < region && region <= static_cast<int64_t>(layers_.size());
  }
  int64_t head_region() const { return head_region_; }  ///< that of the embedding if tied
  int64_t norm_region() const { return static_cast<int64_t>(regions_.size()) - 1; }

  /// The matrices of a layer, shard by shard: query, key and value projection of every head, so
  /// that copies of a key/value head are the same matrix wherever they are; then attention_output,
  /// gate_up and down as they are stored.
  std::vector<MatrixBatch> layer_matrices(int64_t layer) const;

  /// Every logical tensor of which this rank holds something, cut in pieces; those of a tensor
  /// follow each other.
  std::vector<LogicalPiece> pieces() const;
  /// The logical tensors of which this rank holds something, in the order of pieces().
  std::vector<LogicalTensor> logical_tensors() const;
  /// What of the flat array is primary, ascending: everything but copies and padding at the ends
  /// of regions (padding between is 0 and may be in).
  std::vector<FlatRange> primary_ranges() const;
  /// Parameters of the whole model, each counted once.
  int64_t num_model_parameters() const;

 private:
  void add_matrix_pieces(int64_t layer, std::vector<LogicalPiece>& pieces) const;
  void add_vector_pieces(int64_t layer, std::vector<LogicalPiece>& pieces) const;
  void add_head_pieces(int64_t layer, const char* name_end, int64_t offset, int64_t width,
                       std::vector<LogicalPiece>& pieces) const;

  TransformerConfig config_;
  int64_t padded_vocab_size_;
  ModelShare share_;
  ShardSizes sizes_;
  int64_t head_ = 0, head_region_ = 0, head_norms_ = 0, qkv_biases_ = 0;
  std::vector<Layer> layers_;
  std::vector<FlatRange> regions_;
};

/// Whether the rows of a logical tensor are tokens: those of the embedding and of the head.
bool is_vocabulary_tensor(const std::string& name);

/// Named views of flat memory in this layout: of the weights, or of their gradients.
struct TransformerTensors {
  struct Layer {
    TensorView qkv;               ///< [S, qkv_width, hidden_size]
    TensorView attention_output;  ///< [S, hidden_size, attention_width]
    TensorView gate_up;           ///< [S, 2 * ffn_hidden_size, hidden_size]
    TensorView down;              ///< [S, hidden_size, ffn_hidden_size]
    TensorView attention_norm;    ///< [hidden_size]
    TensorView ffn_norm;          ///< [hidden_size]
    TensorView head_norms;        ///< [2, head_dim]; absent without query_key_norm
    TensorView qkv_bias;          ///< [S, qkv_width]; absent without qkv_bias
  };
  TensorView embedding;          ///< [rows, hidden_size]: rows that exist, of all local shards
  std::vector<TensorView> head;  ///< of each local shard [rows that exist, hidden_size]
  TensorView norms;              ///< [2 * num_layers + 1, hidden_size]
  TensorView final_norm;         ///< [hidden_size], the last of them
  TensorView head_norms;         ///< [num_layers, 2, head_dim], or absent
  std::vector<Layer> layers;
};
/// The regions of a flat array.
std::vector<TensorView> view_regions(const TensorView& flat, const ParameterLayout& layout);
/// `regions`: the memory of each region of the layout.
TransformerTensors view_tensors(const std::vector<TensorView>& regions,
                                const ParameterLayout& layout, const TransformerConfig& config,
                                int64_t vocab_size);

/// The first token of a rank's share of the vocabulary, or of a local shard.
int64_t first_token(const ParameterLayout& layout, int64_t local_shard = 0);

/// Fills the weights: norms with 1; biases and rows beyond the `vocab_size` tokens that exist with
/// 0; matrices with normal numbers of deviation initializer_range, divided by sqrt(2 num_layers)
/// for the two projections that write to the residual stream (Radford et al. 2019). Element (r, c)
/// of a logical tensor depends on (seed, name, r, c) only. `token_rows` [vocab_size, hidden_size]
/// may be empty; those of its rows that are not 0, times initializer_range, take the place of
/// random ones in embedding and head.
void initialize_weights(const TensorView& flat, const ParameterLayout& layout,
                        const TransformerConfig& config, int64_t vocab_size, uint64_t seed,
                        std::span<const float> token_rows = {});

}  // namespace mirabelle
