#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "mirabelle/core/stream.h"
#include "mirabelle/evaluation/recommender.h"
#include "mirabelle/kernels/beam.h"
#include "mirabelle/model/decoder.h"
#include "mirabelle/tokenizer/semantic_id.h"

namespace mirabelle {

/// Beam search over the semantic IDs that exist. A beam's score is the sum of its tokens'
/// log-probabilities under a softmax over the whole vocabulary, in float64: the trie only forbids,
/// it never renormalises. Of equal scores the lexicographically lower codes win, at every level.
///
/// A beam ends on an ID and stands for all its items that are not excluded, by priority; a list is
/// cut to `beam_size` items. A prefix below which every item is excluded is dropped at once, so no
/// beam ends without an item and a list is short only if the catalogue is. A beam as wide as the
/// catalogue ranks all items exactly.
///
/// A batch is decoded on the model's device from its first token to its last: the host prepares it
/// and reads the lists at the end, and waits for nothing in between. Memory is allocated by the
/// constructor, but for the excluded items of batches that have more than those before.
class BeamSearch {
 public:
  struct Limits {
    int64_t beam_size = 50;
    int64_t batch_users = 32;     ///< decoded together; any number of queries can be asked
    int64_t history_length = 20;  ///< newest items of a query's history that the model sees
  };
  /// `model` and `ids` must outlive this. Throws unless the model has the vocabulary of `ids` and
  /// room for bos, history_length items and one item's codes; on a GPU there can be at most
  /// kMaxTopKOnCuda beams.
  BeamSearch(const Transformer& model, const SemanticIds& ids, const Limits& limits);

  /// About what that allocates on the model's device; `model` may be a sketch.
  static int64_t planned_bytes(const Transformer& model, const SemanticIds& ids,
                               const Limits& limits);

  RankedLists search(std::span<const RecommendationQuery> queries, const Stream& stream);

 private:
  /// From one depth of the tree to the next, for all users.
  struct Level {
    Buffer first_child, child_tokens;  // a TrieLevel
    int64_t width = 0;                 // beams of a user after it
    int64_t max_candidates = 0;        // of a user
  };
  /// Of a batch at one depth, [num_users, width] int32 each: nodes of the tree, the tokens that
  /// lead to them, and the rows of the depth before that they continue. The root has only a node.
  struct BeamRows {
    TensorView nodes, tokens, parents;
  };

  void index_items();
  void make_levels(Device device);
  int64_t width(int64_t depth) const { return depth == 0 ? 1 : levels_[depth - 1].width; }
  TensorView beam_scores(int64_t depth, int64_t num_users) const;
  BeamRows beam_rows(const TensorView& all, int64_t depth, int64_t num_users) const;

  void search_batch(std::span<const RecommendationQuery> queries, RankedLists& out,
                    const Stream& stream);
  std::vector<ExcludedNodes> upload_excluded(std::span<const RecommendationQuery> queries,
                                             const Stream& stream);
  std::vector<int32_t> excluded_children(std::span<const int32_t> excluded, int64_t depth) const;
  TensorView prefill(std::span<const RecommendationQuery> queries, const Stream& stream);
  void advance(int64_t depth, int64_t num_users, const TensorView& log_probabilities,
               const ExcludedNodes& excluded, const Stream& stream);
  void append_lists(std::span<const RecommendationQuery> queries, RankedLists& out,
                    const Stream& stream);

  const SemanticIds& ids_;
  Limits limits_;
  SemanticIdTrie trie_;
  std::vector<int32_t> path_;  // [num_items, num_levels]: node at depth 1, 2, ..
  std::vector<std::vector<int32_t>> items_below_;  // by depth, [num_nodes(depth)]
  Decoder decoder_;

  // On the model's device. What belongs to beams is kept for all depths.
  std::vector<Level> levels_;
  Buffer beam_scores_;  // [num_levels + 1, max_beams] float64
  Buffer beam_rows_;    // [3 * (num_levels + 1), max_beams] int32: BeamRows
  Buffer chosen_;       // [max_beams] int32: among the candidates
  Buffer candidate_scores_, candidate_sizes_, candidate_offsets_;  // BeamCandidates of a depth
  Buffer not_finite_;
  Buffer excluded_;

  Buffer host_scores_, host_rows_, host_not_finite_;  // copies, where the host cannot read those
};

/// How many tokens the longest sequence of a search has.
inline int64_t max_search_tokens(const SemanticIds& ids, int64_t history_length) {
  return 1 + (history_length + 1) * ids.num_levels();
}

}  // namespace mirabelle
