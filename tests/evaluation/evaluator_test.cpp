#include "mirabelle/evaluation/evaluator.h"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <map>
#include <set>

#include "mirabelle/core/error.h"
#include "mirabelle/core/files.h"
#include "mirabelle/core/random.h"
#include "mirabelle/evaluation/user_histories.h"
#include "support/tiny_corpus.h"

namespace mirabelle {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr int64_t kUsers = 137, kItems = 40;

/// All ranks of the job see one corpus, which rank 0 writes.
class EvaluatorTest : public ::testing::Test {
 protected:
  EvaluatorTest() : world_(make_mpi_communicator()) {
    const auto* test = ::testing::UnitTest::GetInstance()->current_test_info();
    folder_ = fs::temp_directory_path() /
              ("mirabelle_evaluator_" + std::to_string(world_->size()) + "_" + test->name());
    if (world_->rank() == 0) {
      fs::remove_all(folder_);
      write_tiny_corpus(folder_ / "corpus", kUsers, kItems, 3);
    }
    world_->barrier();
    corpus_ = std::make_unique<Corpus>(folder_ / "corpus");
    config_.batch_users = 8;
    config_.bootstrap_samples = 60;
    config_.beam_size = 12;
  }
  ~EvaluatorTest() override {
    world_->barrier();
    if (world_->rank() == 0) fs::remove_all(folder_);
  }

  /// Ranks by a random score of (newest item, candidate): 12 items that are not excluded.
  static RankedLists recommend(std::span<const RecommendationQuery> queries) {
    RankedLists lists;
    for (const RecommendationQuery& query : queries) {
      const int64_t newest = query.history.empty() ? -1 : query.history.back();
      std::vector<std::pair<double, int32_t>> scored;
      for (int32_t item = 0; item < kItems; ++item) {
        if (std::binary_search(query.excluded.begin(), query.excluded.end(), item)) continue;
        scored.emplace_back(-random_normal(random_key(1, "score"), newest * kItems + item), item);
      }
      std::sort(scored.begin(), scored.end());
      for (size_t i = 0; i < std::min<size_t>(12, scored.size()); ++i) {
        lists.items.push_back(scored[i].second);
        lists.scores.push_back(-scored[i].first);
      }
      lists.offsets.push_back(static_cast<int64_t>(lists.items.size()));
    }
    return lists;
  }

  /// The number of ranks on which the condition does not hold; the same on all.
  int64_t failures(bool holds) const {
    int64_t count = holds ? 0 : 1;
    world_->all_reduce(view_of(&count, {1}), ReduceOp::kSum, Stream());
    return count;
  }

  std::unique_ptr<Communicator> world_;
  fs::path folder_;
  std::unique_ptr<Corpus> corpus_;
  EvaluationConfig config_;
};

void expect_equal(const SystemFigures& a, const SystemFigures& b) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t f = 0; f < a.size(); ++f) {
    EXPECT_EQ(a[f].mean, b[f].mean) << f;
    EXPECT_EQ(a[f].low, b[f].low) << f;
    EXPECT_EQ(a[f].high, b[f].high) << f;
  }
}

TEST_F(EvaluatorTest, AnyNumberOfRanksAndAnyBatchGiveTheSameBits) {
  const CountingBaselines baselines(*corpus_);
  const auto self = make_self_communicator();
  const EvaluationResult alone = evaluate_users(*corpus_, recommend, config_, *self, &baselines);
  for (int64_t batch_users : {1, 8, 1000}) {
    config_.batch_users = batch_users;
    const EvaluationResult shared =
        evaluate_users(*corpus_, recommend, config_, *world_, &baselines);
    expect_equal(shared.model, alone.model);
    expect_equal(shared.popularity, alone.popularity);
    expect_equal(shared.markov, alone.markov);
    expect_equal(shared.model_minus_markov, alone.model_minus_markov);
    EXPECT_EQ(shared.users, alone.users);
    EXPECT_EQ(shared.targets, alone.targets);
    EXPECT_EQ(shared.unreachable_targets, alone.unreachable_targets);
    EXPECT_EQ(shared.covered_items, alone.covered_items);
    for (int band = 0; band < kNumBands; ++band) {
      EXPECT_EQ(shared.bands[band].targets, alone.bands[band].targets);
      EXPECT_EQ(shared.bands[band].hits, alone.bands[band].hits);
    }
  }
}

