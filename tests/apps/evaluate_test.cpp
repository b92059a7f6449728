#include <algorithm>
#include <sstream>

#include "apps/trained_run.h"

namespace mirabelle {
namespace {

using nlohmann::json;

class EvaluateProgramTest : public testing::TrainedRun {
 protected:
  int evaluate(const std::string& arguments, int ranks = 1) const {
    return run("mirabelle-evaluate", arguments, ranks);
  }
};

TEST_F(EvaluateProgramTest, WritesTheFiguresWithEverythingThatMakesThemComparable) {
  ASSERT_EQ(evaluate("--json result.json"), 0) << output();
  const json result = read_json("result.json");
  for (const char* key :
       {"recall@5", "recall@10", "ndcg@5", "ndcg@10", "popularity_recall@10", "markov_recall@10",
        "intervals", "bands", "mrr", "coverage@10", "users_per_second"}) {
    EXPECT_TRUE(result.contains(key)) << key;
  }
  EXPECT_EQ(result["dataset"], "tiny");
  EXPECT_EQ(result["split"], "test");
  EXPECT_EQ(result["split_hash"], Corpus(folder / "corpus").split_hash());
  EXPECT_EQ(result["users"], kUsers);
  EXPECT_EQ(result["items"], kItems);
  EXPECT_EQ(result["train_steps"], 30);
  EXPECT_EQ(result["train_seconds"], 9.0);
  EXPECT_EQ(result["tokens_per_second"], 250.0);
  EXPECT_EQ(result["history_length"], 5);  // the checkpoint's configuration, not the default
  EXPECT_EQ(result["beam_size"], 12);
  EXPECT_EQ(result["invalid_beams"], 0);
  EXPECT_EQ(result["duplicate_beams"], 0);
  EXPECT_NE(result["config"].get<std::string>().find("hidden_size: 16"), std::string::npos);
  EXPECT_NE(output().find("Markov"), std::string::npos);
  EXPECT_NE(output().find("test split"), std::string::npos);
}

TEST_F(EvaluateProgramTest, TheSummaryOfTheRunGoesBeforeTheCheckpoint) {
  write_text_file(folder / "train" / "summary.json",
                  R"({"train_steps": 77, "train_seconds": 12.5, "tokens_per_second": 321})");
  ASSERT_EQ(evaluate("--json result.json"), 0) << output();
  const json result = read_json("result.json");
  EXPECT_EQ(result["train_steps"], 77);
  EXPECT_EQ(result["train_seconds"], 12.5);
  EXPECT_EQ(result["tokens_per_second"], 321);
  EXPECT_EQ(result["checkpoint_step"], 30);
}

TEST_F(EvaluateProgramTest, OverridesLieOverTheCheckpointsConfiguration) {
  ASSERT_EQ(evaluate("--json result.json --set evaluation.split=validation --set "
                     "data.history_length=2 --set evaluation.max_users=20"),
            0)
      << output();
  const json result = read_json("result.json");
  EXPECT_EQ(result["split"], "validation");
  EXPECT_EQ(result["history_length"], 2);
  EXPECT_EQ(result["users"], 20);
  EXPECT_EQ(result["beam_size"], 12);
  EXPECT_NE(output().find("validation split"), std::string::npos);
}

TEST_F(EvaluateProgramTest, PrintsTheCheckpointsConfigurationWithTheOverrides) {
  ASSERT_EQ(evaluate("--print-config --set evaluation.beam_size=11"), 0) << output();
  EXPECT_NE(output().find("history_length: 5 "), std::string::npos) << output();
  EXPECT_NE(output().find("beam_size: 11 "), std::string::npos) << output();
}

TEST_F(EvaluateProgramTest, TwoRanksPredictWhatOneDoes) {
  ASSERT_EQ(evaluate("--json one.json --predictions one.jsonl"), 0) << output();
  ASSERT_EQ(evaluate("--json two.json --predictions two.jsonl", 2), 0) << output();
  EXPECT_EQ(read_text_file(folder / "one.jsonl"), read_text_file(folder / "two.jsonl"));
  const json one = read_json("one.json"), two = read_json("two.json");
  EXPECT_EQ(one["recall@10"], two["recall@10"]);
  EXPECT_EQ(one["intervals"], two["intervals"]);
  EXPECT_EQ(two["ranks"], 2);
}

TEST_F(EvaluateProgramTest, ExactScoringAgreesWithABeamAsWideAsTheCatalogue) {
  ASSERT_EQ(evaluate("--predictions beam.jsonl --set evaluation.beam_size=40"), 0) << output();
  ASSERT_EQ(evaluate("--predictions exact.jsonl --set evaluation.beam_size=40 --set "
                     "evaluation.mode=exact"),
            0)
      << output();
  std::istringstream beam(read_text_file(folder / "beam.jsonl")),
      exact(read_text_file(folder / "exact.jsonl"));
  int64_t num_lines = 0;
  for (std::string a, b; std::getline(beam, a) && std::getline(exact, b); ++num_lines) {
    const json from_beam = json::parse(a), from_exact = json::parse(b);
    EXPECT_EQ(from_beam["items"], from_exact["items"]);
    for (size_t i = 0; i < from_beam["scores"].size(); ++i) {
      EXPECT_NEAR(from_beam["scores"][i].get<double>(), from_exact["scores"][i].get<double>(),
                  1e-4);
    }
  }
  EXPECT_EQ(num_lines, kUsers);
}

TEST_F(EvaluateProgramTest, DrawsTheReport) {
  ASSERT_EQ(evaluate("--report report.html"), 0) << output();
  const std::string page = read_text_file(folder / "report.html");
  for (const char* part : {"Training loss", "Level 1: 40 of 40", "Example users", "Item "}) {
    EXPECT_NE(page.find(part), std::string::npos) << part;
  }
}

TEST_F(EvaluateProgramTest, ExitsWithTwoForWrongConfiguration) {
  for (const char* arguments :
       {"--set evaluation.beam_size=9", "--set evaluation.split=train",
        "--set evaluation.checkpoint=nowhere", "--set model.hidden_size=32", "--nonsense"}) {
    EXPECT_EQ(evaluate(std::string("--json result.json ") + arguments), 2) << arguments;
    const std::string text = output();
    EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 1) << text;
    EXPECT_FALSE(exists("result.json"));
  }
}

TEST_F(EvaluateProgramTest, ExitsWithThreeForAnotherCatalogue) {
  write_tiny_corpus(folder / "other", kUsers, kItems + 1, 3);
  EXPECT_EQ(evaluate("--set data.corpus=other --predictions p.jsonl"), 3);
  EXPECT_NE(output().find("41"), std::string::npos) << output();
  EXPECT_FALSE(exists("p.jsonl"));
}

}  // namespace
}  // namespace mirabelle
