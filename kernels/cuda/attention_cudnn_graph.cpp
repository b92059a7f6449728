#include "cuda/attention_cudnn_graph.h"

#include <utility>

namespace mirabelle::backend {
namespace {

constexpr cudnnDataType_t kBf16 = CUDNN_DATA_BFLOAT16, kFloat = CUDNN_DATA_FLOAT,
                          kInt = CUDNN_DATA_INT32, kMask = CUDNN_DATA_BOOLEAN;

/// What both graphs have in common. Scores are [num_sequences, num_heads, queries, keys].
class AttentionGraph {
 public:
  explicit AttentionGraph(const AttentionShape& shape) : s_(shape) {}

  CudnnGraph forward() && {
    const CudnnTensor value = memory(kValueId, key_layout(), value_offsets_);
    const CudnnTensor score =
        causal(within_sequence(scaled_scores({query_lengths_, key_lengths_, {}, true})));
    const CudnnTensor maximum = per_query(), sum = per_query(), log = per_query();
    const CudnnTensor shifted = scores(), weight = scores(), probability = scores(kBf16);
    graph_.reduce(CUDNN_REDUCE_TENSOR_MAX, maximum, score);
    graph_.pointwise(CUDNN_POINTWISE_SUB, shifted, score, maximum);
    graph_.pointwise(CUDNN_POINTWISE_EXP, weight, shifted);
    graph_.reduce(CUDNN_REDUCE_TENSOR_ADD, sum, weight);
    graph_.pointwise(CUDNN_POINTWISE_LOG, log, sum);
    graph_.pointwise(CUDNN_POINTWISE_ADD, log_sum_, maximum, log);
    graph_.pointwise(CUDNN_POINTWISE_DIV, probability, weight, sum);
    graph_.matmul(out_, probability, value, {.m = query_lengths_, .k = key_lengths_});
    return std::move(graph_);
  }

  CudnnGraph backward() && {
    const CudnnTensor value_transposed = memory(kValueId, transposed(key_layout()), value_offsets_);
    const CudnnTensor grad_out = memory(kGradOutId, out_layout(), out_offsets_);

    // dots = sum of dO O over the features. The factor of 1 stands where dropout's would.
    const CudnnTensor products = graph_.intermediate(kFloat, by_head(s_.head_dim));
    const CudnnTensor row_sum = per_query();
    const CudnnTensor dots = graph_.memory(kDotsId, kFloat, by_head(1));
    graph_.pointwise(CUDNN_POINTWISE_MUL, products, grad_out, out_);
    graph_.reduce(CUDNN_REDUCE_TENSOR_ADD, row_sum, products);
    graph_.pointwise(CUDNN_POINTWISE_MUL, dots, row_sum, graph_.scalar(kOneId));

    // P = exp(S - log_sum);  dV = P^T dO
    const CudnnTensor score = scaled_scores({query_lengths_, key_lengths_, {}, false});
    const CudnnTensor shifted = scores(), probability = scores();
    graph_.pointwise(CUDNN_POINTWISE_SUB, shifted, score, log_sum_);
    graph_.pointwise(CUDNN_POINTWISE_EXP, probability, causal(within_sequence(shifted)));
    sum_over_queries(memory(kGradValueId, key_layout(), value_offsets_), probability, grad_out);

    // dP = dO V^T;  dS = scale P (dP - dots);  dK = dS^T Q
    const CudnnTensor grad_probability = scores(), centred = scores(), unscaled = scores();
    const CudnnTensor grad_score = scores();
    graph_.matmul(grad_probability, grad_out, value_transposed,
                  {.m = query_lengths_, .n = key_lengths_});
    graph_.pointwise(CUDNN_POINTWISE_SUB, centred, grad_probability, dots);
    graph_.pointwise(CUDNN_POINTWISE_MUL, unscaled, centred, probability);
    graph_.pointwise(CUDNN_POINTWISE_MUL, grad_score, unscaled, scale_);
    sum_over_queries(memory(kGradKeyId, key_layout(), key_offsets_), grad_score, query_);

    // dQ = dS K, first in float32
    const CudnnTensor key = graph_.intermediate(kBf16, key_layout(), key_offsets_);
    const CudnnTensor sum = graph_.memory(kGradQuerySumId, kFloat, by_head(s_.head_dim));
    graph_.reshape(key, key_transposed_);
    graph_.matmul(sum, grad_score, key, {.m = query_lengths_, .k = key_lengths_});
    graph_.pointwise(CUDNN_POINTWISE_IDENTITY, memory(kGradQueryId, query_layout(), query_offsets_),
                     sum);
    return std::move(graph_);
  }

