#include "mirabelle/data/dataset_folder.h"

#include <gtest/gtest.h>

#include <fstream>

#include "mirabelle/data/corpus.h"
#include "mirabelle/data/npy.h"
#include "support/errors.h"
#include "support/temporary_folder.h"

namespace mirabelle {
namespace {

namespace fs = std::filesystem;
using testing::expect_error;
using testing::TemporaryFolder;

constexpr char kItems[] =
    "{\"item\": 1, \"title\": \"One\", \"brand\": \"X\"}\n{\"item\": 2}\n{\"item\": 3, \"title\": "
    "\"Three\"}\n";

CorpusOptions named() {
  CorpusOptions options;
  options.dataset = "test";
  return options;
}

class DatasetFolderTest : public ::testing::Test {
 protected:
  DatasetFolderTest() {
    folder.write("in/sequences.txt", "7 1 2 3\n5 3\n");
    folder.write("in/timestamps.txt", "7 10 20 30\n5 -1\n");
    folder.write("in/ratings.txt", "7 4.5 3 -2e-1\n5 1\n");
    folder.write("in/items.jsonl", kItems);
    write_features("in/features/text.npy", {0, 0, 1, 2, 3, 4, 5, 6}, 4);
  }
  void write_features(const std::string& name, const std::vector<float>& values, int64_t rows) {
    write_npy(folder / name, values.data(), rows, static_cast<int64_t>(values.size()) / rows);
  }
  Corpus import(const CorpusOptions& options = named()) {
    import_dataset_folder(folder / "in", folder / "out", options);
    return Corpus(folder / "out");
  }
  /// The import fails with this message and leaves nothing.
  void expect_refused(const std::string& message, const CorpusOptions& options = named()) {
    expect_error(ErrorKind::kData, message, [&] { import(options); });
    for (const auto& entry : fs::directory_iterator(folder.path())) {
      EXPECT_EQ(entry.path().filename(), "in");
    }
  }
  TemporaryFolder folder;
};

TEST_F(DatasetFolderTest, ImportsEverythingThatIsThere) {
  const Corpus corpus = import();
  EXPECT_EQ(corpus.num_users(), 2);
  EXPECT_EQ(corpus.num_items(), 3);
  EXPECT_EQ(corpus.num_events(), 4);
  const HistoryBlock block = corpus.read_histories(0, 0, 2, true);
  EXPECT_EQ(block.items, (std::vector<int32_t>{0, 1, 2, 2}));
  EXPECT_EQ(block.timestamps, (std::vector<int64_t>{10, 20, 30, -1}));
  EXPECT_EQ(corpus.event_columns(), std::vector<std::string>{"ratings"});
  EXPECT_EQ(corpus.read_event_column("ratings", 0, 0, 2), (std::vector<float>{4.5, 3, -0.2f, 1}));
  EXPECT_EQ(corpus.read_user_ids(0, 0, 2), (std::vector<nlohmann::json>{7, 5}));
  EXPECT_EQ(corpus.item_id(0), 1);
  EXPECT_EQ(corpus.titles(), (std::vector<std::string>{"One", "", "Three"}));
  EXPECT_EQ(corpus.item_metadata(0)["brand"], "X");
  std::vector<float> rows(6);
  corpus.read_features("text", 0, 3, rows.data());
  EXPECT_EQ(rows, (std::vector<float>{1, 2, 3, 4, 5, 6}));
}

TEST_F(DatasetFolderTest, WithoutItemsTheFeaturesSayHowManyThereAre) {
  fs::remove(folder / "in/items.jsonl");
  write_features("in/features/text.npy", {0, 1, 2, 3, 4, 5}, 6);
  EXPECT_EQ(import().num_items(), 5);
  fs::remove_all(folder / "in/features");
  const Corpus corpus = import();
  EXPECT_EQ(corpus.num_items(), 3);  // the largest item of the sequences
  EXPECT_EQ(corpus.titles()[2], "");
  EXPECT_TRUE(corpus.feature_names().empty());
}

TEST_F(DatasetFolderTest, TakesTabsCarriageReturnsAndNoFinalLineEnd) {
  folder.write("in/sequences.txt",
               "\xEF\xBB\xBF"
               "7\t1  2 3 \r\n5 3");
  const HistoryBlock block = import().read_histories(0, 0, 2);
  EXPECT_EQ(block.items, (std::vector<int32_t>{0, 1, 2, 2}));
}

TEST_F(DatasetFolderTest, LinesLongerThanTheBufferAreWhole) {
  fs::remove(folder / "in/timestamps.txt");
  fs::remove(folder / "in/ratings.txt");
  std::string line = "1";
  for (int event = 0; event < 1'200'000; ++event) line += event % 3 == 0 ? " 3" : " 2";
  folder.write("in/sequences.txt", "0 1\n" + line + "\n2 1\n");
  const Corpus corpus = import();
  const HistoryBlock block = corpus.read_histories(0, 1, 2);
  ASSERT_EQ(block.items.size(), 1'200'000u);
  EXPECT_EQ(std::count(block.items.begin(), block.items.end(), 2), 400'000);
  EXPECT_EQ(corpus.read_user_ids(0, 2, 3)[0], 2);
}

TEST_F(DatasetFolderTest, RefusesItemsThatAreNoneOfTheCatalogue) {
  folder.write("in/sequences.txt", "7 1 2 3\n5 4\n");
  expect_refused("sequences.txt:2: item 4 is not in the catalogue of 3 items");
  folder.write("in/sequences.txt", "7 1 2 0\n5 3\n");
  expect_refused("sequences.txt:1: item \"0\", wanted an integer of at least 1");
  folder.write("in/sequences.txt", "7 1 2 -3\n5 3\n");
  expect_refused("sequences.txt:1: item \"-3\"");
  folder.write("in/sequences.txt", "7 1 2 x3\n5 3\n");
  expect_refused("sequences.txt:1: item \"x3\"");
  folder.write("in/sequences.txt", "7 1 2 3\n5 3000000000\n");
  expect_refused("sequences.txt:2: item 3000000000 is above 2147483647");
}

TEST_F(DatasetFolderTest, RefusesRaggedSideFiles) {
  folder.write("in/timestamps.txt", "7 10 20\n5 -1\n");
  expect_refused("timestamps.txt:1: has 2 values, ");
  folder.write("in/timestamps.txt", "7 10 20 30\n6 -1\n");
  expect_refused("timestamps.txt:2: is of user \"6\", ");
  folder.write("in/timestamps.txt", "7 10 20 30\n");
  expect_refused("timestamps.txt: ends after line 1, ");
  folder.write("in/timestamps.txt", "7 10 20 30\n5 -1\n4 1\n");
  expect_refused("timestamps.txt:3: sequences.txt has only 2 lines");
}

TEST_F(DatasetFolderTest, RefusesValuesThatAreNoNumbers) {
  folder.write("in/timestamps.txt", "7 10 20 -2\n5 -1\n");
  expect_refused("timestamps.txt:1: value 3 is \"-2\", wanted a time in seconds or -1");
  folder.write("in/timestamps.txt", "7 10 2.5 3\n5 -1\n");
  expect_refused("timestamps.txt:1: value 2 is \"2.5\"");
  folder.write("in/timestamps.txt", "7 10 20 30\n5 -1\n");
  folder.write("in/ratings.txt", "7 4.5 3 -2\n5 nan\n");
  expect_refused("ratings.txt:2: value 1 is \"nan\", wanted a finite number");
}

TEST_F(DatasetFolderTest, RefusesUsersThatComeTwiceOrHaveNothing) {
  fs::remove(folder / "in/timestamps.txt");
  fs::remove(folder / "in/ratings.txt");
  folder.write("in/sequences.txt", "7 1\n50 1\n5 1\n7 2\n");
  expect_refused("sequences.txt:4: user 7 has come before, in line 1");
  folder.write("in/sequences.txt", "7 1\n5\n");
  expect_refused("sequences.txt:2: user 5 has no items");
  folder.write("in/sequences.txt", "7 1\n\n");
  expect_refused("sequences.txt:2: is blank");
  folder.write("in/sequences.txt", "");
  expect_refused("sequences.txt: is empty");
}

TEST_F(DatasetFolderTest, RefusesABadCatalogue) {
  folder.write("in/items.jsonl", "{\"item\": 1}\n{\"item\": 2\n");
  expect_refused("items.jsonl:2: malformed JSON");
  folder.write("in/items.jsonl", "{\"item\": 1}\n{\"item\": 3}\n");
  expect_refused("items.jsonl:2: \"item\" is 3, wanted 2");
  folder.write("in/items.jsonl", "{\"item\": 1}\n[2]\n");
  expect_refused("items.jsonl:2: is [2], wanted an object with \"item\"");
  folder.write("in/items.jsonl", "{\"item\": 1.5}\n");
  expect_refused("items.jsonl:1: \"item\" is 1.5");
  folder.write("in/items.jsonl", "");
  expect_refused("items.jsonl: is empty");
}

TEST_F(DatasetFolderTest, RefusesFeaturesOfAnotherSizeOrWithoutTheZeroRow) {
  write_features("in/features/text.npy", {0, 1, 2}, 3);
  expect_refused("text.npy: has 3 rows, the catalogue's 3 items want 4");
  write_features("in/features/text.npy", {0, 1, 1, 1, 2, 2, 3, 3}, 4);
  expect_refused("text.npy: row 0 is not zero");
  write_features("in/features/text.npy", {0, 0, 1, 1, 2, NAN, 3, 3}, 4);
  expect_refused("text.npy: row 2, column 1: nan, wanted a finite number");
}

TEST_F(DatasetFolderTest, ATimeSplitNamesTheLineOfAnUnknownTime) {
  CorpusOptions options = named();
  options.split = "time";
  options.test_from = 30;
  expect_refused("sequences.txt:2: event 1 has no known time", options);
  fs::remove(folder / "in/timestamps.txt");
  expect_refused("there are none", options);
}

TEST_F(DatasetFolderTest, RefusesAFolderWithoutSequences) {
  fs::remove(folder / "in/sequences.txt");
  expect_refused("sequences.txt: no such file");
  fs::remove_all(folder / "in");
  expect_refused("in: no such folder");
}

TEST_F(DatasetFolderTest, ReportsProgressUpToTheEnd) {
  std::string sequences;
  for (int user = 0; user < 10'000; ++user) sequences += std::to_string(user) + " 1 2\n";
  fs::remove(folder / "in/timestamps.txt");
  fs::remove(folder / "in/ratings.txt");
  folder.write("in/sequences.txt", sequences);
  std::vector<std::pair<int64_t, double>> told;
  CorpusOptions options = named();
  options.progress = [&](int64_t events, double part) { told.emplace_back(events, part); };
  import(options);
  ASSERT_EQ(told.size(), 3u);
  EXPECT_EQ(told[0].first, 8192);
  EXPECT_NEAR(told[0].second, 4096 / 10000.0, 0.02);
  EXPECT_EQ(told[2], std::pair(int64_t{20'000}, 1.0));
}

}  // namespace
}  // namespace mirabelle
