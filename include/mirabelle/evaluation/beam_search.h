#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "mirabelle/core/stream.h"
#include "mirabelle/evaluation/recommender.h"
#include "mirabelle/model/decoder.h"
#include "mirabelle/tokenizer/semantic_id.h"

namespace mirabelle {

/// Beam search over the semantic IDs that exist. A beam's score is the sum of its tokens'
/// log-probabilities under a softmax over the whole vocabulary, in float64: the trie only forbids,
/// it never renormalises. Of equal scores the lexicographically lower codes win, at every level.
///
/// A prefix below which every item is excluded is dropped at once, so no beam ends on an excluded
/// item and a list is short of `beam_size` only if the catalogue is. A beam as wide as the
/// catalogue ranks all items exactly.
class BeamSearch {
 public:
  struct Limits {
    int64_t beam_size = 50;
    int64_t batch_users = 32;     ///< decoded together; any number of queries can be asked
    int64_t history_length = 20;  ///< newest items of a query's history that the model sees
  };
  /// `model` and `ids` must outlive this. Throws unless the model has the vocabulary of `ids` and
  /// room for bos, history_length items and one item's codes.
  BeamSearch(const Transformer& model, const SemanticIds& ids, const Limits& limits);

  RankedLists search(std::span<const RecommendationQuery> queries, const Stream& stream);

 private:
  /// The beams of all users of a batch after some levels; a user's are in the order of their codes.
  struct Beams {
    std::vector<int32_t> offsets;  // [num_users + 1]
    std::vector<int64_t> nodes;    // [num_beams] in the trie
    std::vector<double> scores;    // [num_beams]
    std::vector<int32_t> tokens;   // [num_beams, num_levels], the first `depth` of each row are set
    std::vector<int32_t> parents;  // [num_beams] row of the level before
  };
  /// Every allowed child of every beam, in the order of codes.
  struct Candidates {
    std::vector<int32_t> offsets;  // [num_users + 1]
    std::vector<double> scores;    // [num_candidates], -infinity if excluded
    std::vector<int64_t> nodes;    // [num_candidates]
    std::vector<int32_t> tokens, parents;
  };

  void search_batch(std::span<const RecommendationQuery> queries, RankedLists& out,
                    const Stream& stream);
  TensorView prefill(std::span<const RecommendationQuery> queries, const Stream& stream);
  TensorView step(const Beams& beams, int64_t depth, const Stream& stream);
  void expand(Candidates& candidates, const Beams& beams, int64_t depth,
              const TensorView& log_probabilities,
              std::span<const RecommendationQuery> queries) const;
  Beams select(const Candidates& candidates, const Beams& beams, int64_t depth) const;
  std::vector<int64_t> excluded_children(std::span<const int32_t> excluded, int64_t depth) const;
  void append_lists(const Beams& beams, std::span<const RecommendationQuery> queries,
                    RankedLists& out) const;

  const SemanticIds& ids_;
  Limits limits_;
  SemanticIdTrie trie_;
  std::vector<int64_t> path_;  // [num_items, num_levels]: node at depth 1, 2, ..
  std::vector<std::vector<int64_t>> items_below_;  // by depth, [num_nodes(depth)]
  Decoder decoder_;
  Buffer host_log_probabilities_;
};

/// How many tokens the longest sequence of a search has.
inline int64_t max_search_tokens(const SemanticIds& ids, int64_t history_length) {
  return 1 + (history_length + 1) * ids.num_levels();
}

}  // namespace mirabelle
