#include "mirabelle/evaluation/beam_search.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <unordered_set>

#include "mirabelle/core/copy.h"
#include "mirabelle/core/dispatch.h"
#include "mirabelle/core/error.h"
#include "mirabelle/kernels/top_k.h"

namespace mirabelle {
namespace {

constexpr double kExcluded = -std::numeric_limits<double>::infinity();

Decoder::Limits decoder_limits(const SemanticIds& ids, const BeamSearch::Limits& limits) {
  const int64_t beams = std::min(limits.beam_size, ids.num_items());
  return {.max_prefix_tokens = limits.batch_users * (1 + limits.history_length * ids.num_levels()),
          .max_sequence_tokens = max_search_tokens(ids, limits.history_length),
          .max_users = limits.batch_users,
          .max_beams = limits.batch_users * beams,
          .max_steps = ids.num_levels() - 1};
}

const Transformer& checked(const Transformer& model, const SemanticIds& ids,
                           const BeamSearch::Limits& limits) {
  MIRABELLE_CHECK_USAGE(limits.beam_size > 0 && limits.batch_users > 0 && limits.history_length > 0,
                        "beam size, batch and history length must be positive, they are ",
                        limits.beam_size, ", ", limits.batch_users, ", ", limits.history_length);
  MIRABELLE_CHECK_DATA(model.vocab_size() == ids.vocab_size(), "the model has ", model.vocab_size(),
                       " tokens, the tokenizer ", ids.vocab_size());
  return model;
}

}  // namespace

BeamSearch::BeamSearch(const Transformer& model, const SemanticIds& ids, const Limits& limits)
    : ids_(ids),
      limits_(limits),
      trie_(ids),
      path_(ids.num_items() * ids.num_levels()),
      decoder_(checked(model, ids, limits), decoder_limits(ids, limits)) {
  const int64_t num_levels = ids.num_levels();
  std::vector<std::vector<int64_t>> parent(num_levels + 1);
  for (int64_t depth = 0; depth < num_levels; ++depth) {
    parent[depth + 1].resize(trie_.num_nodes(depth + 1));
    for (int64_t node = 0; node < trie_.num_nodes(depth); ++node) {
      const SemanticIdTrie::Children children = trie_.children(depth, node);
      std::fill_n(parent[depth + 1].begin() + children.first_node, children.tokens.size(), node);
    }
  }
  items_below_.resize(num_levels + 1);
  for (int64_t depth = 0; depth <= num_levels; ++depth) {
    items_below_[depth].resize(trie_.num_nodes(depth));
  }
  for (int64_t leaf = 0; leaf < ids.num_items(); ++leaf) {
    int64_t node = leaf;
    for (int64_t depth = num_levels; depth > 0; --depth) {
      path_[trie_.item(leaf) * num_levels + depth - 1] = node;
      ++items_below_[depth][node];
      node = parent[depth][node];
    }
  }
}

RankedLists BeamSearch::search(std::span<const RecommendationQuery> queries, const Stream& stream) {
  RankedLists lists;
  for (size_t begin = 0; begin < queries.size(); begin += limits_.batch_users) {
    const size_t size = std::min<size_t>(limits_.batch_users, queries.size() - begin);
    search_batch(queries.subspan(begin, size), lists, stream);
  }
  return lists;
}

void BeamSearch::search_batch(std::span<const RecommendationQuery> queries, RankedLists& out,
                              const Stream& stream) {
  // Before the first level every user has one beam, the root.
  Beams beams;
  beams.offsets.resize(queries.size() + 1);
  std::iota(beams.offsets.begin(), beams.offsets.end(), 0);
  beams.nodes.assign(queries.size(), 0);
  beams.scores.assign(queries.size(), 0);
  beams.tokens.assign(queries.size() * ids_.num_levels(), 0);
  Candidates candidates;
  for (int64_t depth = 0; depth < ids_.num_levels(); ++depth) {
    const TensorView log_probabilities =
        depth == 0 ? prefill(queries, stream) : step(beams, depth, stream);
    expand(candidates, beams, depth, on_host(log_probabilities, host_log_probabilities_, stream),
           queries);
    beams = select(candidates, beams, depth);
  }
  append_lists(beams, queries, out);
}

TensorView BeamSearch::prefill(std::span<const RecommendationQuery> queries, const Stream& stream) {
  std::vector<int32_t> tokens, offsets{0};
  for (const RecommendationQuery& query : queries) {
    tokens.push_back(ids_.bos_token());
    const size_t length = std::min<size_t>(query.history.size(), limits_.history_length);
    for (int32_t item : query.history.last(length)) {
      MIRABELLE_CHECK(item >= 0 && item < ids_.num_items(), "a history has item ", item, " of ",
                      ids_.num_items());
      for (int64_t level = 0; level < ids_.num_levels(); ++level) {
        tokens.push_back(ids_.token(item, level));
      }
    }
    offsets.push_back(static_cast<int32_t>(tokens.size()));
  }
  return decoder_.prefill(tokens, offsets, stream);
}

TensorView BeamSearch::step(const Beams& beams, int64_t depth, const Stream& stream) {
  std::vector<int32_t> newest(beams.nodes.size());
  for (size_t row = 0; row < newest.size(); ++row) {
    newest[row] = beams.tokens[row * ids_.num_levels() + depth - 1];
  }
  return decoder_.step(newest, beams.parents, beams.offsets, stream);
}

/// The nodes of depth `depth` + 1 below which there are only excluded items, ascending.
std::vector<int64_t> BeamSearch::excluded_children(std::span<const int32_t> excluded,
                                                   int64_t depth) const {
  std::vector<int64_t> nodes, full;
  for (int32_t item : excluded) nodes.push_back(path_[item * ids_.num_levels() + depth]);
  std::sort(nodes.begin(), nodes.end());
  for (size_t i = 0; i < nodes.size();) {
    const size_t begin = i;
    while (i < nodes.size() && nodes[i] == nodes[begin]) ++i;
    if (static_cast<int64_t>(i - begin) == items_below_[depth + 1][nodes[begin]]) {
      full.push_back(nodes[begin]);
    }
  }
  return full;
}

void BeamSearch::expand(Candidates& candidates, const Beams& beams, int64_t depth,
                        const TensorView& log_probabilities,
                        std::span<const RecommendationQuery> queries) const {
  const int64_t num_users = static_cast<int64_t>(queries.size());
  std::vector<int64_t> first_candidate(beams.nodes.size() + 1, 0);
  for (size_t row = 0; row < beams.nodes.size(); ++row) {
    const size_t num_children = trie_.children(depth, beams.nodes[row]).tokens.size();
    first_candidate[row + 1] = first_candidate[row] + static_cast<int64_t>(num_children);
  }
  const int64_t total = first_candidate.back();
  MIRABELLE_CHECK(total <= std::numeric_limits<int32_t>::max(), total,
                  " candidates in one batch; lower evaluation.batch_users");
  candidates.scores.resize(total);
  candidates.nodes.resize(total);
  candidates.tokens.resize(total);
  candidates.parents.resize(total);
  candidates.offsets.resize(num_users + 1);
  for (int64_t user = 0; user <= num_users; ++user) {
    candidates.offsets[user] = static_cast<int32_t>(first_candidate[beams.offsets[user]]);
  }

  const int64_t vocab_size = ids_.vocab_size();
  bool all_finite = true;
  dispatch(log_probabilities.device, log_probabilities.dtype, [&]<Device D, typename T>() {
    const T* log_probability = log_probabilities.as<T>();
#pragma omp parallel for schedule(dynamic) reduction(&& : all_finite)
    for (int64_t user = 0; user < num_users; ++user) {
      const std::vector<int64_t> excluded = excluded_children(queries[user].excluded, depth);
      auto next_excluded = excluded.begin();
      for (int64_t row = beams.offsets[user]; row < beams.offsets[user + 1]; ++row) {
        const SemanticIdTrie::Children children = trie_.children(depth, beams.nodes[row]);
        const T* of_row = log_probability + row * vocab_size;
        for (size_t i = 0; i < children.tokens.size(); ++i) {
          const int64_t out = first_candidate[row] + static_cast<int64_t>(i);
          const int64_t node = children.first_node + static_cast<int64_t>(i);
          const double score = beams.scores[row] + static_cast<double>(of_row[children.tokens[i]]);
          all_finite = all_finite && std::isfinite(score);
          candidates.scores[out] = score;
          candidates.nodes[out] = node;
          candidates.tokens[out] = children.tokens[i];
          candidates.parents[out] = static_cast<int32_t>(row);
          // Nodes ascend over a user's candidates, as the excluded ones do.
          while (next_excluded != excluded.end() && *next_excluded < node) ++next_excluded;
          if (next_excluded != excluded.end() && *next_excluded == node) {
            candidates.scores[out] = kExcluded;
          }
        }
      }
    }
  });
  MIRABELLE_CHECK(all_finite, "the model gives log-probabilities that are not finite");
}

/// The best candidates of each user: in the order of codes, or best first after the last level.
BeamSearch::Beams BeamSearch::select(const Candidates& candidates, const Beams& beams,
                                     int64_t depth) const {
  const int64_t num_users = static_cast<int64_t>(candidates.offsets.size()) - 1;
  const int64_t num_levels = ids_.num_levels();
  const int64_t k = std::min(limits_.beam_size, ids_.num_items());
  std::vector<double> values(num_users * k);
  std::vector<int32_t> indices(num_users * k);
  segmented_top_k(view_of(values.data(), {num_users, k}), view_of(indices.data(), {num_users, k}),
                  view_of(candidates.scores), view_of(candidates.offsets), Stream());
  Beams next;
  next.offsets.assign(num_users + 1, 0);
  for (int64_t user = 0; user < num_users; ++user) {
    const double* best = values.data() + user * k;
    const int64_t size = std::find(best, best + k, kExcluded) - best;
    next.offsets[user + 1] = next.offsets[user] + static_cast<int32_t>(size);
    if (depth + 1 < num_levels) std::sort(&indices[user * k], &indices[user * k] + size);
  }
  next.nodes.resize(next.offsets.back());
  next.scores.resize(next.offsets.back());
  next.parents.resize(next.offsets.back());
  next.tokens.resize(next.offsets.back() * num_levels);
#pragma omp parallel for schedule(static)
  for (int64_t user = 0; user < num_users; ++user) {
    for (int64_t row = next.offsets[user]; row < next.offsets[user + 1]; ++row) {
      const int64_t chosen =
          candidates.offsets[user] + indices[user * k + row - next.offsets[user]];
      const int64_t parent = candidates.parents[chosen];
      next.nodes[row] = candidates.nodes[chosen];
      next.scores[row] = candidates.scores[chosen];
      next.parents[row] = candidates.parents[chosen];
      std::copy_n(&beams.tokens[parent * num_levels], depth, &next.tokens[row * num_levels]);
      next.tokens[row * num_levels + depth] = candidates.tokens[chosen];
    }
  }
  return next;
}

/// Checks every beam against the table of semantic IDs, independently of how it was found.
void BeamSearch::append_lists(const Beams& beams, std::span<const RecommendationQuery> queries,
                              RankedLists& out) const {
  std::unordered_set<int32_t> seen;
  for (size_t user = 0; user < queries.size(); ++user) {
    const std::span<const int32_t> excluded = queries[user].excluded;
    seen.clear();
    for (int64_t row = beams.offsets[user]; row < beams.offsets[user + 1]; ++row) {
      const int32_t item = trie_.item(beams.nodes[row]);
      bool valid = !std::binary_search(excluded.begin(), excluded.end(), item);
      for (int64_t level = 0; level < ids_.num_levels(); ++level) {
        valid = valid && beams.tokens[row * ids_.num_levels() + level] == ids_.token(item, level);
      }
      const bool repeated = !seen.insert(item).second;
      out.num_invalid += !valid;
      out.num_duplicates += valid && repeated;
      if (!valid || repeated) continue;
      out.items.push_back(item);
      out.scores.push_back(beams.scores[row]);
    }
    out.offsets.push_back(static_cast<int64_t>(out.items.size()));
  }
}

}  // namespace mirabelle
