#include "mirabelle/data/corpus_stats.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "mirabelle/core/error.h"
#include "mirabelle/data/corpus_writer.h"
#include "support/temporary_folder.h"
#include "support/tiny_corpus.h"

namespace mirabelle {
namespace {

using nlohmann::json;
using testing::TemporaryFolder;

TEST(CorpusStatsTest, CountsByHandOnASmallCorpus) {
  const TemporaryFolder folder;
  CorpusOptions options;
  options.dataset = "hand";
  options.users_per_shard = 2;
  CorpusWriter writer(folder / "corpus", options, true, {"rating"});
  for (const char* id : {"a", "b", "c", "d", "e"}) writer.add_item(id);
  writer.add_user({"1", {0, 0, 0, 1}, {100, -1, 300, 400}, {{1, 2, NAN, 3}}, ""});
  writer.add_user({"2", {0, 2}, {50, 60}, {{4, 5}}, ""});
  writer.add_user({"3", {1, 3, 0}, {7, 8, 9}, {{-1, 0, 6}}, ""});
  writer.finish();
  const json stats = corpus_stats(Corpus(folder / "corpus"));
  EXPECT_EQ(stats["users"], 3);
  EXPECT_EQ(stats["items"], 5);
  EXPECT_EQ(stats["events"], 9);
  EXPECT_EQ(stats["shards"], 2);
  EXPECT_EQ(stats["repeated_events"], 2);
  EXPECT_EQ(stats["train_events"], 5);  // a a | a c | b
  EXPECT_EQ(stats["validation_targets"], 2);
  EXPECT_EQ(stats["test_targets"], 2);
  EXPECT_EQ(stats["unseen_validation_targets"], 1);  // d
  EXPECT_EQ(stats["unseen_test_targets"], 0);        // b and a
  EXPECT_EQ(stats["items_without_events"], 1);       // e
  EXPECT_EQ(stats["items_without_training"], 2);     // d e
  EXPECT_EQ(stats["history_length"]["min"], 2);
  EXPECT_EQ(stats["history_length"]["median"], 3);
  EXPECT_EQ(stats["history_length"]["max"], 4);
  EXPECT_DOUBLE_EQ(stats["history_length"]["mean"], 3.0);
  EXPECT_EQ(stats["timestamps"], (json{{"first", 7}, {"last", 400}, {"unknown", 1}}));
  EXPECT_EQ(stats["columns"]["rating"],
            (json{{"min", -1.0}, {"max", 6.0}, {"mean", 2.5}, {"missing", 1}}));
  // Counts 5 2 1 1 0: the top of 5 items is one item; Gini by the mean absolute difference.
  EXPECT_DOUBLE_EQ(stats["popularity"]["top_1_percent"], 5.0 / 9);
  const std::vector<double> counts{5, 2, 1, 1, 0};
  double difference = 0;
  for (double x : counts) {
    for (double y : counts) difference += std::abs(x - y);
  }
  EXPECT_NEAR(stats["popularity"]["gini"], difference / (2 * 5 * 9), 1e-12);
}

TEST(CorpusStatsTest, QuantilesAreOfTheSortedLengths) {
  const TemporaryFolder folder;
  const Corpus corpus(write_tiny_corpus(folder / "corpus", 101, 40, 8));
  std::vector<int64_t> lengths;
  for (int64_t shard = 0; shard < corpus.num_shards(); ++shard) {
    const HistoryBlock block = corpus.read_histories(shard, 0, corpus.shard_users(shard));
    for (int64_t user = 0; user < block.num_users(); ++user) {
      lengths.push_back(static_cast<int64_t>(block.history(user).size()));
    }
  }
  std::sort(lengths.begin(), lengths.end());
  const json stats = corpus_stats(corpus);
  EXPECT_EQ(stats["history_length"]["median"], lengths[50]);  // rank ceil(0.5 * 101) = 51
  EXPECT_EQ(stats["history_length"]["p10"], lengths[10]);
  EXPECT_EQ(stats["history_length"]["p90"], lengths[90]);
  EXPECT_EQ(stats["history_length"]["p99"], lengths[99]);
  EXPECT_EQ(stats["test_targets"], 101);
  EXPECT_EQ(stats["features"],
            (json{{{"name", "title"}, {"dim", 8}}, {{"name", "metadata"}, {"dim", 5}}}));
}

TEST(CorpusStatsTest, PacksTrainingHistoriesInWindows) {
  const TemporaryFolder folder;
  CorpusOptions options;
  options.dataset = "hand";
  CorpusWriter writer(folder / "corpus", options, false, {});
  writer.add_item("a");
  writer.add_user({"1", {0, 0, 0, 0, 0, 0}, {}, {}, ""});  // 4 training events: a window of 3, one
  writer.add_user({"2", {0, 0, 0}, {}, {}, ""});           // of 1
  writer.add_user({"3", {0, 0, 0}, {}, {}, ""});
  writer.finish();
  // In parts of 3 events: 3 | 1 1 1 in any order; sums of squares 9 and 3.
  const json packing =
      corpus_stats(Corpus(folder / "corpus"), {.part_tokens = 7,
                                               .parts_per_step = 2,
                                               .num_levels = 2,
                                               .max_sequence_tokens = 6})["packing"];
  const json figures{{"parts", 2}, {"fill", 1.0}, {"imbalance", 1.5}};
  EXPECT_EQ(packing, (json{{"part_tokens", 7},
                           {"parts_per_step", 2},
                           {"num_levels", 2},
                           {"max_sequence_tokens", 6},
                           {"sequences", 4},
                           {"first_fit", figures},
                           {"balanced", figures}}));
}

TEST(CorpusStatsTest, BalancedPackingIsEvenerThanFirstFitAndAsFull) {
  const TemporaryFolder folder;
  const Corpus corpus(write_tiny_corpus(folder / "corpus", 1000, 40, 8));
  const json stats = corpus_stats(corpus, {.part_tokens = 400, .max_sequence_tokens = 80});
  const json& balanced = stats["packing"]["balanced"];
  const json& first_fit = stats["packing"]["first_fit"];
  EXPECT_EQ(stats["packing"]["sequences"], 1000);
  EXPECT_LE(balanced["parts"], first_fit["parts"]);
  EXPECT_DOUBLE_EQ(balanced["fill"],
                   stats["train_events"].get<double>() / (balanced["parts"].get<double>() * 100));
  EXPECT_LT(balanced["imbalance"], 1.02);
  EXPECT_GT(first_fit["imbalance"], 1.1);
}

TEST(CorpusStatsTest, PackingAddsUpOverBlocks) {
  const TemporaryFolder folder;
  CorpusOptions options;
  options.dataset = "long";
  CorpusWriter writer(folder / "corpus", options, false, {});
  writer.add_item("a");
  for (const char* id : {"1", "2", "3"}) {
    writer.add_user({id, std::vector<int32_t>(50'002, 0), {}, {}, ""});
  }
  writer.finish();
  const json packing =
      corpus_stats(Corpus(folder / "corpus"), {.part_tokens = 4,
                                               .parts_per_step = 5,
                                               .num_levels = 1,
                                               .max_sequence_tokens = 1})["packing"];
  EXPECT_EQ(packing["sequences"], 150'000);
  EXPECT_EQ(packing["balanced"], (json{{"parts", 37'500}, {"fill", 1.0}, {"imbalance", 1.0}}));
  EXPECT_EQ(packing["first_fit"], packing["balanced"]);
}

TEST(CorpusStatsTest, RefusesPartsThatHoldNoSequence) {
  const TemporaryFolder folder;
  const Corpus corpus(write_tiny_corpus(folder / "corpus", 3, 5, 8));
  EXPECT_THROW(corpus_stats(corpus, {.part_tokens = 1000}), Error);
  EXPECT_THROW(corpus_stats(corpus, {.parts_per_step = 0}), Error);
  EXPECT_THROW(corpus_stats(corpus, {.num_levels = 0}), Error);
  EXPECT_THROW(corpus_stats(corpus, {.num_levels = 5, .max_sequence_tokens = 4}), Error);
}

TEST(CorpusStatsTest, AnEmptyCorpusHasNoQuantiles) {
  const TemporaryFolder folder;
  CorpusOptions options;
  options.dataset = "empty";
  CorpusWriter writer(folder / "corpus", options, false, {});
  writer.finish();
  const json stats = corpus_stats(Corpus(folder / "corpus"));
  EXPECT_EQ(stats["users"], 0);
  EXPECT_TRUE(stats["history_length"].is_null());
  EXPECT_TRUE(stats["popularity"].is_null());
  EXPECT_TRUE(stats["timestamps"].is_null());
  EXPECT_TRUE(stats["packing"].is_null());
}

}  // namespace
}  // namespace mirabelle
