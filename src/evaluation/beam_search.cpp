#include "mirabelle/evaluation/beam_search.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <numeric>
#include <unordered_set>

#include "mirabelle/core/copy.h"
#include "mirabelle/core/error.h"
#include "mirabelle/kernels/reduce.h"
#include "mirabelle/kernels/top_k.h"

namespace mirabelle {
namespace {

constexpr double kNone = -std::numeric_limits<double>::infinity();

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
  MIRABELLE_CHECK_USAGE(model.device() == Device::kCpu ||
                            std::min(limits.beam_size, ids.num_items()) <= kMaxTopKOnCuda,
                        "a beam size of ", limits.beam_size, " is wanted; on CUDA at most ",
                        kMaxTopKOnCuda);
  return model;
}

/// The most children that `width` nodes of a depth can have together.
int64_t most_children(const SemanticIdTrie& trie, int64_t depth, int64_t width) {
  std::vector<int64_t> counts(trie.num_nodes(depth));
  for (size_t node = 0; node < counts.size(); ++node) {
    counts[node] = static_cast<int64_t>(trie.children(depth, node).tokens.size());
  }
  std::nth_element(counts.begin(), counts.begin() + width, counts.end(), std::greater<>());
  return std::accumulate(counts.begin(), counts.begin() + width, int64_t{0});
}

Buffer on_device(const std::vector<int32_t>& values, const Stream& stream) {
  Buffer buffer({static_cast<int64_t>(values.size())}, DType::kInt32, stream.device());
  copy(buffer.view(), view_of(values), stream);
  return buffer;
}

/// The first elements of x.
TensorView first_of(const TensorView& x, const Shape& shape) {
  return x.reshaped({x.num_elements()}).rows(0, shape.num_elements()).reshaped(shape);
}

}  // namespace

BeamSearch::BeamSearch(const Transformer& model, const SemanticIds& ids, const Limits& limits)
    : ids_(ids),
      limits_(limits),
      trie_(ids),
      decoder_(checked(model, ids, limits), decoder_limits(ids, limits)) {
  index_items();
  make_levels(model.device());
}

int64_t BeamSearch::planned_bytes(const Transformer& model, const SemanticIds& ids,
                                  const Limits& limits) {
  int64_t most_codes = 0;
  for (int64_t level = 0; level < ids.num_levels(); ++level) {
    most_codes = std::max(most_codes, ids.level_size(level));
  }
  const int64_t candidates = std::min(ids.num_items(), limits.beam_size * most_codes);
  return Decoder::planned_bytes(model, decoder_limits(ids, limits)) +
         limits.batch_users * candidates * size_in_bytes(DType::kFloat64);
}

/// path_ and items_below_.
void BeamSearch::index_items() {
  const int64_t num_levels = ids_.num_levels();
  std::vector<std::vector<int32_t>> parent(num_levels + 1);
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
  path_.resize(ids_.num_items() * num_levels);
  for (int64_t leaf = 0; leaf < trie_.num_nodes(num_levels); ++leaf) {
    for (const int32_t item : trie_.items(leaf)) {
      auto node = static_cast<int32_t>(leaf);
      for (int64_t depth = num_levels; depth > 0; --depth) {
        path_[item * num_levels + depth - 1] = node;
        ++items_below_[depth][node];
        node = parent[depth][node];
      }
    }
  }
}