TEST_F(EvaluatorTest, FiguresAreThoseOfTheListsOneByOne) {
  for (const char* split : {"validation", "test"}) {
    config_.split = split;
    const EvaluationResult result = evaluate_users(*corpus_, recommend, config_, *world_);
    std::vector<int64_t> users(kUsers);
    for (int64_t u = 0; u < kUsers; ++u) users[u] = u;
    const HistoryBlock block = read_user_histories(*corpus_, users);
    double hits = 0, gain = 0;
    for (int64_t u = 0; u < kUsers; ++u) {
      const auto history = block.history(u);
      const size_t place = history.size() - (std::string(split) == "test" ? 1 : 2);
      const std::set<int32_t> seen(history.begin(), history.begin() + place);
      const std::vector<int32_t> excluded(seen.begin(), seen.end());
      const RecommendationQuery query{history.first(place), excluded};
      const RankedLists lists = recommend({&query, 1});
      for (size_t rank = 0; rank < 10 && rank < lists.items.size(); ++rank) {
        if (lists.items[rank] != history[place]) continue;
        hits += 1;
        gain += 1 / std::log2(2.0 + static_cast<double>(rank));
      }
    }
    EXPECT_EQ(result.users, kUsers);
    EXPECT_NEAR(result.figure(result.model, "recall@10").mean, hits / kUsers, 1e-10);
    EXPECT_NEAR(result.figure(result.model, "ndcg@10").mean, gain / kUsers, 1e-10);
    EXPECT_GT(hits, 0);
  }
}

TEST_F(EvaluatorTest, ExcludingTheHistoryMakesRepeatedTargetsUnreachable) {
  const EvaluationResult excluded = evaluate_users(*corpus_, recommend, config_, *world_);
  EXPECT_GT(excluded.unreachable_targets, 0);
  config_.exclude_history = false;
  const EvaluationResult all = evaluate_users(*corpus_, recommend, config_, *world_);
  EXPECT_EQ(all.unreachable_targets, 0);
  EXPECT_EQ(all.targets, excluded.targets);
}

TEST_F(EvaluatorTest, ASampleIsDrawnByTheSeed) {
  config_.max_users = 20;
  EXPECT_EQ(evaluate_users(*corpus_, recommend, config_, *world_).users, 20);
  const auto a = select_users(*corpus_, 20, 1), b = select_users(*corpus_, 20, 2);
  EXPECT_EQ(a, select_users(*corpus_, 20, 1));
  EXPECT_NE(a, b);
  EXPECT_TRUE(std::is_sorted(a.begin(), a.end()));
  EXPECT_EQ(std::set<int64_t>(a.begin(), a.end()).size(), 20u);
  // A larger sample holds the smaller one.
  const auto larger = select_users(*corpus_, 50, 1);
  EXPECT_TRUE(std::includes(larger.begin(), larger.end(), a.begin(), a.end()));
  EXPECT_EQ(select_users(*corpus_, 0, 1).size(), static_cast<size_t>(kUsers));
  EXPECT_EQ(select_users(*corpus_, 1000, 1).size(), static_cast<size_t>(kUsers));
}

TEST_F(EvaluatorTest, PredictionsRecomputeTheFigures) {
  const fs::path path = folder_ / "out" / "predictions.jsonl";
  double hits = 0;
  EvaluationResult result;
  {
    PredictionWriter writer(path, *corpus_, PredictionWriter::Targets::kWritten, *world_);
    result = evaluate_users(*corpus_, recommend, config_, *world_, nullptr, &writer);
  }
  std::istringstream lines(read_text_file(path));
  int64_t num_lines = 0;
  for (std::string line; std::getline(lines, line);) {
    const json prediction = json::parse(line);
    EXPECT_EQ(prediction["user"], ++num_lines);  // IDs are u + 1, ordered by user
    EXPECT_EQ(prediction["items"].size(), prediction["scores"].size());
    for (size_t i = 0; i < std::min<size_t>(10, prediction["items"].size()); ++i) {
      hits += prediction["items"][i] == prediction["target"];
    }
  }
  EXPECT_EQ(num_lines, kUsers);
  EXPECT_NEAR(result.figure(result.model, "recall@10").mean, hits / kUsers, 1e-10);
  world_->barrier();
  EXPECT_EQ(failures(std::distance(fs::directory_iterator(path.parent_path()), {}) == 1), 0)
      << "parts are left behind";
}

TEST_F(EvaluatorTest, AnAbandonedWriterLeavesNothing) {
  const fs::path path = folder_ / "abandoned" / "predictions.jsonl";
  { PredictionWriter writer(path, *corpus_, PredictionWriter::Targets::kWritten, *world_); }
  world_->barrier();
  EXPECT_EQ(failures(fs::is_empty(path.parent_path())), 0);
}

