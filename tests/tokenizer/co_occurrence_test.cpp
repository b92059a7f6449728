// All ranks read one corpus, which rank 0 writes, and must get the same lists.
#include "mirabelle/tokenizer/co_occurrence.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "mirabelle/data/corpus_writer.h"
#include "support/errors.h"
#include "support/tiny_corpus.h"

namespace mirabelle::testing {
namespace {

using Histories = std::vector<std::vector<int32_t>>;
using Partners = std::map<std::pair<int32_t, int32_t>, double>;  // (item, partner) -> weight

class CoOccurrenceTest : public ::testing::Test {
 protected:
  CoOccurrenceTest() {
    const auto* test = ::testing::UnitTest::GetInstance()->current_test_info();
    folder_ = std::filesystem::temp_directory_path() /
              ("mirabelle_pairs_" + std::to_string(world_->size()) + "_" + test->name());
  }
  ~CoOccurrenceTest() override {
    world_->barrier();
    if (world_->rank() == 0) std::filesystem::remove_all(folder_);
  }

  /// Leave-one-out, or cut where event `valid_from` and event `test_from` of each user begin.
  void write(int64_t num_items, const Histories& histories, int64_t valid_from = -1,
             int64_t test_from = -1) {
    if (world_->rank() == 0) {
      std::filesystem::remove_all(folder_);
      CorpusOptions options;
      options.dataset = "pairs";
      options.users_per_shard = 2;
      if (valid_from >= 0) {
        options.split = "time";
        options.valid_from = valid_from;
        options.test_from = test_from;
      }
      CorpusWriter writer(folder_, options, true, {});
      for (int64_t item = 0; item < num_items; ++item) writer.add_item(std::to_string(item));
      for (size_t user = 0; user < histories.size(); ++user) {
        UserHistory history;
        history.id = std::to_string(user);
        history.items = histories[user];
        for (size_t i = 0; i < history.items.size(); ++i) history.timestamps.push_back(i);
        writer.add_user(history);
      }
      writer.finish();
    }
    world_->barrier();
  }

  CoOccurrences count(int64_t max_meetings = 1 << 24) const {
    return count_co_occurrences(Corpus(folder_), config_, *world_, max_meetings);
  }

  /// Collective: a failure on one rank is one on all.
  void expect_everywhere(bool holds, const std::string& what) const {
    int64_t failures = holds ? 0 : 1;
    world_->all_reduce(view_of(&failures, {1}), ReduceOp::kSum, Stream());
    EXPECT_EQ(failures, 0) << what;
  }

  void expect_pairs(const Partners& expected) const {
    const CoOccurrences found = count();
    Partners pairs;
    bool heaviest_first = true;
    for (size_t item = 0; item + 1 < found.offsets.size(); ++item) {
      for (int64_t i = found.offsets[item]; i < found.offsets[item + 1]; ++i) {
        pairs[{static_cast<int32_t>(item), found.partners[i]}] = found.weights[i];
        heaviest_first = heaviest_first &&
                         (i == found.offsets[item] || found.weights[i - 1] >= found.weights[i]);
      }
    }
    bool same = pairs.size() == expected.size();
    for (const auto& [pair, weight] : expected) {
      same = same && pairs.contains(pair) && std::abs(pairs[pair] - weight) < 1e-6 * weight;
    }
    expect_everywhere(same, "the pairs");
    expect_everywhere(heaviest_first, "the order of partners");
  }

