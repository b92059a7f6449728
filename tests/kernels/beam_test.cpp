#include "mirabelle/kernels/beam.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>

#include "mirabelle/kernels/top_k.h"
#include "support/backends.h"
#include "support/errors.h"
#include "support/threads.h"

namespace mirabelle::testing {
namespace {

using Ints = std::vector<int32_t>;
using Doubles = std::vector<double>;
constexpr double kNone = -std::numeric_limits<double>::infinity();

Buffer ints(const Backend& backend, const Shape& shape, const Ints& values = {}) {
  Buffer buffer(shape, DType::kInt32, backend.device);
  if (values.empty()) return buffer;
  copy(buffer.view(), view_of(values.data(), shape), Stream(backend.device));
  synchronize(backend.device);
  return buffer;
}

Buffer float64s(const Backend& backend, const Shape& shape, const Doubles& values) {
  return make_tensor(backend.device, DType::kFloat64, shape, values);
}

// --- one expansion, and one selection

/// One level of a tree, and some users' beams in it.
struct Level {
  Ints num_children, child_tokens;  // by node, by child
  int64_t vocab_size = 0, width = 0, max_candidates = 0;
  Doubles log_probabilities, beam_scores;
  Ints beam_nodes;
  std::vector<Ints> excluded;  // by user

