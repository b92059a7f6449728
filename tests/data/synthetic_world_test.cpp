#include "mirabelle/data/synthetic_world.h"

#include <gtest/gtest.h>
#include <omp.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <fstream>
#include <functional>
#include <iterator>
#include <map>
#include <numeric>
#include <set>
#include <sstream>
#include <thread>

#include "mirabelle/core/error.h"
#include "mirabelle/data/bayes_filter.h"
#include "mirabelle/data/corpus.h"
#include "mirabelle/data/synthetic_corpus.h"

namespace mirabelle {
namespace {

namespace fs = std::filesystem;

SyntheticWorldConfig tiny_config() {
  SyntheticWorldConfig config;
  config.num_users = 300;
  config.num_items = 30;
  config.min_events = 4;
  config.max_events = 9;
  config.branching = {2, 3};
  return config;
}

/// The default's law in a smaller world.
SyntheticWorldConfig small_config() {
  SyntheticWorldConfig config;
  config.num_users = 6000;
  config.num_items = 1280;
  config.branching = {8, 8};
  return config;
}

class SyntheticCorpusTest : public ::testing::Test {
 protected:
  SyntheticCorpusTest()
      : folder_(fs::path(::testing::TempDir()) /
                ("synthetic_" +
                 std::string(::testing::UnitTest::GetInstance()->current_test_info()->name()))) {
    fs::remove_all(folder_);
  }
  ~SyntheticCorpusTest() override { fs::remove_all(folder_); }

  fs::path folder_;
};

/// All files of a folder, by name.
std::map<std::string, std::string> contents(const fs::path& folder) {
  std::map<std::string, std::string> files;
  for (const auto& entry : fs::directory_iterator(folder)) {
    std::ostringstream text;
    text << std::ifstream(entry.path(), std::ios::binary).rdbuf();
    files[entry.path().filename().string()] = text.str();
  }
  return files;
}

/// The law written out as a plain hidden Markov model, from its description only, with every sum
/// over hidden paths done term by term.
class Enumeration {
 public:
  Enumeration(const SyntheticWorld& world, std::vector<int32_t> history)
      : world_(world),
        config_(world.config()),
        history_(std::move(history)),
        joint_(config_.num_items) {}

  /// P(next item | history).
  std::vector<double> predict() {
    for (int64_t leaf = 0; leaf < world_.num_leaves(); ++leaf) {
      for (int64_t direction = 0; direction < 4; ++direction) {
        extend(0, leaf, direction, world_.leaf_probability(leaf) / 4);
      }
    }
    const double total = std::accumulate(joint_.begin(), joint_.end(), 0.0);
    for (double& probability : joint_) probability /= total;
    return joint_;
  }

 private:
  /// The path so far, which ends in this state at this event, has this joint probability with the
  /// events before.
  void extend(size_t event, int64_t leaf, int64_t direction, double probability) {
    if (event == history_.size()) {
      for (int64_t item = 0; item < config_.num_items; ++item) {
        joint_[item] += probability * emission(event, leaf, item);
      }
      return;
    }
    probability *= emission(event, leaf, history_[event]);
    for (int64_t next_leaf = 0; next_leaf < world_.num_leaves(); ++next_leaf) {
      for (int64_t next_direction = 0; next_direction < 4; ++next_direction) {
        const double p = transition(leaf, direction, next_leaf, next_direction);
        if (p > 0) extend(event + 1, next_leaf, next_direction, probability * p);
      }
    }
  }

  double transition(int64_t leaf, int64_t direction, int64_t next_leaf,
                    int64_t next_direction) const {
    const double turn = config_.turn_probability / 4 +
                        (direction == next_direction ? 1 - config_.turn_probability : 0);
    // Leaf = 3 x parent + child; directions: parent forward, back, child forward, back.
    const int64_t parent = leaf / 3, child = leaf % 3;
    const int64_t neighbours[] = {(parent + 1) % 2 * 3 + child, (parent + 1) % 2 * 3 + child,
                                  parent * 3 + (child + 1) % 3, parent * 3 + (child + 2) % 3};
    double move = config_.jump_probability * world_.leaf_probability(next_leaf);
    if (next_leaf == leaf) move += config_.stay_probability;
    if (next_leaf == neighbours[next_direction]) {
      move += 1 - config_.stay_probability - config_.jump_probability;
    }
    return turn * move;
  }