  std::unique_ptr<Communicator> world_ = make_mpi_communicator();
  std::filesystem::path folder_;
  CoOccurrenceConfig config_;
};

TEST_F(CoOccurrenceTest, CountsNeighboursInTheWindow) {
  // Training: 0 1 2 0 | 3 4 and 1 0 | 4 4. Item 0 meets itself at distance 3, which does not count.
  write(5, {{0, 1, 2, 0, 3, 4}, {1, 0, 4, 4}});
  config_.window = 2;
  expect_pairs({{{0, 1}, 3}, {{1, 0}, 3}, {{0, 2}, 2}, {{2, 0}, 2}, {{1, 2}, 1}, {{2, 1}, 1}});
  config_.window = 1;
  expect_pairs({{{0, 1}, 2}, {{1, 0}, 2}, {{0, 2}, 1}, {{2, 0}, 1}, {{1, 2}, 1}, {{2, 1}, 1}});
  config_.min_count = 2;
  expect_pairs({{{0, 1}, 2}, {{1, 0}, 2}});
}

TEST_F(CoOccurrenceTest, WeighsNearNeighboursMore) {
  write(4, {{0, 1, 2, 0, 3, 3}, {1, 0, 3, 3}});
  config_.window = 3;
  config_.weighting = "inverse_distance";
  // 0 and 1 are 1, 2 and, of the second user, 1 event apart.
  expect_pairs(
      {{{0, 1}, 2.5}, {{1, 0}, 2.5}, {{0, 2}, 1.5}, {{2, 0}, 1.5}, {{1, 2}, 1}, {{2, 1}, 1}});
}

TEST_F(CoOccurrenceTest, PmiKeepsPairsThatMeetMoreThanByChance) {
  // Meetings: 0-1 twice, 0-2 once, 2-3 twice; in all 10 (each counts for both), 3 of 0, 3 of 2.
  write(5, {{0, 1, 4, 4}, {0, 1, 4, 4}, {0, 2, 4, 4}, {2, 3, 4, 4}, {2, 3, 4, 4}});
  config_.weighting = "pmi";
  const double often = std::log(2 * 10 / 6.0), once = std::log(10 / 9.0);
  expect_pairs({{{0, 1}, often},
                {{1, 0}, often},
                {{2, 3}, often},
                {{3, 2}, often},
                {{0, 2}, once},
                {{2, 0}, once}});
}

TEST_F(CoOccurrenceTest, APairOfTargetsNeverAppears) {
  // Items 8 and 9 meet in everybody's last two events, and nowhere else.
  Histories histories;
  for (int32_t user = 0; user < 7; ++user) histories.push_back({0, user, 2, 8, 9});
  write(10, histories);
  config_.window = 10;
  const auto lacks_targets = [](const CoOccurrences& found) {
    return found.offsets[8] == found.offsets[10] && !found.partners.empty() &&
           std::ranges::none_of(found.partners, [](int32_t item) { return item >= 8; });
  };
  expect_everywhere(lacks_targets(count()), "leave-one-out");
  write(10, histories, 3, 4);
  expect_everywhere(lacks_targets(count()), "split by time");
  write(10, histories, 3, 5);  // the same events, all of them validation targets
  expect_everywhere(lacks_targets(count()), "split by time, without test targets");
}

TEST_F(CoOccurrenceTest, KeepsTheHeaviestPartnersOfEqualOnesTheLower) {
  write(9, {{0, 5, 8, 8}, {0, 5, 8, 8}, {0, 4, 8, 8}, {0, 3, 8, 8}, {0, 7, 8, 8}});
  config_.max_partners = 3;
  const CoOccurrences found = count();
  expect_everywhere(found.offsets[1] == 3 && found.partners[0] == 5 && found.partners[1] == 3 &&
                        found.partners[2] == 4,
                    "the partners of item 0");
  expect_everywhere(found.offsets[8] - found.offsets[7] == 1, "item 7 still has item 0");
}

TEST_F(CoOccurrenceTest, RanksAndPartsOfTheItemsChangeNothing) {
  if (world_->rank() == 0) {
    std::filesystem::remove_all(folder_);
    write_tiny_corpus(folder_, 300, 70, 5);
  }
  world_->barrier();
  const auto self = make_self_communicator();
  for (const char* weighting : {"uniform", "inverse_distance", "pmi"}) {
    config_.weighting = weighting;
    const CoOccurrences alone = count_co_occurrences(Corpus(folder_), config_, *self);
    for (const int64_t max_meetings : {1, 100, 5000, 1 << 24}) {
      const CoOccurrences together = count(max_meetings);
      expect_everywhere(together.offsets == alone.offsets && together.weights == alone.weights &&
                            together.partners == alone.partners && alone.partners.size() > 100,
                        weighting);
    }
  }
}

TEST_F(CoOccurrenceTest, WithoutNeighboursThereAreNoPairs) {
  write(3, {{0, 1, 2}, {2, 1, 0}});  // one event each is left to train
  const CoOccurrences found = count();
  expect_everywhere(found.offsets == std::vector<int64_t>{0, 0, 0, 0}, "the offsets");
  write(0, {});
  expect_everywhere(count().offsets == std::vector<int64_t>{0}, "no items");
}

TEST(DrawTest, FollowsTheWeights) {
  const CoOccurrences pairs{{0, 3, 3, 4}, {7, 5, 6, 2}, {2, 1, 1, 0.5F}};
  for (const auto& [uniform, partner] : std::map<double, int32_t>{
           {0.0, 7}, {0.49, 7}, {0.5, 5}, {0.74, 5}, {0.75, 6}, {0.9999999999999999, 6}}) {
    EXPECT_EQ(pairs.draw(0, uniform), partner) << uniform;
  }
  EXPECT_EQ(pairs.draw(1, 0.5), -1);
  EXPECT_EQ(pairs.draw(2, 0.99), 2);
}

TEST(CoOccurrenceConfigTest, EveryBadValueIsRefusedByTheNameOfItsField) {
  const auto expect_refused = [](const std::string& name, auto set) {
    CoOccurrenceConfig config;
    EXPECT_NO_THROW(config.check());
    set(config);
    expect_error(ErrorKind::kUsage, "co_occurrence." + name, [&] { config.check(); });
  };
  expect_refused("window", [](auto& config) { config.window = 0; });
  expect_refused("weighting", [](auto& config) { config.weighting = "tf-idf"; });
  expect_refused("max_partners", [](auto& config) { config.max_partners = 0; });
  expect_refused("min_count", [](auto& config) { config.min_count = 0; });
}

}  // namespace
}  // namespace mirabelle::testing
