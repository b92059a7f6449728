#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "mirabelle/core/buffer.h"
#include "mirabelle/model/transformer_config.h"

namespace mirabelle {

/// A rectangle of a logical tensor and where it is stored. Checkpoints speak of logical tensors
/// (the names and shapes of Hugging Face's Llama), storage is fused so that a tensor-parallel
/// rank's share is contiguous; pieces join the two.
struct LogicalPiece {
  std::string name;       ///< e.g. "model.layers.0.self_attn.q_proj.weight"
  Shape shape;            ///< of the whole logical tensor: [rows, columns] or [rows]
  int64_t row_begin = 0;  ///< this piece: rows [row_begin, row_begin + num_rows), all columns
  int64_t num_rows = 0;
  int64_t offset = 0;  ///< of its first element in the flat storage; contiguous from there
};

/// Where every parameter stands in one flat array: matrices first, in the order of the forward
/// pass, then the norms' weights, so that the optimizer decays a prefix and the gradients of later
/// layers are final from the end of the prefix to its start.
///
///   embedding            [padded_vocab_size, hidden_size]     also the output head if tied
///   per layer: qkv       [num_kv_heads, group_size + 2, head_dim, hidden_size]
///              attention_output [hidden_size, hidden_size]
///              gate_up   [num_ffn_blocks, 2, ffn_block_size, hidden_size]
///              down      [hidden_size, ffn_hidden_size]
///   head                 [padded_vocab_size, hidden_size]     unless tied
///   norms                [2 * num_layers + 1, hidden_size]    attention, feed-forward, ..., final
class ParameterLayout {
 public:
  ParameterLayout(const TransformerConfig& config, int64_t padded_vocab_size);

  struct Layer {
    int64_t qkv, attention_output, gate_up, down;  ///< offsets
  };
  int64_t num_elements() const { return num_elements_; }
  int64_t num_matrix_elements() const { return norms_; }  ///< the decayed prefix
  int64_t embedding() const { return 0; }
  int64_t head() const { return head_; }
  int64_t norms() const { return norms_; }
  const std::vector<Layer>& layers() const { return layers_; }
  int64_t num_ffn_blocks() const { return num_ffn_blocks_; }

  /// Every logical tensor, cut in pieces; the pieces of a tensor follow each other in row order.
  std::vector<LogicalPiece> pieces() const;

 private:
  TransformerConfig config_;
  int64_t padded_vocab_size_;
  int64_t num_ffn_blocks_;
  int64_t head_ = 0, norms_ = 0, num_elements_ = 0;
  std::vector<Layer> layers_;
};

/// Named views of a flat array in this layout: of the weights, or of their gradients.
struct TransformerTensors {
  struct Layer {
    TensorView qkv;               ///< [(num_heads + 2 num_kv_heads) * head_dim, hidden_size]
    TensorView attention_output;  ///< [hidden_size, hidden_size]
    TensorView gate_up;           ///< [2 * ffn_hidden_size, hidden_size]
    TensorView down;              ///< [hidden_size, ffn_hidden_size]
    TensorView attention_norm;    ///< [hidden_size]
    TensorView ffn_norm;          ///< [hidden_size]
  };
  TensorView embedding;   ///< [vocab_size, hidden_size]: the rows that exist, without the padding
  TensorView head;        ///< the same; equal to embedding if tied
  TensorView final_norm;  ///< [hidden_size]
  std::vector<Layer> layers;
};
TransformerTensors view_tensors(const TensorView& flat, const ParameterLayout& layout,
                                const TransformerConfig& config, int64_t vocab_size);

/// Fills the weights: norms with 1; matrices with normal numbers of deviation initializer_range,
/// divided by sqrt(2 num_layers) for the two projections that write to the residual stream (Radford
/// et al. 2019). Element (r, c) of a logical tensor depends on (seed, name, r, c) only.
void initialize_weights(const TensorView& flat, const ParameterLayout& layout,
                        const TransformerConfig& config, uint64_t seed);

}  // namespace mirabelle
