#include "mirabelle/config/rank_places.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <sstream>

#include "mirabelle/core/error.h"

namespace mirabelle {
namespace {

using Cores = std::vector<int>;

RankPlace on_cpu(const std::string& host, const Cores& cores, int64_t threads = 1) {
  return {host, host + "-boot", cores, threads, {}};
}
RankPlace on_gpu(const std::string& host, int64_t index, const std::string& uuid,
                 const Cores& cores = {0, 1}, const Cores& near = {}) {
  return {host, host + "-boot", cores, 2, GpuPlace{index, "H100", uuid, near}};
}

std::string printed(const Table& table) {
  std::ostringstream out;
  table.print(out);
  return out.str();
}

TEST(RankPlacesTest, RangesOfNumbersAndBack) {
  const std::vector<std::pair<Cores, std::string>> cases = {
      {{}, ""}, {{0}, "0"}, {{0, 1}, "0-1"}, {{0, 1, 2, 8}, "0-2,8"}, {{3, 5, 6, 9}, "3,5-6,9"}};
  for (const auto& [numbers, text] : cases) {
    EXPECT_EQ(ranges_text(numbers), text);
    EXPECT_EQ(numbers_of_ranges(text), numbers);
  }
  for (const char* text : {"a", "1-", "-1", "1;2", "1-2-3", ",1"}) {
    EXPECT_THROW(numbers_of_ranges(text), Error) << text;
  }
}

TEST(RankPlacesTest, ThisProcessIsSomewhere) {
  const RankPlace place = this_place(Device::kCpu);
  EXPECT_EQ(place.host, host_name());
  EXPECT_FALSE(place.host.empty());
  EXPECT_GT(place.machine.size(), place.host.size());
  EXPECT_FALSE(place.cores.empty());
  EXPECT_TRUE(std::is_sorted(place.cores.begin(), place.cores.end()));
  EXPECT_GE(place.threads, 1);
  EXPECT_FALSE(place.gpu.has_value());
}

TEST(RankPlacesTest, RanksAreCountedByMachineAndByGpu) {
  RankPlace namesake = on_cpu("b", {0});
  namesake.machine = "another-boot";
  const std::vector<RankPlace> places = {on_cpu("a", {0}), on_cpu("b", {0}), on_cpu("a", {1}),
                                         namesake, on_cpu("a", {2})};
  const std::vector<int64_t> local = {0, 0, 1, 0, 2}, sharing = {3, 1, 3, 1, 3};
  for (int64_t rank = 0; rank < 5; ++rank) {
    EXPECT_EQ(local_rank(places, rank), local[rank]) << rank;
    EXPECT_EQ(num_sharing(places, rank), sharing[rank]) << rank;
  }
  const std::vector<RankPlace> gpus = {on_gpu("a", 0, "x"), on_gpu("a", 1, "y"),
                                       on_gpu("a", 0, "x")};
  EXPECT_EQ(num_sharing(gpus, 0), 2);
  EXPECT_EQ(num_sharing(gpus, 1), 1);
}

TEST(RankPlacesTest, AGpuForEachRankIsRightWhateverTheIndices) {
  EXPECT_EQ(gpu_sharing({on_cpu("a", {0}), on_cpu("a", {0})}), "");
  // as Slurm binds them: each rank sees one GPU, which it calls 0
  EXPECT_EQ(gpu_sharing({on_gpu("a", 0, "x"), on_gpu("a", 0, "y"), on_gpu("b", 0, "z")}), "");
  EXPECT_EQ(gpu_sharing({on_gpu("a", 0, "x"), on_gpu("b", 0, "y"), on_gpu("b", 0, "y")}),
            "b has 2 ranks on 1 GPU");
  EXPECT_EQ(gpu_sharing({on_gpu("a", 0, "x"), on_gpu("a", 1, "y"), on_gpu("a", 0, "x")}),
            "a has 3 ranks on 2 GPUs");
}

TEST(RankPlacesTest, AFewRanksHaveARowEach) {
  EXPECT_EQ(printed(rank_table({on_gpu("node1", 0, "x"), on_cpu("node2", {0, 1, 3}, 3)})),
            "rank  host      GPU  cores  threads\n"
            "-----------------------------------\n"
            "   0  node1  0 H100    0-1        2\n"
            "   1  node2       -  0-1,3        3\n");
}

TEST(RankPlacesTest, ManyRanksHaveARowForEachHost) {
  std::vector<RankPlace> places;
  for (int rank = 0; rank < 16; ++rank) {
    places.push_back(on_gpu(rank < 8 ? "node1" : "node2", rank % 8, std::to_string(rank),
                            {2 * (rank % 8), 2 * (rank % 8) + 1}));
  }
  std::string table = printed(rank_table(places));
  EXPECT_EQ(std::count(table.begin(), table.end(), '\n'), 18);
  places.push_back(on_gpu("node1", 8, "16", {20}));
  table = printed(rank_table(places));
  EXPECT_EQ(std::count(table.begin(), table.end(), '\n'), 4);
  EXPECT_NE(table.find("0-7,16  node1  0-8 H100  0-15,20"), std::string::npos) << table;
  EXPECT_NE(table.find("  8-15  node2  0-7 H100     0-15"), std::string::npos) << table;
}

TEST(RankPlacesTest, SaysWhatIsSlow) {
  EXPECT_TRUE(slow_places({on_cpu("a", {0, 1}), on_cpu("a", {0, 1})}, 2).empty());
  // one thread each: more ranks than cores are meant
  EXPECT_TRUE(slow_places({on_cpu("a", {0}), on_cpu("a", {0})}, 1).empty());
  EXPECT_TRUE(slow_places({on_cpu("a", {0, 1}, 2), on_cpu("a", {2, 3}, 2)}, 1).empty());
  const auto crowded = slow_places({on_cpu("a", {0, 1}, 2), on_cpu("a", {1, 2}, 2)}, 1);
  ASSERT_EQ(crowded.size(), 1u);
  EXPECT_EQ(crowded[0].find("a: 2 ranks have 4 threads on 3 cores;"), 0u) << crowded[0];
}

TEST(RankPlacesTest, SaysWhichRankIsFarFromItsGpu) {
  EXPECT_TRUE(slow_places({on_gpu("a", 0, "x", {0, 1}, {1, 2})}, 1).empty());
  const auto far = slow_places(
      {on_gpu("a", 0, "x", {0, 1}, {0, 1, 2, 3}), on_gpu("a", 1, "y", {2, 3}, {4, 5, 6, 7})}, 1);
  ASSERT_EQ(far.size(), 1u);
  EXPECT_EQ(far[0], "rank 1 on a: its cores 2-3 are far from its GPU, which is near 4-7");
}

TEST(RankPlacesTest, SaysThatATensorParallelGroupHasTwoHosts) {
  const std::vector<RankPlace> places = {on_cpu("a", {0}), on_cpu("a", {0}), on_cpu("a", {0}),
                                         on_cpu("b", {0})};
  EXPECT_TRUE(slow_places(places, 1).empty());
  const auto split = slow_places(places, 2);
  ASSERT_EQ(split.size(), 1u);
  EXPECT_EQ(split[0].find("ranks 2 and 3 share one copy of the model"), 0u) << split[0];
}

}  // namespace
}  // namespace mirabelle
