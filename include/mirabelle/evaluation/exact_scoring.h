#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "mirabelle/core/stream.h"
#include "mirabelle/evaluation/recommender.h"
#include "mirabelle/model/batch_queue.h"
#include "mirabelle/tokenizer/semantic_id.h"

namespace mirabelle {

/// Scores every item of the catalogue by whole forward passes, as training runs them: no cache, no
/// search, nothing shared with BeamSearch but the model. One sequence (bos, history, the codes but
/// the last) per distinct prefix of num_levels - 1 codes and user: slow, for small catalogues, a
/// sample of users, and as the judge of the beam search.
class ExactScorer {
 public:
  /// `model` needs room for sequences of history_length items, bos and one item's codes; its
  /// batches are filled up with as many sequences as fit.
  ExactScorer(Transformer& model, const SemanticIds& ids, int64_t history_length,
              int64_t max_batch_tokens);

  /// [num_items] log-probabilities of the items' semantic IDs after this history.
  std::vector<double> scores(std::span<const int32_t> history, const Stream& stream);

  /// The best `list_length` items that are not excluded; ties as in BeamSearch.
  RankedLists rank(std::span<const RecommendationQuery> queries, int64_t list_length,
                   const Stream& stream);

 private:
  void score_batch(std::span<const int32_t> history_tokens, int64_t begin, int64_t end,
                   std::vector<double>& scores, const Stream& stream);

  Transformer& model_;
  const SemanticIds& ids_;
  int64_t history_length_, max_batch_tokens_;
  BatchQueue batches_;
  std::vector<int32_t> order_;         // SemanticIds::items_by_id
  std::vector<int64_t> prefix_begin_;  // into order_: items that share all codes but the last
};

}  // namespace mirabelle
