#include "mirabelle/evaluation/baselines.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>

#include "mirabelle/core/error.h"
#include "mirabelle/core/random.h"
#include "mirabelle/evaluation/metrics.h"

namespace mirabelle {
namespace {

using Items = std::vector<int32_t>;
using Doubles = std::vector<double>;

// counts: item 0 four times, 1 three, 2 two, 3 two, 4 one, 5 never
const std::vector<Items> kHistories = {{0, 1, 2}, {0, 1, 3}, {0, 2}, {0, 4, 1, 3}};

TEST(CountingBaselinesTest, PopularityCountsEvents) {
  const CountingBaselines baselines(6, kHistories);
  EXPECT_EQ(baselines.popularity(), (std::vector<int64_t>{4, 3, 2, 2, 1, 0}));
}

TEST(CountingBaselinesTest, PopularityRanksShareTies) {
  const CountingBaselines baselines(6, kHistories);
  EXPECT_EQ(baselines.popularity_ranks(Items{0, 1, 2, 3, 4, 5}, {}),
            (Doubles{1, 2, 3.5, 3.5, 5, 6}));
}

TEST(CountingBaselinesTest, ExcludedItemsDoNotCompete) {
  const CountingBaselines baselines(6, kHistories);
  EXPECT_EQ(baselines.popularity_ranks(Items{1, 2, 3, 4}, Items{0, 2}),
            (Doubles{1, kNotRanked, 2, 3}));
}

TEST(CountingBaselinesTest, MarkovRanksByNextItemsThenPopularity) {
  const CountingBaselines baselines(6, kHistories);
  // After 0: item 1 twice, 2 and 4 once (2 is the more popular); then 0, 3, 5 by popularity.
  EXPECT_EQ(baselines.markov_ranks(0, Items{0, 1, 2, 3, 4, 5}, {}), (Doubles{4, 1, 2, 5, 3, 6}));
}

TEST(CountingBaselinesTest, MarkovWithoutLastItemIsPopularity) {
  const CountingBaselines baselines(6, kHistories);
  const Items all = {0, 1, 2, 3, 4, 5};
  EXPECT_EQ(baselines.markov_ranks(-1, all, {}), baselines.popularity_ranks(all, {}));
  EXPECT_EQ(baselines.markov_ranks(5, all, {}), baselines.popularity_ranks(all, {}));  // no row
}

TEST(CountingBaselinesTest, AgreesWithSortingAllScores) {
  // The same ranks from dense tables of scores, over random histories with many ties.
  constexpr int kItems = 23;
  Random random(random_key(11, "baselines test"));
  std::vector<Items> histories(40);
  std::vector<int> count(kItems, 0);
  std::map<std::pair<int, int>, int> next;
  for (Items& history : histories) {
    for (int64_t i = random.below(9); i >= 0; --i) {
      history.push_back(static_cast<int32_t>(random.below(kItems)));
      ++count[history.back()];
      if (history.size() > 1) ++next[{history[history.size() - 2], history.back()}];
    }
  }
  const CountingBaselines baselines(kItems, histories);
  for (int trial = 0; trial < 200; ++trial) {
    const auto last = static_cast<int32_t>(random.below(kItems));
    Items excluded;
    for (int32_t item = 0; item < kItems; ++item) {
      if (random.uniform() < 0.2) excluded.push_back(item);
    }
    const auto target = static_cast<int32_t>(random.below(kItems));
    const bool reachable = !std::binary_search(excluded.begin(), excluded.end(), target);
    const auto expected = [&](auto&& score) {
      double better = 0, equal = 0;
      for (int32_t item = 0; item < kItems; ++item) {
        if (item == target || std::binary_search(excluded.begin(), excluded.end(), item)) continue;
        better += score(item) > score(target);
        equal += score(item) == score(target);
      }
      return reachable ? 1 + better + equal / 2 : kNotRanked;
    };
    EXPECT_EQ(baselines.popularity_ranks(Items{target}, excluded).at(0),
              expected([&](int32_t item) { return count[item]; }));
    EXPECT_EQ(baselines.markov_ranks(last, Items{target}, excluded).at(0),
              expected([&](int32_t item) {
                return 1000 * next[{last, item}] + count[item];
              }));
  }
}

TEST(CountingBaselinesTest, RefusesAnUnknownItem) {
  EXPECT_THROW(CountingBaselines(3, std::vector<Items>{{0, 3}}), Error);
  EXPECT_THROW(CountingBaselines(3, std::vector<Items>{{-1}}), Error);
}

}  // namespace
}  // namespace mirabelle
