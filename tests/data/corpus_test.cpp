#include "mirabelle/data/corpus.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <fstream>
#include <map>
#include <numeric>
#include <regex>
#include <set>

#include "mirabelle/core/files.h"
#include "mirabelle/data/corpus_writer.h"
#include "support/errors.h"
#include "support/temporary_folder.h"
#include "support/tiny_corpus.h"

namespace mirabelle {
namespace {

namespace fs = std::filesystem;
using testing::expect_error;
using testing::TemporaryFolder;

CorpusOptions named(const std::string& name = "test") {
  CorpusOptions options;
  options.dataset = name;
  return options;
}

/// Histories [1 2 3 4], [5 1], [3 3 3] of users "ann", "bob", "cy", items "a" to "e".
fs::path write_hand_made(const fs::path& folder, CorpusOptions options) {
  CorpusWriter writer(folder, options, true, {"rating"});
  for (const char* id : {"a", "b", "c", "d", "e"}) {
    writer.add_item(id, std::string("Title ") + id, R"({"item": ")" + std::string(id) + "\"}");
  }
  writer.add_user({"ann", {0, 1, 2, 3}, {10, 20, 20, -1}, {{1, 2, 3, 4}}, ""});
  writer.add_user({"bob", {4, 0}, {5, 6}, {{0.5f, 0.25f}}, ""});
  writer.add_user({"cy", {2, 2, 2}, {7, 7, 7}, {{7, 8, 9}}, ""});
  writer.finish();
  return folder;
}

std::string output_of(const std::string& command) {
  std::FILE* pipe = ::popen(command.c_str(), "r");
  std::string text;
  std::array<char, 4096> piece;
  while (const size_t count = std::fread(piece.data(), 1, piece.size(), pipe)) {
    text.append(piece.data(), count);
  }
  EXPECT_EQ(::pclose(pipe), 0) << command;
  return text;
}

/// All numbers that h5dump prints for one dataset.
std::vector<double> dumped(const fs::path& file, const std::string& dataset) {
  const std::string text = output_of("h5dump -y -w 0 -m %.9g -d " + dataset + " " + file.string());
  const size_t begin = text.find('{', text.find("DATA {"));
  std::vector<double> numbers;
  const std::regex number(R"(-?[0-9.]+(e[-+][0-9]+)?)");
  const std::string data = text.substr(begin, text.find('}', begin) - begin);
  for (std::sregex_iterator match(data.begin(), data.end(), number), end; match != end; ++match) {
    numbers.push_back(std::stod(match->str()));
  }
  return numbers;
}

TEST(CorpusTest, GivesBackWhatWasWritten) {
  const TemporaryFolder folder;
  const Corpus corpus(write_hand_made(folder / "corpus", named("hand")));
  EXPECT_EQ(corpus.dataset(), "hand");
  EXPECT_EQ(corpus.split_name(), "leave_one_out");
  EXPECT_EQ(corpus.tie_policy(), "file");
  EXPECT_EQ(corpus.num_users(), 3);
  EXPECT_EQ(corpus.num_items(), 5);
  EXPECT_EQ(corpus.num_events(), 9);
  EXPECT_EQ(corpus.num_shards(), 1);
  const HistoryBlock block = corpus.read_histories(0, 0, 3, true);
  EXPECT_EQ(block.offsets, (std::vector<int64_t>{0, 4, 6, 9}));
  EXPECT_EQ(block.items, (std::vector<int32_t>{0, 1, 2, 3, 4, 0, 2, 2, 2}));
  EXPECT_EQ(block.timestamps, (std::vector<int64_t>{10, 20, 20, -1, 5, 6, 7, 7, 7}));
  EXPECT_EQ(block.train_length, (std::vector<int32_t>{2, 2, 1}));
  EXPECT_EQ(block.valid_length, (std::vector<int32_t>{1, 0, 1}));
  EXPECT_EQ(corpus.read_train_lengths(0, 1, 3), (std::vector<int32_t>{2, 1}));
  EXPECT_EQ(corpus.read_event_column("rating", 0, 1, 3),
            (std::vector<float>{0.5f, 0.25f, 7, 8, 9}));
  EXPECT_EQ(corpus.titles()[4], "Title e");
  EXPECT_EQ(corpus.item_metadata(2)["item"], "c");
  EXPECT_EQ(corpus.item_id(3), "d");
  EXPECT_EQ(corpus.read_user_ids(0, 1, 3), (std::vector<nlohmann::json>{"bob", "cy"}));
}

TEST(CorpusTest, ReadsARangeOfUsersByItself) {
  const TemporaryFolder folder;
  const Corpus corpus(write_hand_made(folder / "corpus", named()));
  const HistoryBlock block = corpus.read_histories(0, 1, 2);
  EXPECT_EQ(block.first_user, 1);
  EXPECT_EQ(block.num_users(), 1);
  EXPECT_EQ(block.offsets, (std::vector<int64_t>{0, 2}));
  EXPECT_EQ(block.items, (std::vector<int32_t>{4, 0}));
  EXPECT_TRUE(block.timestamps.empty());
  const HistoryBlock nobody = corpus.read_histories(0, 2, 2);
  EXPECT_EQ(nobody.num_users(), 0);
  EXPECT_TRUE(nobody.items.empty());
}

TEST(CorpusTest, HoldsInHdf5WhatItsFormatSays) {  // read by HDF5's own tool
  const TemporaryFolder folder;
  const fs::path shard = write_hand_made(folder / "corpus", named()) / "shard-00000.h5";
  EXPECT_EQ(dumped(shard, "offsets"), (std::vector<double>{0, 4, 6, 9}));
  EXPECT_EQ(dumped(shard, "items"), (std::vector<double>{0, 1, 2, 3, 4, 0, 2, 2, 2}));
  EXPECT_EQ(dumped(shard, "timestamps"), (std::vector<double>{10, 20, 20, -1, 5, 6, 7, 7, 7}));
  EXPECT_EQ(dumped(shard, "columns/rating"), (std::vector<double>{1, 2, 3, 4, 0.5, 0.25, 7, 8, 9}));
  EXPECT_EQ(dumped(shard, "train_length"), (std::vector<double>{2, 2, 1}));
  EXPECT_EQ(dumped(shard, "valid_length"), (std::vector<double>{1, 0, 1}));
  EXPECT_EQ(dumped(shard, "user_ids_offsets"), (std::vector<double>{0, 3, 6, 8}));
  EXPECT_EQ(dumped(shard, "user_ids_bytes"),
            (std::vector<double>{'a', 'n', 'n', 'b', 'o', 'b', 'c', 'y'}));
}

TEST(CorpusTest, CutsContextAndTargetsBySplit) {
  const TemporaryFolder folder;
  const Corpus corpus(write_hand_made(folder / "corpus", named()));
  const HistoryBlock block = corpus.read_histories(0, 0, 3);
  const auto list = [](std::span<const int32_t> items) {
    return std::vector<int32_t>(items.begin(), items.end());
  };
  EXPECT_EQ(list(block.context(0, Split::kTest)), (std::vector<int32_t>{0, 1, 2}));
  EXPECT_EQ(list(block.targets(0, Split::kTest)), (std::vector<int32_t>{3}));
  EXPECT_EQ(list(block.context(0, Split::kValidation)), (std::vector<int32_t>{0, 1}));
  EXPECT_EQ(list(block.targets(0, Split::kValidation)), (std::vector<int32_t>{2}));
  EXPECT_TRUE(block.targets(1, Split::kTest).empty());  // two events only train
  EXPECT_EQ(list(block.training_part(1)), (std::vector<int32_t>{4, 0}));
}

TEST(CorpusTest, SplitHashIsTheSha256OfTheDocumentedText) {
  const TemporaryFolder folder;
  const Corpus corpus(write_hand_made(folder / "corpus", named()));
  const fs::path text = folder.write("text",
                                     "ann\ta\tb\tc\td\t2\t1\n"
                                     "bob\te\ta\t2\t0\n"
                                     "cy\tc\tc\tc\t1\t1\n");
  EXPECT_EQ(corpus.split_hash(), output_of("sha256sum " + text.string()).substr(0, 64));
  EXPECT_EQ(corpus.split_hash(),
            "a6322dd54352386f606c61f3a62ab7602713b12f23702242f0cea44cc1dd8533");
}

TEST(CorpusTest, SplitHashDoesNotDependOnShardsOrNames) {
  const TemporaryFolder folder;
  CorpusOptions sharded = named("other");
  sharded.users_per_shard = 1;
  const Corpus one(write_hand_made(folder / "one", named()));
  const Corpus many(write_hand_made(folder / "many", sharded));
  EXPECT_EQ(many.num_shards(), 3);
  EXPECT_EQ(one.split_hash(), many.split_hash());
  CorpusOptions by_time = named();
  by_time.split = "time";
  by_time.valid_from = 11;
  by_time.test_from = 30;
  CorpusWriter writer(folder / "time", by_time, true, {});
  writer.add_item("a");
  writer.add_user({"u", {0}, {0}, {}, ""});
  writer.finish();
  EXPECT_NE(Corpus(folder / "time").split_hash(), one.split_hash());
}

TEST(CorpusTest, ShardsHoldUsersInOrder) {
  const TemporaryFolder folder;
  const Corpus corpus(write_tiny_corpus(folder / "tiny", 173, 31, 5));
  ASSERT_EQ(corpus.num_shards(), 4);
  int64_t user = 0, events = 0;
  for (int64_t shard = 0; shard < corpus.num_shards(); ++shard) {
    EXPECT_EQ(corpus.shard_first_user(shard), user);
    EXPECT_EQ(corpus.shard_users(shard), shard < 3 ? 50 : 23);
    const HistoryBlock block = corpus.read_histories(shard, 0, corpus.shard_users(shard));
    events += static_cast<int64_t>(block.items.size());
    for (const auto& id : corpus.read_user_ids(shard, 0, corpus.shard_users(shard))) {
      EXPECT_EQ(id, ++user);
    }
  }
  EXPECT_EQ(user, 173);
  EXPECT_EQ(events, corpus.num_events());
}

TEST(CorpusTest, KeepsIntegerIdsAsIntegersAndOthersAsStrings) {
  const TemporaryFolder folder;
  for (const auto& [id, is_integer] : std::map<std::string, bool>{{"7", true},
                                                                  {"-7", true},
                                                                  {"007", false},
                                                                  {"7.0", false},
                                                                  {"+7", false},
                                                                  {"x", false},
                                                                  {"9223372036854775807", true},
                                                                  {"9223372036854775808", false}}) {
    CorpusWriter writer(folder / "corpus", named(), false, {});
    writer.add_item(id);
    writer.add_item("12");
    writer.add_user({id, {0, 1}, {}, {}, ""});
    writer.finish();
    const Corpus corpus(folder / "corpus");
    EXPECT_EQ(corpus.item_id(1).is_number_integer(), is_integer) << id;
    EXPECT_EQ(corpus.read_user_ids(0, 0, 1)[0].is_number_integer(), is_integer) << id;
    EXPECT_EQ(corpus.item_id(0).is_string() ? corpus.item_id(0).get<std::string>()
                                            : corpus.item_id(0).dump(),
              id);
  }
}

TEST(CorpusTest, FeaturesComeBackRowByRow) {
  const TemporaryFolder folder;
  CorpusWriter writer(folder / "corpus", named(), false, {});
  std::vector<float> rows(7 * 3);
  std::iota(rows.begin(), rows.end(), -4.5f);
  for (int item = 0; item < 7; ++item) writer.add_item(std::to_string(item));
  writer.add_feature("a", 3);
  writer.add_feature_rows("a", rows.data(), 5);
  writer.add_feature_rows("a", rows.data() + 15, 2);
  writer.add_user({"1", {6}, {}, {}, ""});
  writer.finish();
  const Corpus corpus(folder / "corpus");
  EXPECT_EQ(corpus.feature_names(), std::vector<std::string>{"a"});
  EXPECT_EQ(corpus.feature_dim("a"), 3);
  std::vector<float> read(4 * 3);
  corpus.read_features("a", 2, 6, read.data());
  EXPECT_TRUE(std::equal(read.begin(), read.end(), rows.begin() + 6));
  EXPECT_EQ(dumped(folder / "corpus/features.h5", "features/a"),
            std::vector<double>(rows.begin(), rows.end()));
  expect_error(ErrorKind::kUsage, "has no feature b; it has a", [&] { corpus.feature_dim("b"); });
}

TEST(CorpusTest, ATimeSplitPutsBoundariesWithTheLaterPart) {
  const TemporaryFolder folder;
  CorpusOptions options = named();
  options.split = "time";
  options.valid_from = 100;
  options.test_from = 200;
  CorpusWriter writer(folder / "corpus", options, true, {});
  writer.add_item("a");
  writer.add_user({"1", {0, 0, 0, 0, 0, 0}, {1, 99, 100, 199, 200, 900}, {}, ""});
  writer.add_user({"2", {0, 0}, {200, 200}, {}, ""});
  writer.add_user({"3", {0, 0}, {0, 5}, {}, ""});
  writer.finish();
  const HistoryBlock block = Corpus(folder / "corpus").read_histories(0, 0, 3);
  EXPECT_EQ(block.train_length, (std::vector<int32_t>{2, 0, 2}));
  EXPECT_EQ(block.valid_length, (std::vector<int32_t>{2, 0, 0}));
  EXPECT_EQ(block.targets(0, Split::kTest).size(), 2u);
}

TEST(CorpusTest, ATimeSplitRefusesUnknownAndDescendingTimes) {
  const TemporaryFolder folder;
  CorpusOptions options = named();
  options.split = "time";
  options.test_from = 5;
  CorpusWriter writer(folder / "corpus", options, true, {});
  writer.add_item("a");
  expect_error(ErrorKind::kData, "file:3: event 2 has no known time", [&] {
    writer.add_user({"1", {0, 0}, {1, -1}, {}, "file:3"});
  });
  expect_error(ErrorKind::kData, "file:4: event 2 has time 1, before the former event's 2", [&] {
    writer.add_user({"1", {0, 0}, {2, 1}, {}, "file:4"});
  });
  CorpusWriter timeless(folder / "timeless", options, false, {});
  timeless.add_item("a");
  expect_error(ErrorKind::kData, "there are none", [&] {
    timeless.add_user({"1", {0}, {}, {}, ""});
  });
}

TEST(CorpusTest, ShufflePermutesOnlyTiesAndCarriesColumnsAlong) {
  const TemporaryFolder folder;
  std::set<std::vector<int32_t>> orders;
  std::set<std::string> hashes;
  for (int64_t seed = 0; seed < 20; ++seed) {
    CorpusOptions options = named();
    options.tie_policy = "shuffle";
    options.tie_seed = seed;
    CorpusWriter writer(folder / "corpus", options, true, {"column"});
    for (int item = 0; item < 8; ++item) writer.add_item(std::to_string(item));
    writer.add_user({"1",
                     {0, 1, 2, 3, 4, 5, 6, 7},
                     {1, 5, 5, 5, -1, -1, 9, 10},
                     {{0, 1, 2, 3, 4, 5, 6, 7}},
                     ""});
    writer.finish();
    const Corpus corpus(folder / "corpus");
    EXPECT_EQ(corpus.manifest()["tie_policy"]["seed"], seed);
    const HistoryBlock block = corpus.read_histories(0, 0, 1, true);
    EXPECT_EQ(block.timestamps, (std::vector<int64_t>{1, 5, 5, 5, -1, -1, 9, 10}));
    for (size_t event : {0, 4, 5, 6, 7}) EXPECT_EQ(block.items[event], static_cast<int>(event));
    const auto columns = corpus.read_event_column("column", 0, 0, 1);
    for (size_t event = 0; event < 8; ++event) EXPECT_EQ(columns[event], block.items[event]);
    orders.insert(block.items);
    hashes.insert(corpus.split_hash());
  }
  EXPECT_EQ(orders.size(),
            6u);  // 20 seeds miss one of 3! orders with probability 0.16: fixed seeds
  EXPECT_EQ(hashes.size(), orders.size());
}

TEST(CorpusTest, LongHistoriesSpillAndStayWhole) {  // more events than a column buffers
  const TemporaryFolder folder;
  constexpr int64_t kLength = 1'500'000;
  CorpusWriter writer(folder / "corpus", named(), false, {});
  for (int item = 0; item < 1000; ++item) writer.add_item(std::to_string(item));
  UserHistory history;
  for (int user = 0; user < 4; ++user) {
    history.id = std::to_string(user);
    history.items.clear();
    for (int64_t event = 0; event < kLength; ++event) {
      history.items.push_back(static_cast<int32_t>((event * (user + 3)) % 1000));
    }
    writer.add_user(history);
  }
  writer.finish();
  const Corpus corpus(folder / "corpus");
  EXPECT_EQ(corpus.num_events(), 4 * kLength);
  for (int user = 0; user < 4; ++user) {
    const HistoryBlock block = corpus.read_histories(0, user, user + 1);
    ASSERT_EQ(static_cast<int64_t>(block.items.size()), kLength);
    int64_t wrong = 0;
    for (int64_t event = 0; event < kLength; ++event) {
      wrong += block.items[event] != (event * (user + 3)) % 1000;
    }
    EXPECT_EQ(wrong, 0);
  }
}

TEST(CorpusTest, AnUnfinishedWriterLeavesNothingAndKeepsTheFormerCorpus) {
  const TemporaryFolder folder;
  const std::string hash = Corpus(write_hand_made(folder / "corpus", named())).split_hash();
  {
    CorpusWriter writer(folder / "corpus", named(), false, {});
    writer.add_item("a");
    writer.add_user({"1", {0}, {}, {}, ""});
  }
  EXPECT_EQ(Corpus(folder / "corpus").split_hash(), hash);
  EXPECT_EQ(std::distance(fs::directory_iterator(folder.path()), fs::directory_iterator()), 1);
}

TEST(CorpusTest, TheWriterRefusesWhatCannotBeRead) {
  const TemporaryFolder folder;
  CorpusWriter writer(folder / "corpus", named(), true, {"c"});
  writer.add_item("a");
  expect_error(ErrorKind::kData, "item ID is empty", [&] { writer.add_item(""); });
  expect_error(ErrorKind::kData, "control characters", [&] { writer.add_item("a\tb"); });
  expect_error(ErrorKind::kData, "where: item number 1 is not in the catalogue of 1", [&] {
    writer.add_user({"1", {1}, {0}, {{0}}, "where"});
  });
  expect_error(ErrorKind::kData, "item number -1", [&] {
    writer.add_user({"1", {-1}, {0}, {{0}}, ""});
  });
  expect_error(ErrorKind::kData, "has 0 times for 1 events", [&] {
    writer.add_user({"1", {0}, {}, {{0}}, ""});
  });
  expect_error(ErrorKind::kData, "has 0 event columns, wanted 1", [&] {
    writer.add_user({"1", {0}, {0}, {}, ""});
  });
  expect_error(ErrorKind::kData, "column c has 2 values for 1 events", [&] {
    writer.add_user({"1", {0}, {0}, {{1, 2}}, ""});
  });
  expect_error(ErrorKind::kData, "user ID is empty", [&] {
    writer.add_user({"", {0}, {0}, {{1}}, ""});
  });
  writer.add_feature("f", 2);
  expect_error(ErrorKind::kData, "comes twice", [&] { writer.add_feature("f", 2); });
  expect_error(ErrorKind::kData, "name without slashes", [&] { writer.add_feature("f/g", 2); });
  expect_error(ErrorKind::kData, "feature f has 0 rows, the catalogue has 1 items",
               [&] { writer.finish(); });
}

TEST(CorpusTest, OptionsAreChecked) {
  CorpusOptions options = named("");
  expect_error(ErrorKind::kUsage, "needs a name", [&] { options.check(); });
  options = named();
  options.split = "random";
  expect_error(ErrorKind::kUsage, "not random", [&] { options.check(); });
  options = named();
  options.tie_policy = "none";
  expect_error(ErrorKind::kUsage, "not none", [&] { options.check(); });
  options = named();
  options.users_per_shard = 0;
  expect_error(ErrorKind::kUsage, "users_per_shard is 0", [&] { options.check(); });
  options = named();
  options.split = "time";
  options.valid_from = 6;
  options.test_from = 5;
  expect_error(ErrorKind::kUsage, "valid_from 6 not after test_from 5", [&] { options.check(); });
  EXPECT_EQ(parse_split("test"), Split::kTest);
  EXPECT_STREQ(to_string(parse_split("validation")), "validation");
  expect_error(ErrorKind::kUsage, "not train", [&] { parse_split("train"); });
}

/// Every way to edit the manifest of a good corpus so that reading it must fail.
class CorpusManifestTest : public ::testing::Test {
 protected:
  void expect_refused(const std::string& message,
                      const std::function<void(nlohmann::json&)>& edit) {
    const TemporaryFolder folder;
    const fs::path path = write_hand_made(folder / "corpus", named()) / "manifest.json";
    nlohmann::json manifest = nlohmann::json::parse(read_text_file(path));
    edit(manifest);
    write_text_file(path, manifest.dump());
    expect_error(ErrorKind::kData, message, [&] { Corpus corpus(folder / "corpus"); });
    expect_error(ErrorKind::kData, "manifest.json", [&] { Corpus corpus(folder / "corpus"); });
  }
};

TEST_F(CorpusManifestTest, RefusesOtherSchemasAndVersions) {
  expect_refused("schema version is 2, this program reads version 1",
                 [](auto& manifest) { manifest["schema_version"] = 2; });
  expect_refused("schema is \"parquet\"", [](auto& manifest) { manifest["schema"] = "parquet"; });
}

TEST_F(CorpusManifestTest, RefusesMissingEntriesAndWrongTypes) {
  expect_refused("\"items\" is missing", [](auto& manifest) { manifest.erase("items"); });
  expect_refused("\"items\" is -1", [](auto& manifest) { manifest["items"] = -1; });
  expect_refused("\"users\" is 3.5", [](auto& manifest) { manifest["users"] = 3.5; });
  expect_refused("\"shards\" is \"one\"", [](auto& manifest) { manifest["shards"] = "one"; });
  expect_refused("\"sha256\" is missing",
                 [](auto& manifest) { manifest["shards"][0].erase("sha256"); });
  expect_refused("wanted a name within the folder",
                 [](auto& manifest) { manifest["shards"][0]["file"] = "../other.h5"; });
  expect_refused("\"name\" is \"half\"",
                 [](auto& manifest) { manifest["split"]["name"] = "half"; });
  expect_refused("\"valid_from\" is missing",
                 [](auto& manifest) { manifest["split"]["name"] = "time"; });
}

TEST_F(CorpusManifestTest, RefusesCountsThatDoNotAddUp) {
  expect_refused("the shards have 3 users, \"users\" is 4",
                 [](auto& manifest) { manifest["users"] = 4; });
  expect_refused("the shards have 9 events, \"events\" is 8",
                 [](auto& manifest) { manifest["events"] = 8; });
  expect_refused("\"feature_file\" is null", [](auto& manifest) {
    manifest["features"].push_back({{"name", "x"}, {"dim", 2}});
  });
}

TEST_F(CorpusManifestTest, RefusesMoreThanItsFilesHaveRoomFor) {
  const int64_t many = int64_t{1} << 40;
  expect_refused("items is 1099511627776, which has no room in the file",
                 [&](auto& manifest) { manifest["items"] = many; });
  expect_refused("shards: users is 1099511627776, which has no room in the file",
                 [&](auto& manifest) { manifest["shards"][0]["users"] = many; });
  expect_refused("shards: events is 1099511627776, which has no room in the file",
                 [&](auto& manifest) { manifest["shards"][0]["events"] = many; });
  expect_refused("features: dim is 1099511627776, which has no room in the file",
                 [&](auto& manifest) {
                   manifest["features"].push_back({{"name", "x"}, {"dim", many}});
                   manifest["feature_file"] = manifest["catalogue"];
                 });
  const TemporaryFolder folder;  // the manifest may claim the room, but the files do not have it
  const fs::path path = write_hand_made(folder / "corpus", named()) / "manifest.json";
  nlohmann::json manifest = nlohmann::json::parse(read_text_file(path));
  manifest["items"] = many;
  manifest["catalogue"]["bytes"] = many * 64;
  write_text_file(path, manifest.dump());
  expect_error(ErrorKind::kData, "catalogue.h5: has ", [&] { Corpus(folder / "corpus"); });
}

TEST_F(CorpusManifestTest, RefusesKeysGivenTwiceAndNamesOfOtherFolders) {
  for (const char* name : {"..", ".", "", "/etc/passwd", "a/../b"}) {
    expect_refused("wanted a name within the folder",
                   [&](auto& manifest) { manifest["catalogue"]["file"] = name; });
  }
  const TemporaryFolder folder;
  folder.write("manifest.json", R"({"schema": "mirabelle-corpus", "schema": "x"})");
  expect_error(ErrorKind::kData, "the key \"schema\" is given twice",
               [&] { Corpus corpus(folder.path()); });
}

TEST_F(CorpusManifestTest, RefusesAMissingOrMalformedManifest) {
  const TemporaryFolder folder;
  expect_error(ErrorKind::kData, "no such file", [&] { Corpus corpus(folder.path()); });
  folder.write("manifest.json", "{\"schema\": ");
  expect_error(ErrorKind::kData, "malformed JSON", [&] { Corpus corpus(folder.path()); });
  folder.write("manifest.json", "[]");
  expect_error(ErrorKind::kData, "is [], wanted an object", [&] { Corpus corpus(folder.path()); });
}

/// Replaces one dataset of the only shard by other values, and mends the size in the manifest.
template <typename T>
void replace_dataset(const fs::path& folder, const std::string& name,
                     const std::vector<T>& values) {
  const fs::path path = folder / "shard-00000.h5";
  {
    const fs::path old = folder / "old.h5";
    fs::rename(path, old);
    const Hdf5File from = Hdf5File::open(old);
    Hdf5File to = Hdf5File::create(path);
    for (const std::string& other : from.names()) {
      if (other == name || other == "columns") continue;
      const Shape shape = from.shape(other);
      if (from.dtype(other) == DType::kInt64) {
        to.write(other, view_of(from.read<int64_t>(other).data(), shape));
      } else if (from.dtype(other) == DType::kInt32) {
        to.write(other, view_of(from.read<int32_t>(other).data(), shape));
      } else {
        to.write(other, view_of(from.read<uint8_t>(other).data(), shape));
      }
    }
    to.write(name, view_of(values.data(), {static_cast<int64_t>(values.size())}));
    to.close();
    fs::remove(old);
  }
  nlohmann::json manifest = nlohmann::json::parse(read_text_file(folder / "manifest.json"));
  manifest["shards"][0]["bytes"] = fs::file_size(path);
  write_text_file(folder / "manifest.json", manifest.dump());
}

class CorpusShardTest : public ::testing::Test {
 protected:
  template <typename T>
  void expect_refused(const std::string& name, const std::vector<T>& values,
                      const std::string& message) {
    const TemporaryFolder folder;
    write_hand_made(folder / "corpus", named());
    replace_dataset(folder / "corpus", name, values);
    const Corpus corpus(folder / "corpus");
    expect_error(ErrorKind::kData, "shard-00000.h5: dataset " + message,
                 [&] { corpus.read_histories(0, 0, 3, true); });
  }
};

TEST_F(CorpusShardTest, RefusesOffsetsThatFallOrDoNotSpanTheEvents) {
  expect_refused<int64_t>("offsets", {0, 6, 4, 9}, "offsets: falls from 6 to 4 at user 1");
  expect_refused<int64_t>("offsets", {1, 4, 6, 9}, "offsets: users [0, 3) span events [1, 9) of 9");
  expect_refused<int64_t>("offsets", {0, 4, 6, 8}, "offsets: users [0, 3) span events [0, 8) of 9");
  expect_refused<int64_t>("offsets", {0, 4, 6, 90}, "offsets: users [0, 3) span");
  expect_refused<int64_t>("offsets", {0, 4, 9}, "offsets: has shape [3], the manifest says [4]");
}

TEST_F(CorpusShardTest, RefusesItemsOutsideTheCatalogue) {
  expect_refused<int32_t>("items", {0, 1, 2, 3, 4, 5, 2, 2, 2},
                          "items: event 5 is of item number 5, the catalogue has 5");
  expect_refused<int32_t>("items", {-1, 1, 2, 3, 4, 0, 2, 2, 2},
                          "items: event 0 is of item number -1");
  expect_refused<int32_t>("items", {0, 1, 2}, "items: has shape [3], the manifest says [9]");
}

TEST_F(CorpusShardTest, RefusesLengthsThatExceedTheHistory) {
  expect_refused<int32_t>("train_length", {4, 2, 1}, "train_length: user 0 has 4 training and 1");
  expect_refused<int32_t>("train_length", {2, -1, 1}, "train_length: user 1 has -1");
  expect_refused<int32_t>("valid_length", {1, 0, -1}, "train_length: user 2 has 1 training and -1");
}

TEST_F(CorpusShardTest, RefusesAnotherElementType) {
  expect_refused<int64_t>("train_length", {2, 2, 1}, "train_length: holds int64, wanted int32");
}

TEST(CorpusTest, RefusesATruncatedOrMissingShard) {
  const TemporaryFolder folder;
  const fs::path shard = write_hand_made(folder / "corpus", named()) / "shard-00000.h5";
  const Corpus corpus(folder / "corpus");
  fs::resize_file(shard, fs::file_size(shard) - 1);
  expect_error(ErrorKind::kData, "(truncated or replaced)",
               [&] { corpus.read_histories(0, 0, 3); });
  expect_error(ErrorKind::kData, "shard-00000.h5", [&] { corpus.read_train_lengths(0, 0, 3); });
  expect_error(ErrorKind::kData, "(truncated or replaced)", [&] { Corpus(folder / "corpus"); });
  fs::remove(shard);
  expect_error(ErrorKind::kData, "cannot read", [&] { corpus.read_user_ids(0, 0, 3); });
  expect_error(ErrorKind::kData, "cannot read", [&] { Corpus(folder / "corpus"); });
  EXPECT_EQ(Corpus(folder / "corpus", CorpusFiles::kCheckedLater).num_users(), 3);
}

TEST(CorpusTest, IsTheSameWhenWrittenAgain) {
  const TemporaryFolder folder;
  const Corpus one(write_tiny_corpus(folder / "one", 60, 40, 9));
  const Corpus two(write_tiny_corpus(folder / "two", 60, 40, 9));
  const Corpus other(write_tiny_corpus(folder / "other", 60, 40, 10));
  EXPECT_EQ(one.manifest(), two.manifest());  // with the SHA-256 of every file
  EXPECT_NE(one.split_hash(), other.split_hash());
}

}  // namespace
}  // namespace mirabelle