 private:
  static CudnnLayout column(int64_t n) { return {{n, 1, 1, 1}, {1, 1, 1, 1}}; }
  /// [num_sequences, heads, tokens, width], packed: `stride` from token to token.
  CudnnLayout packed(int64_t heads, int64_t width, int64_t stride) const {
    return {{s_.num_sequences, heads, s_.max_sequence_tokens, width},
            {s_.max_sequence_tokens * stride, width, stride, 1}};
  }
  CudnnLayout query_layout() const { return packed(s_.num_heads, s_.head_dim, s_.qkv_stride()); }
  CudnnLayout key_layout() const { return packed(s_.num_kv_heads, s_.head_dim, s_.qkv_stride()); }
  CudnnLayout out_layout() const { return packed(s_.num_heads, s_.head_dim, s_.out_stride()); }
  /// [num_sequences, num_heads, tokens, width] without gaps.
  CudnnLayout by_head(int64_t width) const {
    const int64_t of_head = s_.max_sequence_tokens * width;
    return {{s_.num_sequences, s_.num_heads, s_.max_sequence_tokens, width},
            {s_.num_heads * of_head, of_head, width, 1}};
  }
  static CudnnLayout transposed(CudnnLayout layout) {
    std::swap(layout.dims[2], layout.dims[3]);
    std::swap(layout.strides[2], layout.strides[3]);
    return layout;
  }
  CudnnTensor scores(cudnnDataType_t type = kFloat) {
    return graph_.intermediate(type, by_head(s_.max_sequence_tokens));
  }
  CudnnTensor per_query() { return graph_.intermediate(kFloat, by_head(1)); }

  CudnnTensor integers(int64_t id, int64_t n) { return graph_.memory(id, kInt, column(n)); }
  CudnnTensor memory(int64_t id, const CudnnLayout& layout, CudnnTensor offsets) {
    return graph_.memory(id, kBf16, layout, offsets);
  }

  /// scale Q K^T
  CudnnTensor scaled_scores(const CudnnGraph::MatmulSizes& sizes) {
    const CudnnTensor score = scores(), scaled = scores();
    graph_.matmul(score, query_, key_transposed_, sizes);
    graph_.pointwise(CUDNN_POINTWISE_MUL, scaled, score, scale_);
    return scaled;
  }
  /// -infinity where there is no such query or no such key.
  CudnnTensor within_sequence(CudnnTensor score) {
    const CudnnTensor row = scores(kInt), column = scores(kInt);
    const CudnnTensor has_row = scores(kMask), has_column = scores(kMask), has_both = scores(kMask);
    graph_.index(row, score, 2);
    graph_.index(column, score, 3);
    graph_.pointwise(CUDNN_POINTWISE_CMP_LT, has_row, row, query_lengths_);
    graph_.pointwise(CUDNN_POINTWISE_CMP_LT, has_column, column, key_lengths_);
    graph_.pointwise(CUDNN_POINTWISE_LOGICAL_AND, has_both, has_row, has_column);
    return masked(score, has_both);
  }
  /// -infinity where the key comes after the query.
  CudnnTensor causal(CudnnTensor score) {
    const CudnnTensor row = scores(kInt), column = scores(kInt), sees = scores(kMask);
    graph_.index(row, score, 2);
    graph_.index(column, score, 3);
    graph_.pointwise(CUDNN_POINTWISE_CMP_GE, sees, row, column);
    return masked(score, sees);
  }
  CudnnTensor masked(CudnnTensor score, CudnnTensor mask) {
    const CudnnTensor result = scores();
    graph_.select(result, mask, score, minus_infinity_);
    return result;
  }
  /// grad = weight^T x, and the sum of that over the query heads of each key head.
  void sum_over_queries(CudnnTensor grad, CudnnTensor weight, CudnnTensor x) {
    const CudnnTensor weight_transposed =
        graph_.intermediate(kBf16, transposed(by_head(s_.max_sequence_tokens)));
    graph_.reshape(weight_transposed, weight);
    const CudnnGraph::MatmulSizes sizes = {.m = key_lengths_, .k = query_lengths_};
    if (s_.num_heads == s_.num_kv_heads) return graph_.matmul(grad, weight_transposed, x, sizes);
    const CudnnTensor of_query_heads = graph_.intermediate(kBf16, by_head(s_.head_dim));
    graph_.matmul(of_query_heads, weight_transposed, x, sizes);
    graph_.reduce(CUDNN_REDUCE_TENSOR_ADD, grad, of_query_heads);
  }

  const AttentionShape s_;
  CudnnGraph graph_;
  const CudnnTensor query_lengths_ = integers(kQueryLengthsId, s_.num_sequences),
                    key_lengths_ = integers(kKeyLengthsId, s_.num_sequences),
                    query_offsets_ = integers(kQueryOffsetsId, s_.num_sequences + 1),
                    key_offsets_ = integers(kKeyOffsetsId, s_.num_sequences + 1),
                    value_offsets_ = integers(kValueOffsetsId, s_.num_sequences + 1),
                    out_offsets_ = integers(kOutOffsetsId, s_.num_sequences + 1),
                    log_sum_offsets_ = integers(kLogSumOffsetsId, s_.num_sequences + 1),
                    query_ = memory(kQueryId, query_layout(), query_offsets_),
                    key_transposed_ = memory(kKeyId, transposed(key_layout()), key_offsets_),
                    out_ = memory(kOutId, out_layout(), out_offsets_),
                    log_sum_ = graph_.memory(
                        kLogSumId, kFloat, packed(s_.num_heads, 1, s_.num_heads), log_sum_offsets_),
                    scale_ = graph_.scalar(kScaleId),
                    minus_infinity_ = graph_.scalar(kMinusInfinityId);
};

}  // namespace

CudnnGraph attention_graph(AttentionPass pass, const AttentionShape& shape) {
  AttentionGraph graph(shape);
  return pass == AttentionPass::kForward ? std::move(graph).forward() : std::move(graph).backward();
}

}  // namespace mirabelle::backend
