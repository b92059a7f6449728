#pragma once

#include <compare>
#include <cstdint>

#include "cuda/cudnn_graph.h"

namespace mirabelle::backend {

// Causal attention of packed sequences (attention.h) as graphs for cuDNN: operands in bfloat16,
// log_sum, sums and the softmax in float32. The engines know attention by the form of its graph, so
// each operation stands where they look for it.

/// What a graph is made for. A batch may have fewer sequences (the others are empty) and shorter
/// ones.
struct AttentionShape {
  int64_t num_sequences, max_sequence_tokens, num_heads, num_kv_heads, head_dim;

  int64_t qkv_stride() const { return (num_heads + 2 * num_kv_heads) * head_dim; }
  int64_t first_key() const { return num_heads * head_dim; }
  int64_t first_value() const { return (num_heads + num_kv_heads) * head_dim; }
  int64_t out_stride() const { return num_heads * head_dim; }
  auto operator<=>(const AttentionShape&) const = default;
};

/// The ids of what is bound when a plan runs. Each operand has lengths and offsets of its own, as
/// engines expect it, though ours are often the same arrays.
enum AttentionId : int64_t {
  kQueryId = 1,
  kKeyId,
  kValueId,
  kOutId,
  kLogSumId,
  kQueryLengthsId,  // [num_sequences] int32: tokens of each sequence
  kKeyLengthsId,
  kQueryOffsetsId,  // [num_sequences + 1] int32: where the operand's sequences begin, in elements
  kKeyOffsetsId,
  kValueOffsetsId,
  kOutOffsetsId,
  kLogSumOffsetsId,
  kScaleId,          // scalars: the scale,
  kMinusInfinityId,  // -infinity
  kOneId,            // and 1
  kGradOutId,
  kGradQueryId,
  kGradKeyId,
  kGradValueId,
  kDotsId,          // scratch [num_sequences, num_heads, max_sequence_tokens] float32
  kGradQuerySumId,  // scratch [num_sequences, num_heads, max_sequence_tokens, head_dim] float32,
                    // zeros: newer versions of cuDNN may clear it themselves, no GPU has shown us
};

enum class AttentionPass { kForward, kBackward };
CudnnGraph attention_graph(AttentionPass pass, const AttentionShape& shape);

}  // namespace mirabelle::backend
