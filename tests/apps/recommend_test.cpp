#include <set>
#include <sstream>

#include "apps/trained_run.h"

namespace mirabelle {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

class RecommendProgramTest : public testing::TrainedRun {
 protected:
  int recommend(const std::string& arguments, int ranks = 1) const {
    return run("mirabelle-recommend", arguments, ranks);
  }
  std::vector<json> lines(const std::string& name) const {
    std::vector<json> result;
    std::istringstream in(read_text_file(folder / name));
    for (std::string line; std::getline(in, line);) result.push_back(json::parse(line));
    return result;
  }
  /// The last bits of scores depend on the users of a batch.
  static void expect_same(const json& actual, const json& expected) {
    EXPECT_EQ(actual["user"], expected["user"]);
    EXPECT_EQ(actual["items"], expected["items"]);
    ASSERT_EQ(actual["scores"].size(), expected["scores"].size());
    for (size_t i = 0; i < expected["scores"].size(); ++i) {
      EXPECT_NEAR(actual["scores"][i].get<double>(), expected["scores"][i].get<double>(), 1e-5);
    }
  }
};

TEST_F(RecommendProgramTest, RecommendsNewItemsToNamedUsers) {
  ASSERT_EQ(recommend("--user 83 --user 7 --user 7 --count 4 --output out.jsonl"), 0) << output();
  const std::vector<json> result = lines("out.jsonl");
  ASSERT_EQ(result.size(), 2u);
  const Corpus corpus(folder / "corpus");
  for (size_t i = 0; i < 2; ++i) {
    const int64_t user = i == 0 ? 6 : 82;
    EXPECT_EQ(result[i]["user"], user + 1);
    EXPECT_FALSE(result[i].contains("target"));
    ASSERT_EQ(result[i]["items"].size(), 4u);
    const HistoryBlock block = corpus.read_histories(user / 50, user % 50, user % 50 + 1);
    const std::set<int32_t> seen(block.items.begin(), block.items.end());
    for (const json& item : result[i]["items"]) {
      EXPECT_FALSE(seen.contains(item.get<int32_t>() - 1));
      EXPECT_NE(output().find("Item " + std::to_string(item.get<int>())), std::string::npos);
    }
  }
  EXPECT_NE(output().find("User 83"), std::string::npos);
}

TEST_F(RecommendProgramTest, ServesAllUsersOnAnyNumberOfRanks) {
  ASSERT_EQ(recommend("--output one.jsonl --json result.json"), 0) << output();
  ASSERT_EQ(recommend("--output two.jsonl", 2), 0) << output();
  EXPECT_EQ(lines("one.jsonl").size(), static_cast<size_t>(kUsers));
  EXPECT_EQ(read_text_file(folder / "one.jsonl"), read_text_file(folder / "two.jsonl"));
  EXPECT_EQ(read_json("result.json")["users"], kUsers);
}

// What a killed run leaves: lines of some users, of which the last is cut.
TEST_F(RecommendProgramTest, GoesOnWhereItWasInterruptedOnAnyNumberOfRanks) {
  ASSERT_EQ(recommend("--output whole.jsonl"), 0) << output();
  const std::string whole = read_text_file(folder / "whole.jsonl");
  // A run that ends early, since its output's folder goes away, would leave its parts; here they
  // are made by hand, so that it can be seen that they are kept: their scores are no scores.
  write_text_file(folder / "out.jsonl.rank0", "3\t{\"mark\": 3}\n7\t{\"mark\": 7}\n9\t{\"ma");
  write_text_file(folder / "out.jsonl.rank5", "4\t{\"mark\": 4}\n");
  ASSERT_EQ(recommend("--output out.jsonl"), 0) << output();
  // of another run, so not taken over
  EXPECT_EQ(read_text_file(folder / "out.jsonl"), whole);
  EXPECT_FALSE(exists("out.jsonl.rank5"));

  // A run that cannot put its result in place has left all but that.
  write_text_file(folder / "late.jsonl" / "in the way", "");
  EXPECT_NE(recommend("--output late.jsonl", 2), 0);
  ASSERT_TRUE(exists("late.jsonl.rank0"));
  ASSERT_TRUE(exists("late.jsonl.run"));
  std::string part = read_text_file(folder / "late.jsonl.rank0");
  part = "0\t{\"mark\": 0}\n" + part.substr(part.find('\n') + 1);
  part.resize(part.size() - 4);  // the last line is cut
  write_text_file(folder / "late.jsonl.rank0", part);
  fs::remove_all(folder / "late.jsonl");
  ASSERT_EQ(recommend("--output late.jsonl"), 0) << output();
  EXPECT_NE(output().find("of 83 users were done before"), std::string::npos) << output();
  const std::vector<json> late = lines("late.jsonl"), expected = lines("whole.jsonl");
  ASSERT_EQ(late.size(), expected.size());
  EXPECT_EQ(late[0], json({{"mark", 0}}));
  for (size_t i = 1; i < late.size(); ++i) expect_same(late[i], expected[i]);
  for (const char* left :
       {"late.jsonl.rank0", "late.jsonl.rank1", "late.jsonl.done", "late.jsonl.run"}) {
    EXPECT_FALSE(exists(left)) << left;
  }
}

TEST_F(RecommendProgramTest, AnswersLinesOnStandardInputAsItAnswersTheCorpus) {
  ASSERT_EQ(recommend("--output corpus.jsonl --count 5"), 0) << output();
  const Corpus corpus(folder / "corpus");
  std::string asked, expected;
  for (int64_t user = 0; user < kUsers; ++user) {
    json items = json::array();
    for (const int32_t item : corpus.read_histories(user / 50, user % 50, user % 50 + 1).items) {
      items.push_back(corpus.item_id(item));
    }
    asked += json{{"user", user + 1}, {"items", items}}.dump() + (user % 7 == 0 ? "\n \n" : "\n");
  }
  write_text_file(folder / "asked.jsonl", asked);
  expected = read_text_file(folder / "corpus.jsonl");
  ASSERT_EQ(recommend("--stdin --count 5 --output answers.jsonl < asked.jsonl"), 0) << output();
  EXPECT_EQ(read_text_file(folder / "answers.jsonl"), expected);
  ASSERT_EQ(recommend("--stdin --count 5 --set evaluation.batch_users=7 < asked.jsonl "
                      "2> log.txt | cat",
                      3),
            0);
  const std::vector<json> answers = lines("out.txt"), same = lines("corpus.jsonl");
  ASSERT_EQ(answers.size(), same.size());
  for (size_t i = 0; i < same.size(); ++i) expect_same(answers[i], same[i]);

  // of an interrupted run: two answers and a part of the third
  write_text_file(folder / "again.jsonl.partial", "first\nsecond\n{\"user");
  ASSERT_EQ(recommend("--stdin --count 5 --output again.jsonl < asked.jsonl", 2), 0) << output();
  std::istringstream again(read_text_file(folder / "again.jsonl"));
  for (size_t i = 0; i < same.size(); ++i) {
    std::string line;
    ASSERT_TRUE(std::getline(again, line));
    if (i < 2) {
      EXPECT_EQ(line, i == 0 ? "first" : "second");
    } else {
      expect_same(json::parse(line), same[i]);
    }
  }
  EXPECT_FALSE(exists("again.jsonl.partial"));
}

TEST_F(RecommendProgramTest, RefusesLinesThatMakeNoSense) {
  const auto expect_refused = [&](const std::string& line, const std::string& message) {
    write_text_file(folder / "asked.jsonl", "{\"user\": \"a\", \"items\": []}\n" + line + "\n");
    EXPECT_EQ(recommend("--stdin --output out.jsonl < asked.jsonl"), 3);
    EXPECT_NE(output().find("standard input, line 2"), std::string::npos) << output();
    EXPECT_NE(output().find(message), std::string::npos) << output();
    EXPECT_FALSE(exists("out.jsonl"));
    fs::remove(folder / "out.jsonl.partial");
  };
  expect_refused("{\"user\": 1}", "items");
  expect_refused("{\"items\": [1]}", "user");
  expect_refused("{\"user\": 1, \"items\": [41]}", "the catalogue has no item 41");
  expect_refused("{\"user\": 1, \"items\": 1}", "items");
  expect_refused("hello", "line 2");
  EXPECT_EQ(recommend("--stdin --user 3"), 2);
}

TEST_F(RecommendProgramTest, RefusesAnUnknownUserAndTooManyItems) {
  EXPECT_EQ(recommend("--user 84 --output out.jsonl"), 3);
  EXPECT_NE(output().find("'84'"), std::string::npos) << output();
  EXPECT_EQ(recommend("--count 13 --output out.jsonl"), 2);
  EXPECT_EQ(recommend("--count 0 --output out.jsonl"), 2);
  EXPECT_FALSE(exists("out.jsonl"));
}

}  // namespace
}  // namespace mirabelle
