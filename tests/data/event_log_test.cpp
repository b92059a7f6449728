#include "mirabelle/data/event_log.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <tuple>

#include "mirabelle/core/random.h"
#include "mirabelle/data/corpus.h"
#include "mirabelle/data/npy.h"
#include "support/errors.h"
#include "support/temporary_folder.h"

namespace mirabelle {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using testing::expect_error;
using testing::TemporaryFolder;

CorpusOptions named() {
  CorpusOptions options;
  options.dataset = "test";
  return options;
}

class EventLogTest : public ::testing::Test {
 protected:
  EventLogTest() {
    source.user_column = "user";
    source.item_column = "item";
    source.time_column = "time";
  }
  Corpus import(const std::string& text) {
    source.events = folder.write("log.csv", text);
    summary = import_event_log(source, folder / "out", named());
    return Corpus(folder / "out");
  }
  /// The import fails with this message and leaves nothing but the input.
  void expect_refused(const std::string& text, const std::string& message) {
    expect_error(ErrorKind::kData, message, [&] { import(text); });
    for (const auto& entry : fs::directory_iterator(folder.path())) {
      EXPECT_TRUE(entry.is_regular_file()) << entry.path();
    }
  }
  /// All histories as {user ID: [item ID, ...]}, users in order.
  static std::vector<std::pair<json, std::vector<json>>> histories(const Corpus& corpus) {
    std::vector<std::pair<json, std::vector<json>>> all;
    for (int64_t shard = 0; shard < corpus.num_shards(); ++shard) {
      const int64_t users = corpus.shard_users(shard);
      const HistoryBlock block = corpus.read_histories(shard, 0, users);
      const auto ids = corpus.read_user_ids(shard, 0, users);
      for (int64_t user = 0; user < users; ++user) {
        all.emplace_back(ids[user], std::vector<json>());
        for (int32_t item : block.history(user)) all.back().second.push_back(corpus.item_id(item));
      }
    }
    return all;
  }
  TemporaryFolder folder;
  EventLogSource source;
  EventLogSummary summary;
};

TEST_F(EventLogTest, GroupsByUserAndSortsByTimeThenFileOrder) {
  const Corpus corpus = import(
      "time,user,rating,item,comment\n"
      "30,bob,1,x,a\n"
      "20,ann,2,y,b\n"
      "10,bob,,z,c\n"
      "20,ann,4.5,x,d\n"
      "5,ann,5,z,e\n");
  using H = std::vector<std::pair<json, std::vector<json>>>;
  EXPECT_EQ(histories(corpus), (H{{"ann", {"z", "y", "x"}}, {"bob", {"z", "x"}}}));
  EXPECT_EQ(corpus.read_histories(0, 0, 2, true).timestamps,
            (std::vector<int64_t>{5, 20, 20, 10, 30}));
  EXPECT_EQ(corpus.event_columns(), std::vector<std::string>{"rating"});
  EXPECT_EQ(summary.dropped_columns, std::vector<std::string>{"comment"});
  const auto ratings = corpus.read_event_column("rating", 0, 0, 2);
  EXPECT_EQ(std::vector<float>(ratings.begin(), ratings.begin() + 3),
            (std::vector<float>{5, 2, 4.5}));
  EXPECT_TRUE(std::isnan(ratings[3]));  // not given
  EXPECT_EQ(ratings[4], 1);
  EXPECT_EQ(summary.events_read, 5);
}

TEST_F(EventLogTest, IntegersSortByValueAndBeforeOtherIds) {
  const Corpus corpus = import("user,item,time\n10,b,1\n9,10,1\n-3,9,1\nx,a,1\n009,-1,1\n");
  std::vector<json> users, items;
  for (const auto& [user, history] : histories(corpus)) users.push_back(user);
  for (int64_t item = 0; item < corpus.num_items(); ++item) items.push_back(corpus.item_id(item));
  EXPECT_EQ(users, (std::vector<json>{"-3", "9", "10", "009", "x"}));
  EXPECT_EQ(items, (std::vector<json>{"-1", "9", "10", "a", "b"}));
  EXPECT_EQ(import("user,item,time\n10,7,1\n9,8,1\n").read_user_ids(0, 0, 2),
            (std::vector<json>{9, 10}));
}

TEST_F(EventLogTest, TimeMinusZeroIsZero) {
  const Corpus corpus = import("user,item,time\n1,a,0\n1,b,-0\n1,c,0.0\n");
  EXPECT_EQ(histories(corpus)[0].second, (std::vector<json>{"a", "b", "c"}));  // as in the file
}

TEST_F(EventLogTest, ReadsQuotedFields) {
  const Corpus corpus = import(
      "\"user\",item,\"time\",note\r\n"
      "\"a,b\",\"say \"\"x\"\"\",1,\"two\nlines\"\r\n"
      "\r\n"
      "c,5\" pipe,2,\"\"\r\n");
  using H = std::vector<std::pair<json, std::vector<json>>>;
  EXPECT_EQ(histories(corpus), (H{{"a,b", {"say \"x\""}}, {"c", {"5\" pipe"}}}));
}

TEST_F(EventLogTest, FindsOrTakesTheDelimiter) {
  for (const char delimiter : {'\t', ',', ';', '|'}) {
    std::string text = "user,item,time\na,x,1\n";
    std::replace(text.begin(), text.end(), ',', delimiter);
    source.delimiter = delimiter == '|' ? '|' : 0;
    EXPECT_EQ(import(text).item_id(0), "x") << delimiter;
  }
}

TEST_F(EventLogTest, IsTheSameForAnyMemoryAndAgreesWithAMapOfSortedEvents) {
  Random random(random_key(1, "log"));
  std::string text = "user,item,time,value\n";
  std::map<std::string, std::vector<std::tuple<int64_t, int64_t, std::string, float>>> wanted;
  for (int64_t line = 0; line < 120'000; ++line) {
    const std::string user = "u" + std::to_string(random.below(3000));
    const std::string item = "i" + std::to_string(random.below(500));
    const int64_t time = random.below(1000);  // many ties: the file's order decides
    const int64_t value = random.below(100);
    text += user + "," + item + "," + std::to_string(time) + "," + std::to_string(value) + "\n";
    wanted[user].emplace_back(time, line, item, static_cast<float>(value));
  }
  std::vector<std::string> hashes;
  for (const int64_t mebibytes : {1, 1024}) {
    source.memory_bytes = mebibytes << 20;
    const Corpus corpus = import(text);
    EXPECT_EQ(summary.num_runs > 1, mebibytes == 1) << summary.num_runs;
    hashes.push_back(corpus.split_hash());
    const auto all = histories(corpus);
    const auto values = corpus.read_event_column("value", 0, 0, corpus.num_users());
    ASSERT_EQ(all.size(), wanted.size());
    size_t user = 0, event = 0;
    int64_t wrong = 0;
    for (auto& [id, events] : wanted) {
      std::sort(events.begin(), events.end());
      ASSERT_EQ(all[user].first, id);
      ASSERT_EQ(all[user].second.size(), events.size());
      for (size_t i = 0; i < events.size(); ++i, ++event) {
        wrong += all[user].second[i] != std::get<2>(events[i]);
        wrong += values[event] != std::get<3>(events[i]);
      }
      ++user;
    }
    EXPECT_EQ(wrong, 0);
  }
  EXPECT_EQ(hashes[0], hashes[1]);
}

TEST_F(EventLogTest, ACatalogueOrdersTheItemsAndBringsFeatures) {
  source.items = folder.write("items.jsonl",
                              "{\"item\": \"x\", \"title\": \"X\"}\n{\"item\": \"b\"}\n{\"item\": "
                              "\"a\", \"title\": \"A\"}\n");
  const std::vector<float> rows{0, 1, 2, 3};
  write_npy(folder / "f.npy", rows.data(), 4, 1);
  source.features = {{"f", folder / "f.npy"}};
  const Corpus corpus = import("user,item,time\nu,a,1\nu,x,2\n");
  EXPECT_EQ(corpus.num_items(), 3);
  EXPECT_EQ(corpus.titles(), (std::vector<std::string>{"X", "", "A"}));
  EXPECT_EQ(corpus.read_histories(0, 0, 1).items, (std::vector<int32_t>{2, 0}));
  std::vector<float> read(3);
  corpus.read_features("f", 0, 3, read.data());
  EXPECT_EQ(read, (std::vector<float>{1, 2, 3}));
  fs::remove_all(folder / "out");
  expect_refused("user,item,time\nu,a,1\nu,c,2\n", "log.csv:3: item c is not in ");
  folder.write("items.jsonl", "{\"item\": \"x\"}\n{\"item\": \"x\"}\n");
  expect_refused("user,item,time\nu,x,1\n", "items.jsonl:2: item x has come before, in line 1");
}

TEST_F(EventLogTest, TheCoreIsTheSameAsByRepeatedDeletion) {
  Random random(random_key(2, "core"));
  std::vector<std::pair<int64_t, int64_t>> events;
  std::string text = "user,item,time\n";
  for (int i = 0; i < 4000; ++i) {
    const auto user = static_cast<int64_t>(std::pow(random.uniform(), 2) * 400);
    const auto item = static_cast<int64_t>(std::pow(random.uniform(), 2) * 300);
    events.emplace_back(user, item);
    text += std::to_string(user) + "," + std::to_string(item) + "," + std::to_string(i) + "\n";
  }
  for (bool changed = true; changed;) {
    std::map<int64_t, int64_t> users, items;
    for (const auto& [user, item] : events) ++users[user], ++items[item];
    changed = std::erase_if(events, [&](const auto& event) {
                return users[event.first] < 5 || items[event.second] < 6;
              }) > 0;
  }
  std::map<int64_t, std::vector<int64_t>> wanted;
  for (const auto& [user, item] : events) wanted[user].push_back(item);
  source.min_user_events = 5;
  source.min_item_events = 6;
  const Corpus corpus = import(text);
  EXPECT_GT(events.size(), 500u);
  EXPECT_LT(events.size(), 3900u);
  EXPECT_EQ(corpus.num_events(), static_cast<int64_t>(events.size()));
  const auto all = histories(corpus);
  ASSERT_EQ(all.size(), wanted.size());
  size_t at = 0;
  for (const auto& [user, items] : wanted) {
    EXPECT_EQ(all[at].first, user);
    EXPECT_EQ(all[at++].second, std::vector<json>(items.begin(), items.end()));
  }
  fs::remove_all(folder / "out");
  source.min_user_events = 1000;
  expect_refused(text, "no user has 1000 events");
}

TEST_F(EventLogTest, RefusesBadLinesWithTheirNumbers) {
  const std::string head = "user,item,time\nu,a,1\n";
  expect_refused(head + "u,a\n", "log.csv:3: has 2 fields, the header has 3");
  expect_refused(head + "u,a,1,2\n", "log.csv:3: has 4 fields");
  expect_refused(head + "\nu,a,soon\n", "log.csv:4: time \"soon\", wanted seconds");
  expect_refused(head + "u,a,-1\n", "log.csv:3: time \"-1\"");
  expect_refused(head + "u,a,\n", "log.csv:3: time \"\"");
  expect_refused(head + ",a,1\n", "log.csv:3: the user ID is empty");
  expect_refused(head + "u,,1\n", "log.csv:3: the item ID is empty");
  expect_refused(head + "\"u\nv\",a,1\n", "log.csv:3: the user ID is empty or holds control");
  expect_refused(head + "\"u\"v,a,1\n", "log.csv:3: has text after a closing quote");
  expect_refused(head + "u,\"a,1\nu,a,1\n", "log.csv:3: a quoted field does not end");
}

TEST_F(EventLogTest, RefusesBadHeadersAndEmptyFiles) {
  expect_refused("", "log.csv: is empty");
  expect_refused("user,item,time\n", "log.csv: has no events after the header");
  expect_refused("user,item,when\na,b,1\n",
                 "log.csv:1: has no column \"time\"; the header names user, item, when");
  source.events = folder / "none.csv";
  expect_error(ErrorKind::kData, "none.csv: cannot read",
               [&] { import_event_log(source, folder / "out", named()); });
}

TEST_F(EventLogTest, OptionsAreChecked) {
  const auto refuse = [](const std::string& message, EventLogSource bad) {
    expect_error(ErrorKind::kUsage, message, [&] { bad.check(); });
  };
  EventLogSource bad = source;
  bad.user_column = "";
  refuse("wants the names", bad);
  bad.user_column = "item";
  refuse("are three columns", bad);
  bad = source;
  bad.features = {{"f", "f.npy"}};
  refuse("want an items file", bad);
  bad = source;
  bad.min_item_events = 0;
  refuse("are at least 1", bad);
  bad = source;
  bad.memory_bytes = 5;
  refuse("at least 1 MiB", bad);
}

TEST(ParseTimeTest, ReadsSecondsAndIsoDates) {
  // The seconds are those of `date -u -d "2014-07-17 06:30:15" +%s`.
  for (const auto& [text, wanted] :
       std::map<std::string, double>{{"1405578615", 1405578615},
                                     {"1405578615.5", 1405578615.5},
                                     {"0", 0},
                                     {"-1", -1},
                                     {"1e9", 1e9},
                                     {"1970-01-01", 0},
                                     {"2014-07-17", 1405555200},
                                     {"2016-02-29", 1456704000},
                                     {"2014-07-17T06:30:15", 1405578615},
                                     {"2014-07-17 06:30:15", 1405578615},
                                     {"2014-07-17T06:30", 1405578600},
                                     {"2014-07-17T06:30:15Z", 1405578615},
                                     {"2014-07-17T06:30:15.25Z", 1405578615.25},
                                     {"2014-07-17T08:30:15+02:00", 1405578615},
                                     {"2014-07-17T02:00:15-0430", 1405578615}}) {
    double seconds = -7;
    EXPECT_TRUE(parse_time(text, seconds)) << text;
    EXPECT_DOUBLE_EQ(seconds, wanted) << text;
  }
}

TEST(ParseTimeTest, RefusesEverythingElse) {
  for (const char* text :
       {"", " 5", "5 ", "nan", "inf", "2014-7-17x", "2014-13-01", "2015-02-29", "2014-07-17T",
        "2014-07-17T24:00", "2014-07-17T06:60", "2014-07-17T06:30:15+", "2014-07-17T06:30:15 ",
        "17/07/2014", "2014-07-17x"}) {
    double seconds = 0;
    EXPECT_FALSE(parse_time(text, seconds)) << text;
  }
}

}  // namespace
}  // namespace mirabelle
