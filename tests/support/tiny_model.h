#pragma once

#include <numeric>
#include <vector>

#include "mirabelle/core/random.h"
#include "mirabelle/model/transformer.h"

namespace mirabelle::testing {

inline TransformerConfig tiny_config() {
  TransformerConfig config;
  config.hidden_size = 24;
  config.num_layers = 2;
  config.num_heads = 4;
  config.num_kv_heads = 4;
  config.ffn_hidden_size = 40;
  config.dropout = 0;
  config.initializer_range = 0.2;  // large enough that every part of the model matters
  return config;
}

/// The same with all that the Qwen families have besides.
inline TransformerConfig tiny_qwen_config() {
  TransformerConfig config = tiny_config();
  config.explicit_head_dim = 10;
  config.qkv_bias = config.query_key_norm = true;
  return config;
}

/// Moves norms and biases away from 1 and 0, by name and element.
template <typename T>
void vary_vectors(T* weights, const ParameterLayout& layout) {
  for (const LogicalPiece& piece : layout.pieces()) {
    if (piece.shape.rank() > 1) continue;
    const uint64_t key = random_key(4, "vary " + piece.name);
    for (int64_t i = 0; i < piece.num_rows; ++i) {
      weights[piece.offset + i] += static_cast<T>(0.2 * random_normal(key, piece.row_begin + i));
    }
  }
}

inline Transformer make_tiny_model(const TransformerConfig& config, int64_t vocab_size, DType dtype,
                                   int64_t max_tokens = 100) {
  Transformer model(config, vocab_size, (vocab_size + 31) / 32 * 32, dtype,
                    {max_tokens, max_tokens, /*training=*/true});
  initialize_weights(model.weights(), model.layout(), config, model.vocab_size(), 9);
  return model;
}

/// Sequences of random tokens, each to be predicted from those before it.
struct TinyBatch {
  TinyBatch(const std::vector<int64_t>& lengths, int64_t vocab_size, uint64_t seed) {
    Random random(random_key(seed, "tiny batch"));
    for (int64_t length : lengths) {
      std::vector<int32_t> sequence;
      for (int64_t i = 0; i < length + 1; ++i) {
        sequence.push_back(static_cast<int32_t>(random.below(vocab_size)));
      }
      append(sequence, static_cast<int32_t>(offsets.size()) - 1);
    }
  }
  /// One sequence without targets.
  explicit TinyBatch(std::vector<int32_t> sequence) {
    sequence.push_back(-1);
    append(sequence, 0);
  }

  /// Sequence i by itself, under the number that it has in this batch.
  TinyBatch sequence(int64_t i) const {
    std::vector<int32_t> values(tokens.begin() + offsets[i], tokens.begin() + offsets[i + 1]);
    values.push_back(targets[offsets[i + 1] - 1]);
    TinyBatch alone;
    alone.append(values, static_cast<int32_t>(i));
    return alone;
  }

  PackedBatch view() const {
    return {view_of(tokens), view_of(targets), view_of(positions), view_of(sequence_ids),
            view_of(offsets)};
  }

  std::vector<int32_t> tokens, targets, positions, sequence_ids, offsets = {0};

 private:
  TinyBatch() = default;
  void append(const std::vector<int32_t>& sequence, int32_t id) {
    for (size_t i = 0; i + 1 < sequence.size(); ++i) {
      tokens.push_back(sequence[i]);
      targets.push_back(sequence[i + 1]);
      positions.push_back(static_cast<int32_t>(i));
      sequence_ids.push_back(id);
    }
    offsets.push_back(static_cast<int32_t>(tokens.size()));
  }
};

}  // namespace mirabelle::testing
