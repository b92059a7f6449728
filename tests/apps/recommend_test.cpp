#include <set>
#include <sstream>

#include "apps/trained_run.h"

namespace mirabelle {
namespace {

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

TEST_F(RecommendProgramTest, RefusesAnUnknownUserAndTooManyItems) {
  EXPECT_EQ(recommend("--user 84 --output out.jsonl"), 3);
  EXPECT_NE(output().find("'84'"), std::string::npos) << output();
  EXPECT_EQ(recommend("--count 13 --output out.jsonl"), 2);
  EXPECT_EQ(recommend("--count 0 --output out.jsonl"), 2);
  EXPECT_FALSE(exists("out.jsonl"));
}

}  // namespace
}  // namespace mirabelle