/// The tree, and memory for the beams and candidates of a batch.
void BeamSearch::make_levels(Device device) {
  const int64_t num_levels = ids_.num_levels();
  const Stream stream(device);
  int64_t max_width = 1, max_candidates = 0;
  for (int64_t depth = 0; depth < num_levels; ++depth) {
    std::vector<int32_t> first_child, child_tokens;
    for (int64_t node = 0; node < trie_.num_nodes(depth); ++node) {
      const std::span<const int32_t> tokens = trie_.children(depth, node).tokens;
      first_child.push_back(static_cast<int32_t>(child_tokens.size()));
      child_tokens.insert(child_tokens.end(), tokens.begin(), tokens.end());
    }
    first_child.push_back(static_cast<int32_t>(child_tokens.size()));
    levels_.push_back({.first_child = on_device(first_child, stream),
                       .child_tokens = on_device(child_tokens, stream),
                       .width = std::min(limits_.beam_size, trie_.num_nodes(depth + 1)),
                       .max_candidates = most_children(trie_, depth, width(depth))});
    max_width = std::max(max_width, levels_.back().width);
    max_candidates = std::max(max_candidates, levels_.back().max_candidates);
  }
  const int64_t users = limits_.batch_users;
  const int64_t max_beams = users * max_width;
  beam_scores_ = Buffer({num_levels + 1, max_beams}, DType::kFloat64, device);
  beam_rows_ = Buffer({3 * (num_levels + 1), max_beams}, DType::kInt32, device);
  chosen_ = Buffer({max_beams}, DType::kInt32, device);
  candidate_scores_ = Buffer({users * max_candidates}, DType::kFloat64, device);
  candidate_sizes_ = Buffer({users}, DType::kInt32, device);
  candidate_offsets_ = Buffer({users * (max_width + 1)}, DType::kInt32, device);
  not_finite_ = Buffer({1}, DType::kInt32, device);
  stream.synchronize();
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
  const auto num_users = static_cast<int64_t>(queries.size());
  const std::vector<ExcludedNodes> excluded = upload_excluded(queries, stream);
  fill_zero(not_finite_.view(), stream);
  TensorView log_probabilities = prefill(queries, stream);
  for (int64_t depth = 0; depth < ids_.num_levels(); ++depth) {
    if (depth > 0) {
      const BeamRows beams = beam_rows(beam_rows_.view(), depth, num_users);
      log_probabilities = decoder_.step(beams.tokens, beams.parents, stream);
    }
    advance(depth, num_users, log_probabilities, excluded[depth], stream);
  }
  append_lists(queries, out, stream);
}

TensorView BeamSearch::beam_scores(int64_t depth, int64_t num_users) const {
  return first_of(beam_scores_.view().rows(depth, depth + 1), {num_users, width(depth)});
}

