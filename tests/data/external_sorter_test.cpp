#include "../src/data/external_sorter.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "../src/data/unique_ids.h"
#include "mirabelle/core/random.h"
#include "support/errors.h"
#include "support/temporary_folder.h"

namespace mirabelle {
namespace {

using testing::TemporaryFolder;

std::vector<std::string> random_records(int64_t count) {
  Random random(random_key(3, "records"));
  std::vector<std::string> records;
  for (int64_t i = 0; i < count; ++i) {
    std::string record(random.below(25), 'a');  // short alphabet: many equal beginnings and records
    for (char& c : record) c = static_cast<char>(random.below(3) * 127);
    records.push_back(record);
  }
  return records;
}

std::vector<std::string> sorted(ExternalSorter& sorter) {
  std::vector<std::string> records;
  sorter.for_each([&](std::string_view record) { records.emplace_back(record); });
  return records;
}

class ExternalSorterTest : public ::testing::TestWithParam<int64_t> {};  // memory in bytes

TEST_P(ExternalSorterTest, SortsLikeStdSortAndAgain) {
  for (int64_t count : {0, 1, 2, 7, 20'000}) {
    const TemporaryFolder folder;
    ExternalSorter sorter(folder / "runs", GetParam());
    std::vector<std::string> records = random_records(count);
    for (const std::string& record : records) sorter.add(record);
    std::sort(records.begin(), records.end());
    EXPECT_EQ(sorted(sorter), records);
    EXPECT_EQ(sorted(sorter), records);
    EXPECT_EQ(sorter.num_runs() > 0, count == 20'000 && GetParam() < 1 << 20);
  }
}

// 3 KB: more runs than are merged at once; 100 KB: some; 100 MB: all in memory.
INSTANTIATE_TEST_SUITE_P(Memory, ExternalSorterTest,
                         ::testing::Values(3'000, 100'000, 100'000'000));

TEST(ExternalSorterNumbersTest, AscendingBytesCompareLikeNumbers) {
  std::vector<int64_t> values{INT64_MIN, -256, -255, -1,  0,       1,
                              127,       128,  255,  256, 1 << 20, INT64_MAX};
  std::string former;
  for (int64_t value : values) {
    std::vector<char> bytes;
    append_ascending(bytes, value);
    ASSERT_EQ(bytes.size(), 8u);
    EXPECT_EQ(read_ascending(bytes.data()), value);
    const std::string now(bytes.begin(), bytes.end());
    EXPECT_LT(former, now);
    former = now;
  }
}

TEST(UniqueIdsTest, FindsEveryRepetitionWhetherInMemoryOrNot) {
  for (int64_t memory : {5'000, 50'000'000}) {
    const TemporaryFolder folder;
    UniqueIds ids(folder / "runs", memory);
    for (int64_t i = 0; i < 5000; ++i) ids.add("user" + std::to_string(i), i);
    ids.add("user17", 5000);
    ids.add("user4999", 5001);
    ids.add("user1", 5002);
    ids.add("user1", 5003);
    std::vector<std::string> found;
    ids.for_each_repeated([&](std::string_view id, int64_t first, int64_t second) {
      found.push_back(std::string(id) + " " + std::to_string(first) + " " + std::to_string(second));
    });
    EXPECT_EQ(found, (std::vector<std::string>{"user1 1 5002", "user1 5002 5003", "user17 17 5000",
                                               "user4999 4999 5001"}));
  }
}

}  // namespace
}  // namespace mirabelle
