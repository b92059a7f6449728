#include "mirabelle/tokenizer/semantic_id.h"

#include <gtest/gtest.h>

#include <map>
#include <set>

#include "mirabelle/core/error.h"
#include "mirabelle/core/random.h"

namespace mirabelle {
namespace {

std::string message_of(std::vector<int64_t> level_sizes, std::vector<int32_t> codes,
                       std::vector<int32_t> priorities = {}) {
  try {
    SemanticIds(std::move(level_sizes), std::move(codes), std::move(priorities));
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kData);
    return error.what();
  }
  return "no error";
}

/// `num_items` different IDs, drawn in random order.
SemanticIds random_ids(const std::vector<int64_t>& level_sizes, int64_t num_items, uint64_t seed) {
  Random random(random_key(seed, "test"));
  std::set<std::vector<int32_t>> seen;
  std::vector<int32_t> codes;
  while (static_cast<int64_t>(seen.size()) < num_items) {
    std::vector<int32_t> id;
    for (int64_t size : level_sizes) id.push_back(static_cast<int32_t>(random.below(size)));
    if (seen.insert(id).second) codes.insert(codes.end(), id.begin(), id.end());
  }
  return SemanticIds(level_sizes, codes);
}

TEST(SemanticIdsTest, LaysTheLevelsOutAfterTheSpecialToken) {
  const SemanticIds ids({4, 3}, {3, 2, 0, 0, 1, 2});
  EXPECT_EQ(ids.num_items(), 3);
  EXPECT_EQ(ids.num_levels(), 2);
  EXPECT_EQ(ids.bos_token(), 0);
  EXPECT_EQ(ids.level_begin(0), 1);
  EXPECT_EQ(ids.level_begin(1), 5);
  EXPECT_EQ(ids.level_bounds(), (std::vector<int32_t>{1, 5, 8}));
  EXPECT_EQ(ids.vocab_size(), 8);
  EXPECT_EQ(ids.padded_vocab_size(), 512);
  EXPECT_EQ(ids.token(0, 0), 4);
  EXPECT_EQ(ids.token(0, 1), 7);
  EXPECT_EQ(ids.token(2, 1), 7);
  EXPECT_EQ(ids.codes(2)[0], 1);
  EXPECT_EQ(ids.codes(2)[1], 2);
}

TEST(SemanticIdsTest, StandsBehindTheTokensOfText) {
  const SemanticIds ids = SemanticIds({4, 3}, {3, 2, 0, 0}).after_text(1000);
  EXPECT_EQ(ids.num_text_tokens(), 1000);
  EXPECT_EQ(ids.bos_token(), 1000);
  EXPECT_EQ(ids.level_bounds(), (std::vector<int32_t>{1001, 1005, 1008}));
  EXPECT_EQ(ids.token(0, 1), 1007);
  EXPECT_EQ(ids.vocab_size(), 1008);
  EXPECT_EQ(ids.padded_vocab_size(), 1024);
  EXPECT_EQ(ids.token_ranges().front().name, "text");
  EXPECT_EQ(ids.token_ranges()[1].begin, 1000);
  EXPECT_EQ(ids.after_text(0).bos_token(), 0);
  const SemanticIds only_text = SemanticIds().after_text(600);
  EXPECT_EQ(only_text.vocab_size(), 600);
  EXPECT_EQ(only_text.padded_vocab_size(), 1024);
  EXPECT_EQ(only_text.token_ranges().size(), 2u);
  EXPECT_THROW(ids.after_text(-1), Error);
  EXPECT_THROW(ids.after_text(int64_t{1} << 31), Error);
}

TEST(SemanticIdsTest, TokenRangesCoverThePaddedVocabularyWithoutGaps) {
  const SemanticIds ids = random_ids({256, 256, 256, 8}, 100, 1);
  int64_t next = 0;
  std::vector<std::string> names;
  for (const TokenRange& range : ids.token_ranges()) {
    EXPECT_EQ(range.begin, next) << range.name;
    next += range.size;
    names.push_back(range.name);
  }
  EXPECT_EQ(next, 1024);
  EXPECT_EQ(names, (std::vector<std::string>{"special", "level_0", "level_1", "level_2", "level_3",
                                             "padding"}));
}

TEST(SemanticIdsTest, PadsTheVocabularyToWholeMultiples) {
  EXPECT_EQ(SemanticIds({510}, {0}).padded_vocab_size(), 512);
  EXPECT_EQ(SemanticIds({511}, {0}).padded_vocab_size(), 512);
  EXPECT_EQ(SemanticIds({512}, {0}).padded_vocab_size(), 1024);
  EXPECT_EQ(SemanticIds({512}, {0}).token_ranges().back().size, 511);
}

TEST(SemanticIdsTest, RefusesTwoItemsOfOneIdAndNamesThem) {
  EXPECT_EQ(message_of({4, 4}, {1, 2, 3, 3, 0, 0, 1, 2}),
            "items 0 and 3 share the semantic ID [1, 2], wanted a different one each");
}

TEST(SemanticIdsTest, LetsItemsShareAnIdByPriority) {
  const SemanticIds ids({4, 4}, {1, 2, 3, 3, 1, 2, 0, 0, 1, 2}, {2, 0, 0, 0, 1});
  EXPECT_EQ(ids.priority(0), 2);
  EXPECT_EQ(ids.items_by_id(), (std::vector<int32_t>{3, 2, 4, 0, 1}));
  const SemanticIds unique({4, 4}, {1, 2, 3, 3, 0, 3});
  EXPECT_EQ(unique.priority(2), 0);
  EXPECT_EQ(unique.items_by_id(), (std::vector<int32_t>{2, 0, 1}));
}

TEST(SemanticIdsTest, RefusesPrioritiesThatDoNotNumberTheItemsOfAnId) {
  EXPECT_EQ(message_of({4}, {1, 3, 1}, {0, 0, 0}),
            "item 2 has priority 0 among the 2 items of the semantic ID [1], wanted each of 0 to 1 "
            "once");
  EXPECT_EQ(message_of({4}, {1, 3, 1}, {1, 0, 2}),
            "item 2 has priority 2 among the 2 items of the semantic ID [1], wanted each of 0 to 1 "
            "once");
  EXPECT_EQ(message_of({4}, {1, 3}, {0, -1}),
            "item 1 has priority -1 among the 1 items of the semantic ID [3], wanted each of 0 to "
            "0 once");
  EXPECT_EQ(message_of({4}, {1, 3}, {0}), "1 priorities for 2 items");
}

TEST(SemanticIdTrieTest, ALeafHoldsTheItemsOfAnIdByPriority) {
  const SemanticIdTrie trie(SemanticIds({4, 4}, {1, 2, 3, 3, 1, 2, 1, 0, 1, 2}, {2, 0, 0, 0, 1}));
  ASSERT_EQ(trie.num_nodes(1), 2);
  ASSERT_EQ(trie.num_nodes(2), 3);
  const std::vector<std::vector<int32_t>> expected = {{3}, {2, 4, 0}, {1}};
  for (int64_t leaf = 0; leaf < 3; ++leaf) {
    const auto items = trie.items(leaf);
    EXPECT_EQ(std::vector<int32_t>(items.begin(), items.end()), expected[leaf]) << leaf;
  }
}

TEST(SemanticIdsTest, RefusesACodeOutOfRange) {
  EXPECT_EQ(message_of({4, 4}, {1, 2, 3, 4}), "item 1 has code 4 at level 1, wanted 0 to 3");
  EXPECT_EQ(message_of({4, 4}, {-1, 2}), "item 0 has code -1 at level 0, wanted 0 to 3");
}

TEST(SemanticIdsTest, RefusesLevelsThatCannotBe) {
  EXPECT_EQ(message_of({}, {}), "semantic IDs need at least one level");
  EXPECT_EQ(message_of({4, 0}, {}), "level 1 of the semantic IDs has size 0, wanted at least 1");
  EXPECT_EQ(message_of({4, 4}, {1, 2, 3}), "3 codes do not make whole semantic IDs of 2 levels");
  EXPECT_EQ(
      message_of({int64_t{1} << 31}, {}),
      "level 0 of the semantic IDs has size 2147483648: the vocabulary would have more tokens "
      "than fit in 32 bits");
}

TEST(SemanticIdTrieTest, OfNoItemsHasOnlyARoot) {
  const SemanticIdTrie trie(SemanticIds({4, 4}, {}));
  EXPECT_EQ(trie.num_nodes(0), 1);
  EXPECT_EQ(trie.num_nodes(1), 0);
  EXPECT_EQ(trie.num_nodes(2), 0);
  EXPECT_TRUE(trie.children(0, 0).tokens.empty());
}

TEST(SemanticIdTrieTest, OfOneItemIsAPath) {
  const SemanticIdTrie trie(SemanticIds({4, 5, 6}, {3, 0, 5}));
  const int32_t tokens[] = {4, 5, 15};
  for (int64_t depth = 0; depth < 3; ++depth) {
    ASSERT_EQ(trie.num_nodes(depth), 1);
    ASSERT_EQ(trie.children(depth, 0).tokens.size(), 1u);
    EXPECT_EQ(trie.children(depth, 0).tokens[0], tokens[depth]);
    EXPECT_EQ(trie.children(depth, 0).first_node, 0);
  }
  EXPECT_EQ(trie.items(0).size(), 1u);
  EXPECT_EQ(trie.items(0)[0], 0);
}

/// Walks the trie beside a map from every prefix to the tokens that may follow it.
void compare_with_prefix_map(const SemanticIds& ids) {
  std::map<std::vector<int32_t>, std::set<int32_t>> next_tokens;
  std::map<std::vector<int32_t>, int32_t> items;
  next_tokens[{}];
  for (int32_t item = 0; item < ids.num_items(); ++item) {
    std::vector<int32_t> prefix;
    for (int64_t level = 0; level < ids.num_levels(); ++level) {
      next_tokens[prefix].insert(ids.token(item, level));
      prefix.push_back(ids.token(item, level));
    }
    items[prefix] = item;
  }

  const SemanticIdTrie trie(ids);
  std::vector<std::vector<int32_t>> prefixes{{}};  // of the nodes of one depth, in their order
  for (int64_t depth = 0; depth < ids.num_levels(); ++depth) {
    ASSERT_EQ(trie.num_nodes(depth), static_cast<int64_t>(prefixes.size()));
    std::vector<std::vector<int32_t>> longer;
    for (size_t node = 0; node < prefixes.size(); ++node) {
      const auto children = trie.children(depth, static_cast<int64_t>(node));
      const std::set<int32_t>& expected = next_tokens.at(prefixes[node]);
      ASSERT_EQ(std::vector<int32_t>(children.tokens.begin(), children.tokens.end()),
                std::vector<int32_t>(expected.begin(), expected.end()));
      ASSERT_EQ(children.first_node, static_cast<int64_t>(longer.size()));
      for (int32_t token : children.tokens) {
        longer.push_back(prefixes[node]);
        longer.back().push_back(token);
      }
    }
    prefixes = std::move(longer);
  }
  ASSERT_EQ(prefixes.size(), items.size());
  for (size_t node = 0; node < prefixes.size(); ++node) {
    ASSERT_EQ(trie.items(static_cast<int64_t>(node)).size(), 1u);
    ASSERT_EQ(trie.items(static_cast<int64_t>(node))[0], items.at(prefixes[node]));
  }
}

TEST(SemanticIdTrieTest, EqualsAMapOfPrefixes) {
  compare_with_prefix_map(random_ids({2, 2, 2}, 8, 1));  // every ID that there is
  compare_with_prefix_map(random_ids({7, 1, 5}, 20, 2));
  compare_with_prefix_map(random_ids({256, 256, 256, 8}, 3000, 3));
  compare_with_prefix_map(random_ids({3, 4, 50}, 333, 4));
}

TEST(SemanticIdTrieTest, OfOneLevelListsTheItems) {
  compare_with_prefix_map(random_ids({50}, 50, 5));
}

}  // namespace
}  // namespace mirabelle