  int64_t num_users() const { return static_cast<int64_t>(excluded.size()); }
  Ints first_child() const {
    Ints first = {0};
    for (int32_t n : num_children) first.push_back(first.back() + n);
    return first;
  }
};

/// What expand_beams gives; only the scores that belong to somebody.
struct Expansion {
  std::vector<Doubles> scores;
  Ints sizes, offsets;
  int32_t not_finite = 0;
  bool operator==(const Expansion&) const = default;
};

/// Goes over all children and asks for each who its parent is.
Expansion oracle(const Level& level) {
  Ints parent_of;
  for (size_t node = 0; node < level.num_children.size(); ++node) {
    parent_of.insert(parent_of.end(), level.num_children[node], static_cast<int32_t>(node));
  }
  Expansion result;
  for (int64_t user = 0; user < level.num_users(); ++user) {
    const Ints& excluded = level.excluded[user];
    Doubles scores;
    for (int64_t row = 0; row < level.width; ++row) {
      result.offsets.push_back(static_cast<int32_t>(scores.size()));
      const int64_t beam = user * level.width + row;
      if (level.beam_scores[beam] == kNone) continue;
      for (size_t child = 0; child < parent_of.size(); ++child) {
        if (parent_of[child] != level.beam_nodes[beam]) continue;
        const double score =
            level.beam_scores[beam] +
            level.log_probabilities[beam * level.vocab_size + level.child_tokens[child]];
        if (!std::isfinite(score)) result.not_finite = 1;
        const bool allowed = std::find(excluded.begin(), excluded.end(), child) == excluded.end();
        scores.push_back(std::isfinite(score) && allowed ? score : kNone);
      }
    }
    result.offsets.push_back(static_cast<int32_t>(scores.size()));
    result.sizes.push_back(static_cast<int32_t>(scores.size()));
    result.scores.push_back(scores);
  }
  return result;
}

Expansion run(const Backend& backend, const Stream& stream, const Level& level,
              int32_t not_finite = 0) {
  const int64_t num_users = level.num_users(), num_beams = num_users * level.width;
  Ints excluded, excluded_offsets = {0};
  for (const Ints& nodes : level.excluded) {
    excluded.insert(excluded.end(), nodes.begin(), nodes.end());
    excluded_offsets.push_back(static_cast<int32_t>(excluded.size()));
  }
  const Buffer scores = float64s(backend, {num_users, level.max_candidates},
                                 Doubles(num_users * level.max_candidates, NAN));
  const Buffer sizes = ints(backend, {num_users});
  const Buffer offsets = ints(backend, {num_users, level.width + 1});
  const Buffer flag = ints(backend, {1}, {not_finite});
  const Buffer log_probabilities =
      make_tensor(backend, {num_beams, level.vocab_size}, level.log_probabilities);
  const Buffer beam_scores = float64s(backend, {num_users, level.width}, level.beam_scores);
  const Buffer beam_nodes = ints(backend, {num_users, level.width}, level.beam_nodes);
  const Buffer first_child = make_int_tensor(backend, level.first_child());
  const Buffer child_tokens = make_int_tensor(backend, level.child_tokens);
  const Buffer excluded_nodes = make_int_tensor(backend, excluded);
  const Buffer offsets_of_excluded = make_int_tensor(backend, excluded_offsets);
  expand_beams({scores.view(), sizes.view(), offsets.view()}, flag.view(), log_probabilities.view(),
               {beam_scores.view(), beam_nodes.view()}, {first_child.view(), child_tokens.view()},
               {excluded_nodes.view(), offsets_of_excluded.view()}, stream);
  Expansion result;
  result.sizes = to_host<int32_t>(sizes.view());
  result.offsets = to_host<int32_t>(offsets.view());
  result.not_finite = to_host<int32_t>(flag.view())[0];
  const Doubles all = to_host<double>(scores.view());
  for (int64_t user = 0; user < num_users; ++user) {
    const auto first = all.begin() + user * level.max_candidates;
    result.scores.emplace_back(first, first + result.sizes[user]);
    for (int64_t i = result.sizes[user]; i < level.max_candidates; ++i) {
      EXPECT_TRUE(std::isnan(first[i])) << "written past the end of user " << user;
    }
  }
  return result;
}

/// Random: nodes have 0 to `most_children` children, every fourth beam does not exist, some
/// children are excluded.
Level random_level(int64_t num_users, int64_t width, int64_t num_nodes, int64_t most_children,
                   uint64_t seed) {
  Random random(random_key(seed, "level"));
  Level level;
  level.width = width;
  level.vocab_size = 2 * most_children + 1;
  for (int64_t node = 0; node < num_nodes; ++node) {
    level.num_children.push_back(static_cast<int32_t>(random.below(most_children + 1)));
    for (int32_t i = 0; i < level.num_children.back(); ++i) level.child_tokens.push_back(1 + 2 * i);
  }
  level.log_probabilities = random_values(num_users * width * level.vocab_size, seed);
  level.beam_scores = random_values(num_users * width, seed + 1);
  for (int64_t user = 0; user < num_users; ++user) {
    std::set<int32_t> nodes, excluded;
    while (static_cast<int64_t>(nodes.size()) < width) {
      nodes.insert(static_cast<int32_t>(random.below(num_nodes)));
    }
    level.beam_nodes.insert(level.beam_nodes.end(), nodes.begin(), nodes.end());
    for (size_t i = 0; i < level.child_tokens.size() / 5; ++i) {
      excluded.insert(
          static_cast<int32_t>(random.below(static_cast<int64_t>(level.child_tokens.size()))));
    }
    level.excluded.emplace_back(excluded.begin(), excluded.end());
  }
  for (size_t beam = 0; beam < level.beam_scores.size(); ++beam) {
    if (random.below(4) == 0) level.beam_scores[beam] = kNone;
  }
  level.max_candidates = static_cast<int64_t>(level.child_tokens.size());
  return level;
}

class BeamTest : public BackendTest {};
MIRABELLE_INSTANTIATE_WIDE_BACKENDS(BeamTest);

TEST_P(BeamTest, CandidatesAreTheChildrenInOrder) {
  const Level level = {.num_children = {2, 0, 3, 1},
                       .child_tokens = {1, 2, 0, 2, 3, 1},
                       .vocab_size = 4,
                       .width = 3,
                       .max_candidates = 5,
                       .log_probabilities = {-1, -2, -3, -4, NAN, NAN, NAN, NAN, -5, -6, -7, -8,
                                             -1, -2, -3, -4, -5,  -6,  -7,  -8,  -9, -9, -9, -9},
                       .beam_scores = {-10, -20, -30, -0.5, -0.25, kNone},
                       .beam_nodes = {0, 1, 2, 2, 3, 0},
                       .excluded = {{1, 3, 5}, {}}};
  const Expansion result = run(GetParam(), stream_, level);
  EXPECT_EQ(result.sizes, (Ints{5, 4}));
  EXPECT_EQ(result.offsets, (Ints{0, 2, 2, 5, 0, 3, 4, 4}));
  EXPECT_EQ(result.scores[0], (Doubles{-12, kNone, -35, kNone, -38}));
  EXPECT_EQ(result.scores[1], (Doubles{-1.5, -3.5, -4.5, -6.25}));
  EXPECT_EQ(result.not_finite, 0);
}

TEST_P(BeamTest, ExpansionsOfAllSizesEqualASearchOverAllChildren) {
  int seed = 1;
  for (const auto& [num_users, width, num_nodes, most_children] :
       std::vector<std::array<int64_t, 4>>{{1, 1, 1, 3},
                                           {3, 7, 20, 5},
                                           {2, 255, 300, 3},
                                           {2, 256, 300, 3},
                                           {3, 257, 1000, 4},
                                           {2, 700, 700, 9},
                                           {5, 1, 3, 2000}}) {
    const Level level = random_level(num_users, width, num_nodes, most_children, ++seed);
    EXPECT_TRUE(run(GetParam(), stream_, level) == oracle(level))
        << num_users << " users, " << width << " beams of " << num_nodes << " nodes";
  }
}

TEST_P(BeamTest, OneNodeMayHaveManyChildren) {
  Level level = random_level(3, 1, 1, 1, 5);
  level.num_children = {70'001};
  level.vocab_size = level.max_candidates = 70'001;
  level.beam_scores = {0, kNone, -1};
  level.log_probabilities = random_values(3 * level.vocab_size, 6);
  level.child_tokens.resize(70'001);
  for (int32_t i = 0; i < 70'001; ++i) level.child_tokens[i] = i;
  level.excluded = {{0, 70'000}, {3}, {}};
  const Expansion result = run(GetParam(), stream_, level), expected = oracle(level);
  EXPECT_EQ(result.sizes, (Ints{70'001, 0, 70'001}));
  EXPECT_TRUE(result == expected);
}

TEST_P(BeamTest, ThereMayBeNoUsersAndNobodyWithBeams) {
  EXPECT_TRUE(run(GetParam(), stream_, random_level(0, 3, 5, 2, 1)).scores.empty());
  Level level = random_level(3, 4, 6, 3, 2);
  level.beam_scores.assign(12, kNone);
  EXPECT_EQ(run(GetParam(), stream_, level).sizes, (Ints{0, 0, 0}));
}

TEST_P(BeamTest, OnlyLogProbabilitiesThatAreMetMustBeFinite) {
  Level level = {.num_children = {2, 2},
                 .child_tokens = {0, 2, 1, 2},
                 .vocab_size = 3,
                 .width = 2,
                 .max_candidates = 4,
                 .log_probabilities = {-1, NAN, -3, NAN, NAN, NAN},
                 .beam_scores = {-1, kNone},
                 .beam_nodes = {0, 1},
                 .excluded = {{}}};
  EXPECT_EQ(run(GetParam(), stream_, level).not_finite, 0);
  EXPECT_EQ(run(GetParam(), stream_, level, 1).not_finite, 1);  // an earlier one is not forgotten
  for (double value : {std::nan(""), kNone, -kNone}) {
    level.log_probabilities[2] = value;
    const Expansion result = run(GetParam(), stream_, level);
    EXPECT_EQ(result.not_finite, 1);
    EXPECT_EQ(result.scores[0], (Doubles{-2, kNone}));
  }
  level.excluded = {{1}};
  EXPECT_EQ(run(GetParam(), stream_, level).not_finite, 1);
}

TEST_P(BeamTest, ExpansionsDoNotDependOnTheNumberOfThreads) {
  if (GetParam().device != Device::kCpu) GTEST_SKIP() << "CPU only";
  const Level level = random_level(9, 30, 100, 10, 3);
  expect_same_for_any_number_of_threads([&] {
    Doubles all;
    for (const Doubles& scores : run(GetParam(), stream_, level).scores) {
      all.insert(all.end(), scores.begin(), scores.end());
    }
    return all;
  });
}

TEST_P(BeamTest, SelectionLooksUpWhatWasChosen) {
  const Buffer nodes = ints(GetParam(), {2, 4}), tokens = ints(GetParam(), {2, 4});
  const Buffer parents = ints(GetParam(), {2, 4});
  const Buffer indices = ints(GetParam(), {2, 4}, {0, 2, 4, -1, 3, -1, -1, -1});
  const Buffer offsets = ints(GetParam(), {2, 4}, {0, 2, 2, 5, 0, 3, 4, 4});
  const Buffer beam_nodes = ints(GetParam(), {2, 3}, {0, 1, 2, 2, 3, 0});
  const Buffer first_child = make_int_tensor(GetParam(), {0, 2, 2, 5, 6});
  const Buffer child_tokens = make_int_tensor(GetParam(), {11, 12, 10, 12, 13, 14});
  select_beams(nodes.view(), tokens.view(), parents.view(), indices.view(), offsets.view(),
               beam_nodes.view(), {first_child.view(), child_tokens.view()}, stream_);
  EXPECT_EQ(to_host<int32_t>(nodes.view()), (Ints{0, 2, 4, 0, 5, 0, 0, 0}));
  EXPECT_EQ(to_host<int32_t>(tokens.view()), (Ints{11, 10, 13, 11, 14, 11, 11, 11}));
  EXPECT_EQ(to_host<int32_t>(parents.view()), (Ints{0, 2, 2, 0, 4, 3, 3, 3}));
}

TEST_P(BeamTest, BeamsStandBehindTheHistories) {
  const Buffer prefix_offsets = make_int_tensor(GetParam(), {0, 5, 6, 16});
  for (int32_t width : {0, 1, 3, 300}) {
    const Buffer positions = ints(GetParam(), {3, width}), offsets = ints(GetParam(), {4});
    place_beams(positions.view(), offsets.view(), prefix_offsets.view(), 2, stream_);
    Ints expected;
    for (int32_t position : {7, 3, 12}) expected.insert(expected.end(), width, position);
    EXPECT_EQ(to_host<int32_t>(positions.view()), expected);
    EXPECT_EQ(to_host<int32_t>(offsets.view()), (Ints{0, width, 2 * width, 3 * width}));
  }
  const Buffer positions = ints(GetParam(), {0, 7}), offsets = ints(GetParam(), {1}, {9});
  place_beams(positions.view(), offsets.view(), prefix_offsets.view().rows(0, 1), 2, stream_);
  EXPECT_EQ(to_host<int32_t>(offsets.view()), Ints{0});
}

// --- whole searches

using Codes = std::vector<int32_t>;

/// The tree of some items' codes, by depth.
struct Tree {
  std::vector<Codes> items;
  std::vector<std::vector<Codes>> prefixes;     // [num_levels + 1], each level's in order
  std::vector<Ints> first_child, child_tokens;  // [num_levels]

  explicit Tree(const std::set<Codes>& ids) : items(ids.begin(), ids.end()) {
    const size_t num_levels = items[0].size();
    for (size_t depth = 0; depth <= num_levels; ++depth) {
      std::set<Codes> distinct;
      for (const Codes& item : items) distinct.insert({item.begin(), item.begin() + depth});
      prefixes.emplace_back(distinct.begin(), distinct.end());
    }
    for (size_t depth = 0; depth < num_levels; ++depth) {
      Ints first = {0}, tokens;
      for (const Codes& prefix : prefixes[depth]) {
        for (const Codes& child : prefixes[depth + 1]) {
          if (std::equal(prefix.begin(), prefix.end(), child.begin())) {
            tokens.push_back(child.back());
          }
        }
        first.push_back(static_cast<int32_t>(tokens.size()));
      }
      first_child.push_back(first);
      child_tokens.push_back(tokens);
    }
  }
  int64_t num_levels() const { return static_cast<int64_t>(first_child.size()); }
};

/// Few different values, that add up without rounding: many sums are equal.
double log_probability(int64_t user, const Codes& prefix, int32_t code) {
  uint64_t hash = static_cast<uint64_t>(user + 1);
  for (int32_t c : prefix) hash = hash * 31 + static_cast<uint64_t>(c) + 1;
  hash = (hash * 31 + static_cast<uint64_t>(code)) * 0x9E3779B97F4A7C15u;
  return -0.25 * static_cast<double>(hash >> 60);
}

struct Found {
  Codes codes;
  double score = 0;
  bool operator==(const Found&) const = default;
};

/// From the items alone: every prefix that is some allowed item's, and that continues a kept one.
std::vector<Found> brute_force(const Tree& tree, const std::set<Codes>& excluded, int64_t user,
                               size_t beam_size) {
  std::vector<Found> beams(1);
  for (int64_t depth = 0; depth < tree.num_levels(); ++depth) {
    std::set<Codes> seen;
    std::vector<Found> next;
    for (const Codes& item : tree.items) {
      const Codes prefix(item.begin(), item.begin() + depth);
      const Codes child(item.begin(), item.begin() + depth + 1);
      const auto beam = std::find_if(beams.begin(), beams.end(),
                                     [&](const Found& kept) { return kept.codes == prefix; });
      if (beam == beams.end() || excluded.count(item) || !seen.insert(child).second) continue;
      next.push_back({child, beam->score + log_probability(user, prefix, child.back())});
    }
    std::sort(next.begin(), next.end(), [](const Found& a, const Found& b) {
      return a.score > b.score || (a.score == b.score && a.codes < b.codes);
    });
    if (next.size() > beam_size) next.resize(beam_size);
    beams = next;
  }
  return beams;
}

/// The same with the three kernels, for all users at once. The log-probabilities of beams that do
/// not exist are NaN.
std::vector<std::vector<Found>> search(const Backend& backend, const Stream& stream,
                                       const Tree& tree,
                                       const std::vector<std::set<Codes>>& excluded,
                                       int64_t beam_size) {
  const int64_t num_users = static_cast<int64_t>(excluded.size()), num_levels = tree.num_levels();
  constexpr int64_t kVocab = 12;
  int64_t width = 1;
  Ints nodes(num_users, 0);
  Doubles scores(num_users, 0.0);
  std::vector<Codes> decoded(num_users);
  for (int64_t depth = 0; depth < num_levels; ++depth) {
    const auto& prefixes = tree.prefixes[depth];
    const auto& children = tree.prefixes[depth + 1];
    const auto num_children = static_cast<int64_t>(children.size());
    Level level;
    level.vocab_size = kVocab;
    for (int64_t beam = 0; beam < num_users * width; ++beam) {
      for (int32_t code = 0; code < kVocab; ++code) {
        level.log_probabilities.push_back(
            scores[beam] > kNone ? log_probability(beam / width, prefixes[nodes[beam]], code)
                                 : NAN);
      }
    }
    Ints excluded_nodes, excluded_offsets = {0};
    for (int64_t user = 0; user < num_users; ++user) {
      for (int32_t child = 0; child < num_children; ++child) {
        const bool allowed =
            std::any_of(tree.items.begin(), tree.items.end(), [&](const Codes& item) {
              return std::equal(children[child].begin(), children[child].end(), item.begin()) &&
                     excluded[user].count(item) == 0;
            });
        if (!allowed) excluded_nodes.push_back(child);
      }
      excluded_offsets.push_back(static_cast<int32_t>(excluded_nodes.size()));
    }
    const Buffer candidate_scores({num_users, num_children}, DType::kFloat64, backend.device);
    const Buffer sizes = ints(backend, {num_users});
    const Buffer offsets = ints(backend, {num_users, width + 1}), flag = ints(backend, {1});
    const Buffer log_probabilities =
        make_tensor(backend, {num_users * width, kVocab}, level.log_probabilities);
    const Buffer beam_scores = float64s(backend, {num_users, width}, scores);
    const Buffer beam_nodes = ints(backend, {num_users, width}, nodes);
    const Buffer first_child = make_int_tensor(backend, tree.first_child[depth]);
    const Buffer child_tokens = make_int_tensor(backend, tree.child_tokens[depth]);
    const Buffer of_excluded = make_int_tensor(backend, excluded_nodes);
    const Buffer offsets_of_excluded = make_int_tensor(backend, excluded_offsets);
    const BeamCandidates candidates = {candidate_scores.view(), sizes.view(), offsets.view()};
    const TrieLevel trie = {first_child.view(), child_tokens.view()};
    expand_beams(candidates, flag.view(), log_probabilities.view(),
                 {beam_scores.view(), beam_nodes.view()}, trie,
                 {of_excluded.view(), offsets_of_excluded.view()}, stream);
    const int64_t next_width = std::min(beam_size, num_children);
    const Shape next_shape = {num_users, next_width};
    const Buffer next_scores(next_shape, DType::kFloat64, backend.device);
    const Buffer indices = ints(backend, next_shape), next_nodes = ints(backend, next_shape);
    const Buffer tokens = ints(backend, next_shape), parents = ints(backend, next_shape);
    segmented_top_k(next_scores.view(), indices.view(), candidates.scores, candidates.sizes,
                    depth + 1 < num_levels ? TopKOrder::kByIndex : TopKOrder::kBestFirst, stream);
    select_beams(next_nodes.view(), tokens.view(), parents.view(), indices.view(),
                 candidates.offsets, beam_nodes.view(), trie, stream);
    EXPECT_EQ(to_host<int32_t>(flag.view()), Ints{0});

    nodes = to_host<int32_t>(next_nodes.view());
    scores = to_host<double>(next_scores.view());
    const Ints chosen = to_host<int32_t>(tokens.view()), from = to_host<int32_t>(parents.view());
    std::vector<Codes> extended;
    for (int64_t beam = 0; beam < num_users * next_width; ++beam) {
      EXPECT_EQ(from[beam] / width, beam / next_width) << "a parent is another user's";
      extended.push_back(decoded.at(from[beam]));
      extended.back().push_back(chosen[beam]);
      EXPECT_TRUE(scores[beam] == kNone || extended.back() == children.at(nodes[beam]));
      EXPECT_LT(nodes[beam], num_children);
    }
    decoded = extended;
    width = next_width;
  }
  std::vector<std::vector<Found>> found(num_users);
  for (int64_t beam = 0; beam < num_users * width; ++beam) {
    if (scores[beam] > kNone) found[beam / width].push_back({decoded[beam], scores[beam]});
  }
  return found;
}

std::set<Codes> random_items(int64_t n, const Ints& level_sizes, uint64_t seed) {
  Random random(random_key(seed, "items"));
  std::set<Codes> items;
  while (static_cast<int64_t>(items.size()) < n) {
    Codes codes;
    for (int32_t size : level_sizes) codes.push_back(static_cast<int32_t>(random.below(size)));
    items.insert(codes);
  }
  return items;
}

TEST_P(BeamTest, SearchesFindWhatBruteForceFinds) {
  for (const auto& [num_items, level_sizes] : std::vector<std::pair<int64_t, Ints>>{
           {1, {3, 2}}, {11, {12}}, {60, {5, 4, 8}}, {90, {3, 2, 4, 12}}}) {
    const Tree tree(random_items(num_items, level_sizes, 3));
    // Nobody excludes anything; every third item; all of a first code; all items.
    std::vector<std::set<Codes>> excluded(4);
    for (size_t i = 0; i < tree.items.size(); ++i) {
      if (i % 3 == 0) excluded[1].insert(tree.items[i]);
      if (tree.items[i][0] == tree.items[0][0]) excluded[2].insert(tree.items[i]);
      excluded[3].insert(tree.items[i]);
    }
    for (int64_t beam_size : {1, 2, 5, 20, 200}) {
      const auto found = search(GetParam(), stream_, tree, excluded, beam_size);
      for (int64_t user = 0; user < 4; ++user) {
        EXPECT_TRUE(found[user] == brute_force(tree, excluded[user], user, beam_size))
            << num_items << " items, beam " << beam_size << ", user " << user;
      }
    }
  }
}

// --- checks

const Backend& kCpu = kBackends[0];

struct Operands {
  Buffer scores = Buffer({2, 4}, DType::kFloat64), sizes = ints(kCpu, {2});
  Buffer offsets = ints(kCpu, {2, 3}), flag = ints(kCpu, {1});
  Buffer log_probabilities = Buffer({4, 5}, DType::kFloat32);
  Buffer beam_scores = Buffer({2, 2}, DType::kFloat64), nodes = ints(kCpu, {2, 2}, {0, 1, 0, 1});
  Buffer first_child = ints(kCpu, {3}, {0, 3, 4}), child_tokens = ints(kCpu, {4}, {1, 2, 4, 0});
  Buffer excluded = ints(kCpu, {2}, {1, 2}), excluded_offsets = ints(kCpu, {3}, {0, 1, 2});
  Buffer next_nodes = ints(kCpu, {2, 3}), tokens = ints(kCpu, {2, 3}), parents = ints(kCpu, {2, 3});
  Buffer indices = ints(kCpu, {2, 3}, {0, 3, -1, -1, -1, -1});

  void expand() const {
    expand_beams({scores.view(), sizes.view(), offsets.view()}, flag.view(),
                 log_probabilities.view(), {beam_scores.view(), nodes.view()},
                 {first_child.view(), child_tokens.view()},
                 {excluded.view(), excluded_offsets.view()}, Stream());
  }
  void select() const {
    select_beams(next_nodes.view(), tokens.view(), parents.view(), indices.view(), offsets.view(),
                 nodes.view(), {first_child.view(), child_tokens.view()}, Stream());
  }
};

void expect_expand_error(const std::string& message, const Operands& operands) {
  expect_error(message, [&] { operands.expand(); });
}

TEST(BeamCheckTest, AcceptsMatchingOperands) {
  const Operands operands;
  operands.expand();
  operands.select();
}

TEST(BeamCheckTest, ExpansionRefusesOtherShapesAndTypes) {
  Operands operands;
  operands.log_probabilities = Buffer({3, 5}, DType::kFloat32);
  expect_expand_error("log_probabilities has shape [3, 5], wanted [4, 5]", operands);
  operands = {};
  operands.scores = Buffer({2, 4}, DType::kFloat32);
  expect_expand_error("candidate scores is float32, wanted float64", operands);
  operands = {};
  operands.scores = Buffer({8}, DType::kFloat64);
  expect_expand_error("candidate scores [8]: wanted [num_users * width, vocab_size] and", operands);
  operands = {};
  operands.sizes = ints(kCpu, {3});
  expect_expand_error("candidate sizes has shape [3], wanted [2]", operands);
  operands = {};
  operands.offsets = ints(kCpu, {2, 2});
  expect_expand_error("candidate offsets has shape [2, 2], wanted [2, 3]", operands);
  operands = {};
  operands.flag = ints(kCpu, {2});
  expect_expand_error("not_finite has shape [2], wanted [1]", operands);
  operands = {};
  operands.beam_scores = Buffer({2, 2}, DType::kFloat32);
  expect_expand_error("beam scores is float32, wanted float64", operands);
  operands = {};
  operands.nodes = ints(kCpu, {4});
  expect_expand_error("beam nodes has shape [4], wanted [num_users, width]", operands);
  operands = {};
  operands.excluded = ints(kCpu, {2, 1});
  expect_expand_error("excluded nodes has shape [2, 1], wanted [num_excluded]", operands);
  operands = {};
  operands.excluded_offsets = ints(kCpu, {2}, {0, 2});
  expect_expand_error("excluded offsets has shape [2], wanted [3]", operands);
  operands = {};
  operands.child_tokens = ints(kCpu, {2, 2}, {1, 2, 4, 0});
  expect_expand_error("child_tokens has shape [2, 2], wanted [num_children]", operands);
}

TEST(BeamCheckTest, ExpansionRefusesWhatLiesOutside) {
  Operands operands;
  operands.nodes = ints(kCpu, {2, 2}, {0, 1, 0, 2});
  expect_expand_error("beam nodes[3] is 2, wanted 0 .. 1", operands);
  operands = {};
  operands.child_tokens = ints(kCpu, {4}, {1, 2, 5, 0});
  expect_expand_error("child_tokens[2] is 5, wanted 0 .. 4", operands);
  operands = {};
  operands.first_child = ints(kCpu, {3}, {0, 3, 5});
  expect_expand_error("first_child runs from 0 to 5, wanted from 0 to 4", operands);
  operands = {};
  operands.excluded_offsets = ints(kCpu, {3}, {0, 2, 1});
  expect_expand_error("excluded offsets runs from 0 to 1, wanted from 0 to 2", operands);
  operands = {};
  operands.scores = Buffer({2, 3}, DType::kFloat64);
  expect_expand_error("candidate sizes[0] is 4, wanted 0 .. 3", operands);
}

TEST(BeamCheckTest, SelectionRefusesOtherShapesAndIndicesOfNothing) {
  const auto refuses = [&](const std::string& message, Operands& operands) {
    operands.expand();
    expect_error(message, [&] { operands.select(); });
    operands = {};
  };
  Operands operands;
  operands.next_nodes = ints(kCpu, {3, 2});
  refuses("nodes has shape [3, 2], wanted [2, 3]", operands);
  operands.tokens = Buffer({2, 3}, DType::kInt64);
  refuses("tokens is int64, wanted int32", operands);
  operands.parents = ints(kCpu, {2, 2});
  refuses("parents has shape [2, 2], wanted [2, 3]", operands);
  operands.indices = ints(kCpu, {6});
  refuses("indices has shape [6], beam_nodes [2, 2]: wanted", operands);
  operands.indices = ints(kCpu, {2, 3}, {0, 1, 4, 0, 1, 2});
  refuses("indices[2] is 4, wanted -1 .. 3", operands);
}

TEST(BeamCheckTest, PlacesAreThoseOfTheUsers) {
  const Buffer positions = ints(kCpu, {2, 3}), two = ints(kCpu, {2}), three = ints(kCpu, {3});
  expect_error("prefix_offsets has shape [2], wanted [3]",
               [&] { place_beams(positions.view(), three.view(), two.view(), 0, Stream()); });
  expect_error("beam_offsets has shape [2], wanted [3]",
               [&] { place_beams(positions.view(), two.view(), three.view(), 0, Stream()); });
  expect_error("positions has shape [2], wanted [num_users, width]",
               [&] { place_beams(two.view(), three.view(), three.view(), 0, Stream()); });
}

}  // namespace
}  // namespace mirabelle::testing