TEST_F(EvaluatorTest, SeveralOrUnknownTargetsAreWrittenAsTheyAre) {
  const fs::path path = folder_ / "few.jsonl";
  const std::vector<int32_t> two = {4, 2}, items = {7, 1};
  const std::vector<double> scores = {-0.5, -1.25};
  {
    PredictionWriter writer(path, *corpus_, PredictionWriter::Targets::kWritten, *world_);
    if (world_->rank() == 0) writer.add(3, 17, two, items, scores);
    if (world_->rank() == world_->size() - 1) writer.add(5, "x\"y", {}, {}, {});
    writer.finish();
  }
  EXPECT_EQ(read_text_file(path),
            "{\"user\": 17, \"targets\": [5, 3], \"items\": [8, 2], \"scores\": [-0.5, -1.25]}\n"
            "{\"user\": \"x\\\"y\", \"targets\": [], \"items\": [], \"scores\": []}\n");
  world_->barrier();
  {
    PredictionWriter writer(path, *corpus_, PredictionWriter::Targets::kUnknown, *world_);
    if (world_->rank() == 0) writer.add(3, 17, {}, items, scores);
    writer.finish();
  }
  EXPECT_EQ(read_text_file(path), "{\"user\": 17, \"items\": [8, 2], \"scores\": [-0.5, -1.25]}\n");
}

TEST_F(EvaluatorTest, RefusesARecommenderThatForgetsUsers) {
  const Recommender forgetful = [](auto) { return RankedLists{}; };
  EXPECT_THROW(evaluate_users(*corpus_, forgetful, config_, *make_self_communicator()), Error);
}

TEST_F(EvaluatorTest, TheResultNamesSplitHashAndSettings) {
  const CountingBaselines baselines(*corpus_);
  const EvaluationResult result = evaluate_users(*corpus_, recommend, config_, *world_, &baselines);
  const json out = to_json(result, *corpus_, config_, 20);
  EXPECT_EQ(out["dataset"], "tiny");
  EXPECT_EQ(out["split"], "test");
  EXPECT_EQ(out["split_rule"], "leave_one_out");
  EXPECT_EQ(out["split_hash"], corpus_->split_hash());
  EXPECT_EQ(out["tie_policy"], "file");
  EXPECT_EQ(out["exclude_history"], true);
  EXPECT_EQ(out["beam_size"], 12);
  EXPECT_EQ(out["users"], kUsers);
  EXPECT_EQ(out["items"], kItems);
  EXPECT_EQ(out["recall@10"], result.figure(result.model, "recall@10").mean);
  EXPECT_EQ(out["markov_recall@10"], result.figure(result.markov, "recall@10").mean);
  EXPECT_EQ(out["popularity_ndcg@5"], result.figure(result.popularity, "ndcg@5").mean);
  EXPECT_EQ(out["intervals"]["recall@10"][1], result.figure(result.model, "recall@10").high);
  int64_t targets = 0;
  for (const auto& band : out["bands"]) targets += band["targets"].get<int64_t>();
  EXPECT_EQ(targets, result.targets);
  EXPECT_THROW(result.figure(result.model, "recall@7"), Error);
}

TEST_F(EvaluatorTest, BlocksGoRoundTheRanksAndCoverAllUsersOnce) {
  std::vector<int> taken(23, 0);
  for (int rank = 0; rank < 3; ++rank) {
    for_each_block_of_rank(23, 4, rank, 3, [&](int64_t begin, int64_t end) {
      EXPECT_EQ(begin / 4 % 3, rank);
      for (int64_t user = begin; user < end; ++user) ++taken[user];
    });
  }
  EXPECT_EQ(taken, std::vector<int>(23, 1));
}

TEST_F(EvaluatorTest, ReadsTheHistoriesOfScatteredUsers) {
  const std::vector<int64_t> users = {0, 3, 49, 50, 99, 136};  // shards hold 50 users
  const HistoryBlock some = read_user_histories(*corpus_, users);
  for (size_t i = 0; i < users.size(); ++i) {
    const HistoryBlock one =
        corpus_->read_histories(users[i] / 50, users[i] % 50, users[i] % 50 + 1);
    EXPECT_TRUE(std::ranges::equal(some.history(i), one.history(0))) << users[i];
    EXPECT_EQ(some.train_length[i], one.train_length[0]);
  }
  const std::vector<json> ids = read_user_ids(*corpus_, users);
  EXPECT_EQ(ids, (std::vector<json>{1, 4, 50, 51, 100, 137}));
  const std::vector<std::string> wanted = {"137", "4"};
  EXPECT_EQ(find_users(*corpus_, wanted), (std::vector<int64_t>{136, 3}));
}

TEST_F(EvaluatorTest, RefusesUsersThatDoNotExist) {
  EXPECT_THROW(find_users(*corpus_, std::vector<std::string>{"138"}), Error);
  EXPECT_THROW(read_user_histories(*corpus_, std::vector<int64_t>{kUsers}), Error);
  EXPECT_THROW(read_user_histories(*corpus_, std::vector<int64_t>{5, 4}), Error);
}

}  // namespace
}  // namespace mirabelle