  double draw(int64_t leaf, int64_t item) const {
    const double from_leaf = world_.leaf_of(item) == leaf ? world_.probability_in_leaf(item) : 0.0;
    return (1 - config_.exploration_probability) * from_leaf +
           config_.exploration_probability * world_.popularity(item);
  }

  /// P(item | leaf, not among the first `event` items of the history).
  double emission(size_t event, int64_t leaf, int64_t item) const {
    const std::set<int64_t> seen(history_.begin(), history_.begin() + event);
    if (seen.contains(item)) return 0;
    double unseen = 0;
    for (int64_t other = 0; other < config_.num_items; ++other) {
      if (!seen.contains(other)) unseen += draw(leaf, other);
    }
    return draw(leaf, item) / unseen;
  }

  const SyntheticWorld& world_;
  const SyntheticWorldConfig& config_;
  std::vector<int32_t> history_;
  std::vector<double> joint_;
};

TEST(SyntheticWorldTest, ItemsOfALeafFollowZipfAndLeavesPartitionTheCatalogue) {
  SyntheticWorldConfig config = tiny_config();
  config.num_items = 31;  // not a multiple of the leaves
  config.item_exponent = 1.5;
  const SyntheticWorld world(config);
  std::set<int32_t> all;
  double popularity = 0;
  for (int64_t leaf = 0; leaf < 6; ++leaf) {
    const auto items = world.items_of(leaf);
    ASSERT_GE(items.size(), 5u);
    double total = 0;
    for (size_t rank = 0; rank < items.size(); ++rank) {
      EXPECT_TRUE(all.insert(items[rank]).second);
      EXPECT_EQ(world.leaf_of(items[rank]), leaf);
      EXPECT_NEAR(world.probability_in_leaf(items[rank]) / world.probability_in_leaf(items[0]),
                  std::pow(rank + 1.0, -1.5), 1e-14);
      total += world.probability_in_leaf(items[rank]);
      popularity += world.popularity(items[rank]);
    }
    EXPECT_NEAR(total, 1, 1e-14);
  }
  EXPECT_EQ(all.size(), 31u);
  EXPECT_NEAR(popularity, 1, 1e-14);
  std::vector<double> leaves;
  for (int64_t leaf = 0; leaf < 6; ++leaf) leaves.push_back(world.leaf_probability(leaf));
  std::sort(leaves.rbegin(), leaves.rend());
  for (int64_t rank = 0; rank < 6; ++rank) {
    EXPECT_NEAR(leaves[rank] / leaves[0], std::pow(rank + 1.0, -0.5), 1e-14);
  }
}

TEST(SyntheticWorldTest, NeighboursAreSiblingsAlongTheRingOfOneLevel) {
  const SyntheticWorld world(tiny_config());
  ASSERT_EQ(world.num_leaves(), 6);
  ASSERT_EQ(world.num_directions(), 4);
  const int64_t expected[6][4] = {{3, 3, 1, 2}, {4, 4, 2, 0}, {5, 5, 0, 1},
                                  {0, 0, 4, 5}, {1, 1, 5, 3}, {2, 2, 3, 4}};
  for (int64_t leaf = 0; leaf < 6; ++leaf) {
    for (int64_t direction = 0; direction < 4; ++direction) {
      EXPECT_EQ(world.neighbour(leaf, direction), expected[leaf][direction]);
    }
  }
}

TEST(SyntheticWorldTest, TitlesNameThePathAndTheRank) {
  SyntheticWorldConfig config;
  config.branching = {8, 8, 4};  // leaves of 20 items
  const SyntheticWorld world(config);
  EXPECT_EQ(world.title(world.items_of((2 * 8 + 0) * 4 + 3)[16]), "cluster 3.1.4 item 17");
  EXPECT_EQ(world.title(world.items_of(0)[0]), "cluster 1.1.1 item 1");
  EXPECT_EQ(world.title(world.items_of(255)[19]), "cluster 8.8.4 item 20");
}

TEST(SyntheticWorldTest, HistoriesKeepTheirBoundsNeverRepeatAndTimesIncrease) {
  const SyntheticWorld world(tiny_config());
  std::set<size_t> lengths;
  for (int64_t user = 0; user < 300; ++user) {
    const auto drawn = world.draw_user(user);
    lengths.insert(drawn.items.size());
    const std::set<int32_t> distinct(drawn.items.begin(), drawn.items.end());
    EXPECT_EQ(distinct.size(), drawn.items.size());
    EXPECT_GE(drawn.timestamps[0], 1577836800);
    for (size_t event = 1; event < drawn.items.size(); ++event) {
      EXPECT_GT(drawn.timestamps[event], drawn.timestamps[event - 1]);
    }
  }
  EXPECT_EQ(lengths, (std::set<size_t>{4, 5, 6, 7, 8, 9}));
}

TEST(SyntheticWorldTest, UsersAndItemsDoNotDependOnTheNumberOfUsers) {
  SyntheticWorldConfig config = tiny_config();
  const SyntheticWorld world(config);
  config.num_users = 100000;
  const SyntheticWorld larger(config);
  for (int64_t user = 0; user < 300; ++user) {
    EXPECT_EQ(world.draw_user(user).items, larger.draw_user(user).items);
    EXPECT_EQ(world.draw_user(user).timestamps, larger.draw_user(user).timestamps);
  }
  for (const auto& source : world.feature_sources()) {
    EXPECT_EQ(world.draw_features(source, 0, 30), larger.draw_features(source, 0, 30));
  }
}

TEST(SyntheticWorldTest, FirstItemsFollowThePopularity) {
  const SyntheticWorld world(tiny_config());
  constexpr int64_t kUsers = 60000;
  std::vector<double> counts(30);
  for (int64_t user = 0; user < kUsers; ++user) ++counts[world.draw_user(user).items[0]];
  double chi_square = 0;
  for (int64_t item = 0; item < 30; ++item) {
    const double expected = kUsers * world.popularity(item);
    chi_square += (counts[item] - expected) * (counts[item] - expected) / expected;
  }
  EXPECT_LT(chi_square, 29 + 5 * std::sqrt(2 * 29.0));
}

/// Counts of an event whose probability differs from trial to trial.
struct Trials {
  double count = 0, expected = 0, variance = 0;
  void add(bool happened, double probability) {
    count += happened;
    expected += probability;
    variance += probability * (1 - probability);
  }
  double deviations() const { return (count - expected) / std::sqrt(variance); }
};

TEST(SyntheticWorldTest, DriftFollowsTheLaw) {
  SyntheticWorldConfig config = tiny_config();
  config.branching = {3, 5};
  config.turn_probability = 0.2;
  const SyntheticWorld world(config);
  Trials keeps_direction, stays, moves;
  for (int64_t user = 0; user < 10000; ++user) {
    const auto drawn = world.draw_user(user);
    for (size_t event = 1; event < drawn.items.size(); ++event) {
      const int32_t from = drawn.leaves[event - 1], to = drawn.leaves[event];
      keeps_direction.add(drawn.directions[event] == drawn.directions[event - 1],
                          1 - 0.2 + 0.2 / 4);
      stays.add(to == from, 0.3 + 0.05 * world.leaf_probability(from));
      const int64_t neighbour = world.neighbour(from, drawn.directions[event]);
      moves.add(to == neighbour, 0.65 + 0.05 * world.leaf_probability(neighbour));
    }
  }
  EXPECT_LT(std::abs(keeps_direction.deviations()), 4);
  EXPECT_LT(std::abs(stays.deviations()), 4);
  EXPECT_LT(std::abs(moves.deviations()), 4);
}

TEST(SyntheticWorldTest, ItemsFollowTheLeafAmongTheUnseen) {
  const SyntheticWorld world(tiny_config());
  Trials best_of_leaf, of_leaf;
  for (int64_t user = 0; user < 10000; ++user) {
    const auto drawn = world.draw_user(user);
    std::set<int32_t> seen;
    for (size_t event = 0; event < drawn.items.size(); ++event) {
      const int64_t leaf = drawn.leaves[event];
      double unseen = 0, unseen_of_leaf = 0, best_probability = 0;
      int32_t best = -1;
      for (int32_t item = 0; item < 30; ++item) {
        if (seen.contains(item)) continue;
        const bool here = world.leaf_of(item) == leaf;
        const double p =
            0.9 * (here ? world.probability_in_leaf(item) : 0.0) + 0.1 * world.popularity(item);
        unseen += p;
        if (here) unseen_of_leaf += p;
        if (here && p > best_probability) best = item, best_probability = p;
      }
      best_of_leaf.add(drawn.items[event] == best, best_probability / unseen);
      of_leaf.add(world.leaf_of(drawn.items[event]) == leaf, unseen_of_leaf / unseen);
      seen.insert(drawn.items[event]);
    }
  }
  EXPECT_LT(std::abs(best_of_leaf.deviations()), 4);
  EXPECT_LT(std::abs(of_leaf.deviations()), 4);
}

/// Mean squared distance between different items of two leaves.
double mean_distance(const SyntheticWorld& world, const SyntheticWorld::FeatureSource& source,
                     int64_t leaf, int64_t other) {
  double sum = 0;
  int64_t pairs = 0;
  for (int32_t a : world.items_of(leaf)) {
    for (int32_t b : world.items_of(other)) {
      if (a == b) continue;
      const auto x = world.draw_features(source, a, a + 1),
                 y = world.draw_features(source, b, b + 1);
      for (int64_t i = 0; i < source.dim; ++i) sum += (x[i] - y[i]) * (x[i] - y[i]);
      ++pairs;
    }
  }
  return sum / static_cast<double>(pairs);
}

TEST(SyntheticWorldTest, FeaturesAreCentresOfAllAncestorsPlusNoise) {
  SyntheticWorldConfig config = tiny_config();
  config.content_dim = 2000;  // wide enough for means to be close to expectations
  config.style_dim = 1000;
  const SyntheticWorld world(config);
  for (const auto& source : world.feature_sources()) {
    // Per column: each centre that differs adds 2; three attributes and the white noise of two
    // items add about 2 x 0.3^2 x (3 + 0.01), which depends on few attributes and so varies.
    const double dim = static_cast<double>(source.dim);
    EXPECT_NEAR(mean_distance(world, source, 0, 0) / dim, 0.54, 0.35);
    EXPECT_NEAR(mean_distance(world, source, 0, 1) / dim, 2.54, 0.5);
    EXPECT_NEAR(mean_distance(world, source, 0, 3) / dim, 4.54, 0.7);
  }
  // a block of rows is its rows
  const auto source = world.feature_sources()[0];
  const auto rows = world.draw_features(source, 3, 6), row = world.draw_features(source, 5, 6);
  ASSERT_EQ(rows.size(), 6000u);
  EXPECT_TRUE(std::equal(row.begin(), row.end(), rows.begin() + 4000));
}

TEST(SyntheticWorldTest, WithoutNoiseItemsOfALeafShareTheirFeatures) {
  SyntheticWorldConfig config = tiny_config();
  config.item_noise = 0;
  const SyntheticWorld world(config);
  for (const auto& source : world.feature_sources()) {
    EXPECT_EQ(mean_distance(world, source, 2, 2), 0);
    EXPECT_GT(mean_distance(world, source, 2, 1), 0.5 * static_cast<double>(source.dim));
  }
}

TEST(BayesFilterTest, MatchesTheSumOverAllHiddenPaths) {
  SyntheticWorldConfig config = tiny_config();
  config.turn_probability = 0.15;
  config.num_items = 13;  // leaves of 2 and 3 items, so that histories exhaust some
  config.max_events = 6;
  const SyntheticWorld world(config);
  BayesFilter filter(world);
  std::vector<double> predicted(13);
  for (int64_t user = 0; user < 3; ++user) {
    const auto drawn = world.draw_user(user);
    filter.reset();
    std::vector<int32_t> history;
    for (size_t length = 0; length <= 3; ++length) {
      filter.predict(predicted);
      const std::vector<double> expected = Enumeration(world, history).predict();
      for (int64_t item = 0; item < 13; ++item) {
        EXPECT_NEAR(predicted[item], expected[item], 1e-12) << "user " << user << " item " << item;
      }
      history.push_back(drawn.items[length]);
      filter.observe(history.back());
    }
  }
}

TEST(BayesFilterTest, MatchesTheSumOverAllHiddenPathsWhenALeafIsExhausted) {
  SyntheticWorldConfig config = tiny_config();
  config.num_items = 13;
  config.max_events = 6;
  const SyntheticWorld world(config);
  const auto items = world.items_of(1);
  const std::vector<int32_t> history(items.begin(), items.end());
  BayesFilter filter(world);
  for (int32_t item : history) filter.observe(item);
  std::vector<double> predicted(13);
  filter.predict(predicted);
  const std::vector<double> expected = Enumeration(world, history).predict();
  for (int64_t item = 0; item < 13; ++item) EXPECT_NEAR(predicted[item], expected[item], 1e-12);
}

TEST(BayesFilterTest, PredictionsAreDistributionsOverItemsOutsideTheHistory) {
  const SyntheticWorld world(small_config());
  BayesFilter filter(world);
  std::vector<double> predicted(1280);
  for (int64_t user = 0; user < 20; ++user) {
    filter.reset();
    std::set<int32_t> history;
    for (int32_t item : world.draw_user(user).items) {
      filter.predict(predicted);
      EXPECT_NEAR(std::accumulate(predicted.begin(), predicted.end(), 0.0), 1, 1e-12);
      for (int32_t other = 0; other < 1280; ++other) {
        ASSERT_EQ(predicted[other] > 0, !history.contains(other));
      }
      filter.observe(item);
      history.insert(item);
    }
  }
}

TEST(BayesFilterTest, ProbabilityOfTheTopTenIsTheHitRate) {
  const SyntheticWorld world(small_config());
  BayesFilter filter(world);
  std::vector<double> predicted(1280);
  Trials hits;
  for (int64_t user = 0; user < 4000; ++user) {
    const auto items = world.draw_user(user).items;
    filter.reset();
    for (size_t event = 0; event + 1 < items.size(); ++event) filter.observe(items[event]);
    filter.predict(predicted);
    const double target = predicted[items.back()];
    std::partial_sort(predicted.begin(), predicted.begin() + 10, predicted.end(), std::greater<>());
    hits.add(target >= predicted[9],
             std::accumulate(predicted.begin(), predicted.begin() + 10, 0.0));
  }
  EXPECT_LT(std::abs(hits.deviations()), 4);
  EXPECT_GT(hits.count, 0.15 * 4000);
}

TEST_F(SyntheticCorpusTest, HoldsTheWorldAndItsLaw) {
  SyntheticWorldConfig config = tiny_config();
  config.content_dim = 7;
  config.style_dim = 3;
  std::vector<double> progress;
  const SyntheticWorldReport report = write_synthetic_corpus(
      folder_, config, [&](double fraction) { progress.push_back(fraction); });
  EXPECT_EQ(progress, std::vector<double>{1.0});
  const SyntheticWorld world(config);
  const Corpus corpus(folder_);
  EXPECT_EQ(corpus.num_users(), 300);
  EXPECT_EQ(corpus.num_items(), 30);
  EXPECT_EQ(corpus.split_name(), "leave_one_out");
  const HistoryBlock block = corpus.read_histories(0, 0, 300, true);
  for (int64_t user = 0; user < 300; ++user) {
    const auto drawn = world.draw_user(user);
    const auto history = block.history(user);
    EXPECT_TRUE(std::equal(history.begin(), history.end(), drawn.items.begin(), drawn.items.end()));
    EXPECT_EQ(block.timestamps[block.offsets[user]], drawn.timestamps[0]);
    EXPECT_EQ(block.targets(user, Split::kTest)[0], drawn.items.back());
  }
  EXPECT_EQ(corpus.item_id(4), 5);
  EXPECT_EQ(corpus.titles()[4], world.title(4));
  EXPECT_EQ(corpus.feature_names(), (std::vector<std::string>{"content", "style"}));
  std::vector<float> style(30 * 3);
  corpus.read_features("style", 0, 30, style.data());
  EXPECT_EQ(style, world.draw_features({"style", 3}, 0, 30));
  const auto& law = corpus.manifest().at("law");
  EXPECT_EQ(law.at("parameters").at("turn_probability"), 0.05);
  EXPECT_EQ(law.at("parameters").at("branching"), (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(law.at("test").at("ceiling").at("recall@10"), report.test.ceiling.recall_10);
  EXPECT_EQ(law.at("test").at("markov").at("ndcg@5"), report.test.markov.ndcg_5);
  EXPECT_EQ(law.at("validation").at("popularity").at("ndcg@10"),
            report.validation.popularity.ndcg_10);
}

/// Recomputes the figures of one split from the corpus as it lies on the disk.
TEST_F(SyntheticCorpusTest, FiguresAreThoseOfTheCorpus) {
  SyntheticWorldConfig config = tiny_config();
  config.num_items = 60;
  const SyntheticWorldReport report = write_synthetic_corpus(folder_, config);
  const SyntheticWorld world(config);
  const Corpus corpus(folder_);
  const HistoryBlock block = corpus.read_histories(0, 0, 300);
  std::map<int32_t, double> count;
  std::map<std::pair<int32_t, int32_t>, double> successions;
  for (int64_t user = 0; user < 300; ++user) {
    const auto training = block.training_part(user);
    for (size_t event = 0; event < training.size(); ++event) {
      ++count[training[event]];
      if (event > 0) ++successions[{training[event - 1], training[event]}];
    }
  }
  for (Split split : {Split::kValidation, Split::kTest}) {
    double recall_5[3] = {}, ndcg_10[3] = {};
    for (int64_t user = 0; user < 300; ++user) {
      const auto context = block.context(user, split);
      const int32_t target = block.targets(user, split)[0];
      BayesFilter filter(world);
      for (int32_t item : context) filter.observe(item);
      std::vector<double> probability(60);
      filter.predict(probability);
      const std::function<double(int32_t)> scores[3] = {
          [&](int32_t item) { return probability[item]; },
          [&](int32_t item) {
            return 1e6 * successions[{context.back(), item}] + count[item];
          },
          [&](int32_t item) { return count[item]; }};
      for (int method = 0; method < 3; ++method) {
        double rank = 0;
        for (int32_t item = 0; item < 60; ++item) {
          if (std::find(context.begin(), context.end(), item) != context.end()) continue;
          const double margin = scores[method](item) - scores[method](target);
          rank += margin > 0 ? 1 : margin == 0 && item != target ? 0.5 : 0;
        }
        if (rank < 5) recall_5[method] += 1 / 300.0;
        if (rank < 10) ndcg_10[method] += std::log(2.0) / std::log(rank + 2) / 300;
      }
    }
    const WorldFigures& figures = report.of(split);
    EXPECT_NEAR(figures.ceiling.recall_5, recall_5[0], 1e-12);
    EXPECT_NEAR(figures.markov.recall_5, recall_5[1], 1e-12);
    EXPECT_NEAR(figures.popularity.recall_5, recall_5[2], 1e-12);
    EXPECT_NEAR(figures.ceiling.ndcg_10, ndcg_10[0], 1e-12);
    EXPECT_NEAR(figures.markov.ndcg_10, ndcg_10[1], 1e-12);
    EXPECT_NEAR(figures.popularity.ndcg_10, ndcg_10[2], 1e-12);
  }
}

TEST_F(SyntheticCorpusTest, IsAPureFunctionOfTheSeedWhateverTheThreads) {
  SyntheticWorldConfig config = tiny_config();
  config.num_users = 5000;  // several blocks
  const int threads = omp_get_max_threads();
  omp_set_num_threads(1);
  write_synthetic_corpus(folder_ / "one", config);
  std::this_thread::sleep_for(std::chrono::milliseconds(1100));  // no time of writing is kept
  omp_set_num_threads(3);
  write_synthetic_corpus(folder_ / "three", config);
  omp_set_num_threads(threads);
  EXPECT_EQ(contents(folder_ / "one"), contents(folder_ / "three"));
  config.seed = 2;
  write_synthetic_corpus(folder_ / "other", config);
  const auto one = contents(folder_ / "one"), other = contents(folder_ / "other");
  EXPECT_NE(one.at("shard-00000.h5"), other.at("shard-00000.h5"));
  EXPECT_NE(one.at("features.h5"), other.at("features.h5"));
  EXPECT_NE(one.at("catalogue.h5"), other.at("catalogue.h5"));
}

TEST_F(SyntheticCorpusTest, KeepsTheBarsThatMakeItWorthLearning) {
  const SyntheticWorldReport report = write_synthetic_corpus(folder_, small_config());
  for (Split split : {Split::kValidation, Split::kTest}) {
    const WorldFigures& figures = report.of(split);
    EXPECT_GE(figures.ceiling.recall_10, 0.15);
    EXPECT_LE(figures.ceiling.recall_10, 0.5);
    EXPECT_LE(figures.markov.recall_10, 0.6 * figures.ceiling.recall_10);
    EXPECT_LE(figures.popularity.recall_10, 0.2 * figures.ceiling.recall_10);
    EXPECT_GT(figures.popularity.recall_10, 0);
  }
}

TEST_F(SyntheticCorpusTest, MayHoldNoUsers) {
  SyntheticWorldConfig config = tiny_config();
  config.num_users = 0;
  const SyntheticWorldReport report = write_synthetic_corpus(folder_, config);
  EXPECT_EQ(Corpus(folder_).num_users(), 0);
  EXPECT_EQ(report.test.ceiling.recall_10, 0);
}

TEST(SyntheticWorldReportTest, TableShowsEachRecommenderAsAPartOfTheCeiling) {
  SyntheticWorldReport report;
  report.test.ceiling = {0.3, 0.4, 0.2, 0.25};
  report.test.markov = {0.1, 0.15, 0.05, 0.0625};
  const std::string table = to_table(report);
  EXPECT_EQ(std::count(table.begin(), table.end(), '\n'), 8);  // header, rule, 2 x 3 rows
  std::istringstream lines(table);
  std::string line;
  while (std::getline(lines, line) && !line.starts_with("test   ")) continue;
  std::getline(lines, line);
  std::istringstream words(line);
  const std::vector<std::string> cells{std::istream_iterator<std::string>(words), {}};
  EXPECT_EQ(cells, (std::vector<std::string>{"test", "Markov", "0.1000", "0.1500", "0.0500",
                                             "0.0625", "37.5", "%"}));
}

struct BadOption {
  std::string field;
  std::function<void(SyntheticWorldConfig&)> spoil;
};

TEST(SyntheticWorldConfigTest, RefusesBadOptionsByName) {
  using C = SyntheticWorldConfig;
  const double nan = std::nan("");
  const std::vector<BadOption> cases = {
      {"num_users", [](C& c) { c.num_users = -1; }},
      {"num_items", [](C& c) { c.num_items = 0; }},
      {"num_items", [](C& c) { c.num_items = int64_t{1} << 31; }},
      {"min_events", [](C& c) { c.min_events = 2; }},
      {"max_events", [](C& c) { c.max_events = c.min_events - 1; }},
      {"max_events", [](C& c) { c.max_events = 2561; }},
      {"max_events", [](C& c) { c.exploration_probability = 0, c.max_events = 21; }},
      {"branching", [](C& c) { c.branching = {}; }},
      {"branching",
       [](C& c) {
         c.branching = {8, 0, 4};
       }},
      {"branching",
       [](C& c) {
         c.branching = {72, 72};
       }},
      {"branching",
       [](C& c) {
         c.branching = {int64_t{1} << 40, int64_t{1} << 40};
       }},
      {"item_exponent", [](C& c) { c.item_exponent = -0.1; }},
      {"item_exponent", [](C& c) { c.item_exponent = 2.1; }},
      {"cluster_exponent", [&](C& c) { c.cluster_exponent = nan; }},
      {"turn_probability", [](C& c) { c.turn_probability = 1.1; }},
      {"stay_probability", [&](C& c) { c.stay_probability = nan; }},
      {"jump_probability", [](C& c) { c.jump_probability = -0.1; }},
      {"jump_probability", [](C& c) { c.stay_probability = c.jump_probability = 0.6; }},
      {"exploration_probability", [](C& c) { c.exploration_probability = 2; }},
      {"content_dim", [](C& c) { c.content_dim = 0; }},
      {"style_dim", [](C& c) { c.style_dim = -3; }},
      {"item_noise", [](C& c) { c.item_noise = -1; }},
  };
  EXPECT_NO_THROW(SyntheticWorldConfig{}.check());
  for (const BadOption& bad : cases) {
    SyntheticWorldConfig config;
    bad.spoil(config);
    try {
      config.check();
      ADD_FAILURE() << bad.field << " was accepted";
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kUsage);
      EXPECT_NE(std::string(error.what()).find("synthetic." + bad.field), std::string::npos)
          << error.what();
    }
    EXPECT_THROW(SyntheticWorld{config}, Error);
  }
}

}  // namespace
}  // namespace mirabelle
