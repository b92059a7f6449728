#include "mirabelle/evaluation/metrics.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "mirabelle/core/error.h"
#include "mirabelle/core/random.h"
#include "mirabelle/evaluation/evaluation_config.h"

namespace mirabelle {
namespace {

using Items = std::vector<int32_t>;
using Doubles = std::vector<double>;

const std::vector<int64_t> kTopK = {5, 10};

/// By name, for one user.
double figure(const Doubles& ranks, const std::string& name, std::vector<int64_t> top_k = kTopK,
              int64_t list_length = 50) {
  const std::vector<std::string> names = figure_names(top_k);
  const auto place = std::find(names.begin(), names.end(), name);
  EXPECT_NE(place, names.end()) << name;
  return user_figures(ranks, top_k, list_length).at(place - names.begin());
}

TEST(MetricsTest, NamesTheFiguresOfEveryListLength) {
  EXPECT_EQ(figure_names(kTopK),
            (std::vector<std::string>{"recall@5", "hit_rate@5", "ndcg@5", "recall@10",
                                      "hit_rate@10", "ndcg@10", "mrr"}));
}

TEST(MetricsTest, RanksTargetsByTheirPlaceInTheList) {
  EXPECT_EQ(target_ranks(Items{7, 3, 9}, Items{9, 7, 4}), (Doubles{3, 1, kNotRanked}));
  EXPECT_EQ(target_ranks(Items{}, Items{1}), (Doubles{kNotRanked}));
  EXPECT_EQ(target_ranks(Items{1}, Items{}), Doubles{});
}

TEST(MetricsTest, OneTargetInThirdPlace) {
  EXPECT_DOUBLE_EQ(figure({3}, "recall@5"), 1);
  EXPECT_DOUBLE_EQ(figure({3}, "hit_rate@5"), 1);
  EXPECT_DOUBLE_EQ(figure({3}, "ndcg@5"), 0.5);  // 1 / log2(4)
  EXPECT_DOUBLE_EQ(figure({3}, "mrr"), 1.0 / 3);
}

TEST(MetricsTest, ATargetBehindTheFirstKIsAMissThere) {
  EXPECT_DOUBLE_EQ(figure({7}, "recall@5"), 0);
  EXPECT_DOUBLE_EQ(figure({7}, "ndcg@5"), 0);
  EXPECT_DOUBLE_EQ(figure({7}, "recall@10"), 1);
  EXPECT_DOUBLE_EQ(figure({7}, "ndcg@10"), 1.0 / 3);  // 1 / log2(8)
}

TEST(MetricsTest, TheLastOfTheFirstKCountsAndTheNextDoesNot) {
  EXPECT_DOUBLE_EQ(figure({5}, "recall@5"), 1);
  EXPECT_DOUBLE_EQ(figure({6}, "recall@5"), 0);
  EXPECT_DOUBLE_EQ(figure({10}, "hit_rate@10"), 1);
  EXPECT_DOUBLE_EQ(figure({11}, "hit_rate@10"), 0);
}

TEST(MetricsTest, SeveralTargetsPartRecallFromHitRate) {
  const Doubles ranks = {1, 4, 8, kNotRanked};
  EXPECT_DOUBLE_EQ(figure(ranks, "recall@5"), 0.5);
  EXPECT_DOUBLE_EQ(figure(ranks, "hit_rate@5"), 1);
  EXPECT_DOUBLE_EQ(figure(ranks, "recall@10"), 0.75);
  const double ideal = 1 + 1 / std::log2(3.0) + 1 / std::log2(4.0) + 1 / std::log2(5.0);
  EXPECT_DOUBLE_EQ(figure(ranks, "ndcg@5"), (1 + 1 / std::log2(5.0)) / ideal);
  EXPECT_DOUBLE_EQ(figure(ranks, "ndcg@10"), (1 + 1 / std::log2(5.0) + 1 / std::log2(9.0)) / ideal);
  EXPECT_DOUBLE_EQ(figure(ranks, "mrr"), 1);
}

TEST(MetricsTest, ThePerfectListOfManyTargetsHasNdcgOneThoughRecallCannot) {
  const Doubles ranks = {1, 2, 3, 4, 5, 6};
  EXPECT_DOUBLE_EQ(figure(ranks, "ndcg@5"), 1);
  EXPECT_DOUBLE_EQ(figure(ranks, "recall@5"), 5.0 / 6);
}

TEST(MetricsTest, NothingFoundGivesZeros) {
  for (double value : user_figures(Doubles{kNotRanked, kNotRanked}, kTopK, 50)) EXPECT_EQ(value, 0);
}

TEST(MetricsTest, NoTargetsGiveZeros) {
  for (double value : user_figures({}, kTopK, 50)) EXPECT_EQ(value, 0);
}

TEST(MetricsTest, ReciprocalRankEndsWithTheList) {
  EXPECT_DOUBLE_EQ(figure({20}, "mrr", kTopK, 20), 0.05);
  EXPECT_DOUBLE_EQ(figure({21}, "mrr", kTopK, 20), 0);
}

TEST(MetricsTest, EqualScoresShareTheirMeanRank) {
  EXPECT_DOUBLE_EQ(shared_rank(0, 0), 1);
  EXPECT_DOUBLE_EQ(shared_rank(3, 0), 4);
  EXPECT_DOUBLE_EQ(shared_rank(0, 1), 1.5);  // first and second
  EXPECT_DOUBLE_EQ(shared_rank(4, 4), 7);    // fifth to ninth
}

TEST(MetricsTest, ASharedRankJustBehindKCountsWithItsOwnGain) {
  EXPECT_DOUBLE_EQ(figure({10.5}, "recall@10"), 1);
  EXPECT_DOUBLE_EQ(figure({10.5}, "ndcg@10"), 1 / std::log2(11.5));
  EXPECT_DOUBLE_EQ(figure({11}, "recall@10"), 0);
}

TEST(MetricsTest, NdcgNeverExceedsOneWhenTargetsShareRanks) {
  EXPECT_DOUBLE_EQ(figure({1.5, 1.5}, "ndcg@1", {1}), 1);
  EXPECT_LE(figure({1.5, 1.5}, "ndcg@5"), 1);
}

/// A table in which user u has the value `of_user(u)`.
template <typename OfUser>
FigureTable table_of(int64_t num_users, const OfUser& of_user) {
  FigureTable table{.num_figures = 1, .users = {}, .values = {}};
  for (int64_t user = 0; user < num_users; ++user) {
    table.add(user, Doubles{static_cast<double>(of_user(user))});
  }
  return table;
}

Figure summary_of(const FigureTable& table, int64_t num_samples, int64_t seed = 0) {
  return summarise(table, num_samples, seed, *make_self_communicator()).at(0);
}

TEST(SummaryTest, TheMeanIsTheMean) {
  const Figure figure = summary_of(table_of(7, [](int64_t u) { return u / 8.0; }), 0);
  EXPECT_DOUBLE_EQ(figure.mean, 21.0 / 8 / 7);
  EXPECT_DOUBLE_EQ(figure.low, figure.mean);
  EXPECT_DOUBLE_EQ(figure.high, figure.mean);
}

TEST(SummaryTest, NoUsersGiveZeros) {
  const Figure figure = summary_of(table_of(0, [](int64_t) { return 1; }), 100);
  EXPECT_EQ(figure.mean, 0);
  EXPECT_EQ(figure.low, 0);
  EXPECT_EQ(figure.high, 0);
}

TEST(SummaryTest, EqualUsersLeaveNoDoubt) {
  const Figure figure = summary_of(table_of(50, [](int64_t) { return 0.25; }), 200);
  EXPECT_DOUBLE_EQ(figure.low, 0.25);
  EXPECT_DOUBLE_EQ(figure.high, 0.25);
}

TEST(SummaryTest, TheIntervalOfABernoulliSampleIsTheTextbookOne) {
  // 400 of 4,000 users hit: standard error sqrt(p (1 - p) / n), 1.96 of it to either side. The ends
  // themselves are estimates, so several seeds are averaged.
  const FigureTable table = table_of(4000, [](int64_t u) { return u % 10 == 0; });
  const double half = 1.96 * std::sqrt(0.1 * 0.9 / 4000);
  double low = 0, high = 0;
  for (int64_t seed = 0; seed < 6; ++seed) {
    const Figure figure = summary_of(table, 1500, seed);
    EXPECT_DOUBLE_EQ(figure.mean, 0.1);
    low += figure.low / 6;
    high += figure.high / 6;
  }
  EXPECT_NEAR(low, 0.1 - half, 0.06 * half);
  EXPECT_NEAR(high, 0.1 + half, 0.06 * half);
}

TEST(SummaryTest, TheIntervalShrinksWithTheRootOfTheUsers) {
  const auto width = [](int64_t num_users) {
    const Figure f = summary_of(table_of(num_users, [](int64_t u) { return u % 2; }), 2000);
    return f.high - f.low;
  };
  EXPECT_NEAR(width(500) / width(8000), 4, 0.3);
}

TEST(SummaryTest, ResamplingIsReproducibleAndSeeded) {
  const FigureTable table = table_of(300, [](int64_t u) { return u % 3 == 0; });
  const Figure a = summary_of(table, 500, 1), b = summary_of(table, 500, 1);
  const Figure c = summary_of(table, 500, 2);
  EXPECT_EQ(a.low, b.low);
  EXPECT_EQ(a.high, b.high);
  EXPECT_NE(std::pair(a.low, a.high), std::pair(c.low, c.high));
}

TEST(SummaryTest, TheOrderOfUsersDoesNotMatter) {
  FigureTable forward{.num_figures = 2, .users = {}, .values = {}}, shuffled = forward;
  std::vector<int64_t> order(257);
  std::iota(order.begin(), order.end(), 0);
  const auto fill = [&](FigureTable& table) {
    for (int64_t u : order) table.add(u, Doubles{1.0 / static_cast<double>(u + 1), u % 5 / 7.0});
  };
  fill(forward);
  Random(random_key(3, "test")).shuffle(order);
  fill(shuffled);
  const auto self = make_self_communicator();
  const auto a = summarise(forward, 101, 5, *self), b = summarise(shuffled, 101, 5, *self);
  for (int f = 0; f < 2; ++f) {
    EXPECT_EQ(a[f].mean, b[f].mean);
    EXPECT_EQ(a[f].low, b[f].low);
    EXPECT_EQ(a[f].high, b[f].high);
  }
}

TEST(SummaryTest, DifferencesAreResampledInPairs) {
  // b is a less a constant: the difference is certain although both means are not.
  const FigureTable a = table_of(500, [](int64_t u) { return 0.5 + 0.5 * (u % 2); });
  const FigureTable b = table_of(500, [](int64_t u) { return 0.25 + 0.5 * (u % 2); });
  const Figure difference = summarise_difference(a, b, 200, 0, *make_self_communicator()).at(0);
  EXPECT_DOUBLE_EQ(difference.mean, 0.25);
  EXPECT_NEAR(difference.low, 0.25, 1e-12);
  EXPECT_NEAR(difference.high, 0.25, 1e-12);
}

TEST(SummaryTest, RefusesTheDifferenceOfOtherUsers) {
  const FigureTable a = table_of(5, [](int64_t) { return 1; });
  const FigureTable b = table_of(6, [](int64_t) { return 1; });
  EXPECT_THROW(summarise_difference(a, b, 0, 0, *make_self_communicator()), Error);
}

TEST(SummaryTest, RefusesARowOfTheWrongWidth) {
  FigureTable table{.num_figures = 2, .users = {}, .values = {}};
  EXPECT_THROW(table.add(0, Doubles{1}), Error);
}

TEST(PopularityBandsTest, CutsTheTrainingEventsInThirds) {
  // 30 events: 10 | 6 + 4 | 3 + 3 + 2 + 1 + 1, and one item that never trained
  const std::vector<int64_t> counts = {1, 10, 3, 0, 6, 4, 3, 2, 1};
  const std::vector<Band> bands = popularity_bands(counts);
  EXPECT_EQ(bands[1], Band::kHead);
  EXPECT_EQ(bands[4], Band::kTorso);
  EXPECT_EQ(bands[5], Band::kTorso);
  for (int item : {0, 2, 6, 7, 8}) EXPECT_EQ(bands[item], Band::kTail) << item;
  EXPECT_EQ(bands[3], Band::kUnseen);
}

TEST(PopularityBandsTest, NeverPartsEqualCounts) {
  const std::vector<Band> bands = popularity_bands(std::vector<int64_t>(9, 2));
  for (Band band : bands) EXPECT_EQ(band, Band::kHead);
}

TEST(PopularityBandsTest, WithoutEventsAllItemsAreUnseen) {
  EXPECT_TRUE(popularity_bands({}).empty());
  EXPECT_EQ(popularity_bands(std::vector<int64_t>{0, 0}), (std::vector<Band>(2, Band::kUnseen)));
}

TEST(EvaluationConfigTest, RefusesABeamNarrowerThanK) {
  EvaluationConfig config;
  config.check();
  config.beam_size = 9;
  EXPECT_THROW(config.check(), Error);
}

TEST(EvaluationConfigTest, NamesTheFieldThatIsWrong) {
  const auto message = [](auto&& change) {
    EvaluationConfig config;
    change(config);
    try {
      config.check();
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kUsage);
      return std::string(error.what());
    }
    return std::string();
  };
  const auto expect = [&](const std::string& field, auto&& change) {
    EXPECT_NE(message(change).find("evaluation." + field), std::string::npos) << message(change);
  };
  expect("split", [](EvaluationConfig& c) { c.split = "train"; });
  expect("mode", [](EvaluationConfig& c) { c.mode = "greedy"; });
  expect("top_k", [](EvaluationConfig& c) { c.top_k = {10, 5}; });
  expect("top_k", [](EvaluationConfig& c) { c.top_k = {5, 5}; });
  expect("top_k", [](EvaluationConfig& c) { c.top_k = {}; });
  expect("top_k", [](EvaluationConfig& c) { c.top_k = {0, 5}; });
  expect("max_users", [](EvaluationConfig& c) { c.max_users = -1; });
  expect("batch_users", [](EvaluationConfig& c) { c.batch_users = 0; });
  expect("bootstrap_samples", [](EvaluationConfig& c) { c.bootstrap_samples = -1; });
}

}  // namespace
}  // namespace mirabelle
