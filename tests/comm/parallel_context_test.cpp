#include "mirabelle/comm/parallel_context.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "support/errors.h"

namespace mirabelle {
namespace {

const Stream kHost;

/// The world's ranks of a group's members, in the group's order.
std::vector<int64_t> members(const Communicator& group, int64_t world_rank) {
  std::vector<int64_t> all(group.size());
  group.all_gather(view_of(all), view_of(&world_rank, {1}), kHost);
  return all;
}

/// Sums up what is wrong on all ranks, so that they reach the verdict together.
int64_t ranks_with(bool wrong, const Communicator& world) {
  int64_t count = wrong;
  world.all_reduce(view_of(&count, {1}), ReduceOp::kSum, kHost);
  return count;
}

TEST(ParallelContextTest, NeighbouringRanksShareACopyOfTheModel) {
  const auto world = make_mpi_communicator();
  const int64_t rank = world->rank(), size = world->size();
  for (int64_t tensor_parallel_size = 1; tensor_parallel_size <= size; ++tensor_parallel_size) {
    if (size % tensor_parallel_size != 0) continue;
    const ParallelContext parallel(*world, tensor_parallel_size);
    std::vector<int64_t> same_copy, same_part;
    for (int64_t other = 0; other < size; ++other) {
      if (other / tensor_parallel_size == rank / tensor_parallel_size) same_copy.push_back(other);
      if (other % tensor_parallel_size == rank % tensor_parallel_size) same_part.push_back(other);
    }
    EXPECT_EQ(ranks_with(members(parallel.tensor(), rank) != same_copy, *world), 0);
    EXPECT_EQ(ranks_with(members(parallel.data(), rank) != same_part, *world), 0);
    const int64_t rank_of_groups =
        parallel.data().rank() * tensor_parallel_size + parallel.tensor().rank();
    EXPECT_EQ(ranks_with(rank_of_groups != rank, *world), 0);
    EXPECT_EQ(parallel.tensor().group_name(), "tensor-parallel");
    EXPECT_EQ(parallel.data().group_name(), "data-parallel");
    EXPECT_EQ(&parallel.world(), world.get());
  }
}

TEST(ParallelContextTest, RefusesSizesThatDoNotDivideTheWorld) {
  const auto world = make_mpi_communicator();
  for (const int64_t wrong : {int64_t{0}, int64_t{-1}, int64_t{world->size()} + 1}) {
    testing::expect_error(ErrorKind::kUsage,
                          "parallel.tensor_parallel_size " + std::to_string(wrong) +
                              " does not divide the " + std::to_string(world->size()) + " ranks",
                          [&] { ParallelContext(*world, wrong); });
  }
}

}  // namespace
}  // namespace mirabelle