/// `all`: beam_rows_, or a copy of it.
BeamSearch::BeamRows BeamSearch::beam_rows(const TensorView& all, int64_t depth,
                                           int64_t num_users) const {
  const auto part = [&](int64_t i) {
    return first_of(all.rows(3 * depth + i, 3 * depth + i + 1), {num_users, width(depth)});
  };
  return {.nodes = part(0), .tokens = part(1), .parents = part(2)};
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

/// The nodes of depth `depth` + 1 below which there are only excluded items, ascending.
std::vector<int32_t> BeamSearch::excluded_children(std::span<const int32_t> excluded,
                                                   int64_t depth) const {
  std::vector<int32_t> nodes, full;
  for (int32_t item : excluded) nodes.push_back(path_[item * ids_.num_levels() + depth]);
  std::sort(nodes.begin(), nodes.end());
  for (size_t i = 0; i < nodes.size();) {
    const size_t begin = i;
    while (i < nodes.size() && nodes[i] == nodes[begin]) ++i;
    if (static_cast<int32_t>(i - begin) == items_below_[depth + 1][nodes[begin]]) {
      full.push_back(nodes[begin]);
    }
  }
  return full;
}

/// By depth of the parents; in one copy.
std::vector<ExcludedNodes> BeamSearch::upload_excluded(std::span<const RecommendationQuery> queries,
                                                       const Stream& stream) {
  const auto num_users = static_cast<int64_t>(queries.size());
  std::vector<std::vector<int32_t>> nodes(ids_.num_levels() * num_users);
#pragma omp parallel for schedule(dynamic)
  for (size_t i = 0; i < nodes.size(); ++i) {
    nodes[i] = excluded_children(queries[i % num_users].excluded, i / num_users);
  }
  std::vector<int32_t> all;  // for each depth the users' offsets, then their nodes
  for (int64_t depth = 0; depth < ids_.num_levels(); ++depth) {
    const auto of_depth = std::span(nodes).subspan(depth * num_users, num_users);
    all.push_back(0);
    for (const auto& of_user : of_depth) {
      all.push_back(all.back() + static_cast<int32_t>(of_user.size()));
    }
    for (const auto& of_user : of_depth) all.insert(all.end(), of_user.begin(), of_user.end());
  }
  const auto size = static_cast<int64_t>(all.size());
  if (excluded_.bytes() < view_of(all).bytes()) {
    excluded_ = Buffer({size}, DType::kInt32, stream.device());
  }
  const TensorView uploaded = excluded_.view().rows(0, size);
  copy(uploaded, view_of(all), stream);
  std::vector<ExcludedNodes> views;
  for (int64_t begin = 0; begin < size;) {
    const int64_t first_node = begin + num_users + 1, end = first_node + all[first_node - 1];
    views.push_back(
        {.nodes = uploaded.rows(first_node, end), .offsets = uploaded.rows(begin, first_node)});
    begin = end;
  }
  return views;
}

/// One level down the tree: the best children of each user's beams are the next beams, in the order
/// of codes, or best first after the last level.
void BeamSearch::advance(int64_t depth, int64_t num_users, const TensorView& log_probabilities,
                         const ExcludedNodes& excluded, const Stream& stream) {
  const Level& level = levels_[depth];
  const TrieLevel trie = {level.first_child.view(), level.child_tokens.view()};
  const TensorView scores = beam_scores(depth, num_users);
  const TensorView nodes = beam_rows(beam_rows_.view(), depth, num_users).nodes;
  const TensorView next_scores = beam_scores(depth + 1, num_users);
  const BeamRows next = beam_rows(beam_rows_.view(), depth + 1, num_users);
  const TensorView chosen = first_of(chosen_.view(), next.nodes.shape);
  const BeamCandidates candidates = {
      .scores = first_of(candidate_scores_.view(), {num_users, level.max_candidates}),
      .sizes = first_of(candidate_sizes_.view(), {num_users}),
      .offsets = first_of(candidate_offsets_.view(), {num_users, width(depth) + 1})};
  const bool is_last = depth + 1 == ids_.num_levels();
  expand_beams(candidates, not_finite_.view(), log_probabilities, {scores, nodes}, trie, excluded,
               stream);
  segmented_top_k(next_scores, chosen, candidates.scores, candidates.sizes,
                  is_last ? TopKOrder::kBestFirst : TopKOrder::kByIndex, stream);
  select_beams(next.nodes, next.tokens, next.parents, chosen, candidates.offsets, nodes, trie,
               stream);
}

/// Checks the tokens that were decoded for every beam against the table of semantic IDs,
/// independently of how they were found.
void BeamSearch::append_lists(std::span<const RecommendationQuery> queries, RankedLists& out,
                              const Stream& stream) {
  const auto num_users = static_cast<int64_t>(queries.size()), num_levels = ids_.num_levels();
  const TensorView not_finite = on_host(not_finite_.view(), host_not_finite_, stream);
  MIRABELLE_CHECK(not_finite.as<int32_t>()[0] == 0,
                  "the model gives log-probabilities that are not finite");
  const TensorView host_scores = on_host(beam_scores(num_levels, num_users), host_scores_, stream);
  const TensorView host_rows = on_host(beam_rows_.view(), host_rows_, stream);
  const double* scores = host_scores.as<double>();
  std::vector<BeamRows> rows;  // by depth
  for (int64_t depth = 0; depth <= num_levels; ++depth) {
    rows.push_back(beam_rows(host_rows, depth, num_users));
  }
  const auto matches = [&](int64_t row, int32_t item) {
    bool same = true;
    for (int64_t depth = num_levels; depth > 0; --depth) {
      same = same && rows[depth].tokens.as<int32_t>()[row] == ids_.token(item, depth - 1);
      row = rows[depth].parents.as<int32_t>()[row];
    }
    return same;
  };
  std::unordered_set<int32_t> seen;
  std::vector<int32_t> items;  // of one ID
  for (int64_t user = 0; user < num_users; ++user) {
    const std::span<const int32_t> excluded = queries[user].excluded;
    const int64_t begin = user * width(num_levels), end = begin + width(num_levels);
    const size_t full = out.items.size() + limits_.beam_size;
    seen.clear();
    for (int64_t row = begin; row < end && scores[row] > kNone; ++row) {
      items.clear();
      for (const int32_t item : trie_.items(rows[num_levels].nodes.as<int32_t>()[row])) {
        const bool is_excluded = std::binary_search(excluded.begin(), excluded.end(), item);
        if (matches(row, item) && !is_excluded) items.push_back(item);
      }
      const bool repeated = !items.empty() && !seen.insert(items.front()).second;
      out.num_invalid += items.empty();
      out.num_duplicates += repeated;
      if (repeated) continue;
      items.resize(std::min(items.size(), full - out.items.size()));
      out.items.insert(out.items.end(), items.begin(), items.end());
      out.scores.resize(out.items.size(), scores[row]);
    }
    out.offsets.push_back(static_cast<int64_t>(out.items.size()));
  }
}

}  // namespace mirabelle
