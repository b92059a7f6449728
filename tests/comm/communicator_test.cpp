#include "mirabelle/comm/communicator.h"

#include <gtest/gtest.h>

#include "mirabelle/core/copy.h"
#define OMPI_SKIP_MPICXX 1
#include <mpi.h>

#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <type_traits>
#include <vector>

#include "comm/on_device.h"
#include "mirabelle/core/random.h"

namespace mirabelle {
namespace {

const Stream kHost;

int world_rank() {
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  return rank;
}

/// One clock for all processes of a machine, which MPI_Wtime need not be.
double seconds_now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// The same verdict on every rank: how many ranks saw something wrong.
int ranks_with(bool wrong) {
  int count = wrong ? 1 : 0;
  MPI_Allreduce(MPI_IN_PLACE, &count, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
  return count;
}

/// The message of the Error that `body` throws, "" if it throws none.
template <typename Body>
std::string message_of(Body&& body) {
  try {
    body();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

// Every definition of Communicator runs the same tests. Every rank can make the operands of all, so
// the oracles are serial; MPI itself only tells who is in a group.
enum class Definition {
  kSelf,
  kMpi,
  kMpiShortMessages,
  kMpiSplit,
  kStaged,     // host memory, which it hands on
  kStagedGpu,  // GPU memory
  kNccl,
  kNcclReproducible,
};
bool is_nccl(Definition definition) {
  return definition == Definition::kNccl || definition == Definition::kNcclReproducible;
}
bool needs_gpu(Definition definition) {
  return definition == Definition::kStagedGpu || is_nccl(definition);
}

struct Case {
  Definition definition;
  DType dtype;
  int64_t n;
};

void PrintTo(const Case& c, std::ostream* out) {
  const char* names[] = {"self",       "mpi",  "mpi_short_messages", "mpi_split", "staged",
                         "staged_gpu", "nccl", "nccl_reproducible"};
  *out << names[static_cast<int>(c.definition)] << "_" << to_string(c.dtype) << "_" << c.n;
}

std::vector<Case> all_cases() {
  std::vector<Case> cases;
  std::vector<Definition> definitions = {Definition::kSelf, Definition::kMpi,
                                         Definition::kMpiShortMessages, Definition::kMpiSplit,
                                         Definition::kStaged};
#ifdef MIRABELLE_CUDA
  definitions.insert(definitions.end(),
                     {Definition::kStagedGpu, Definition::kNccl, Definition::kNcclReproducible});
#endif
  for (const Definition definition : definitions) {
    for (const DType dtype : {DType::kFloat32, DType::kFloat64, DType::kBFloat16, DType::kInt32,
                              DType::kInt64, DType::kUint8}) {
      for (const int64_t n : {0, 1, 7, 1000}) cases.push_back({definition, dtype, n});
      if (definition == Definition::kMpi || dtype == DType::kFloat32) {
        cases.push_back({definition, dtype, 100003});
      }
    }
  }
  cases.push_back({Definition::kMpi, DType::kFloat32, 600007});  // more chunks than are under way
  return cases;
}

constexpr ReduceOp kOps[] = {ReduceOp::kSum, ReduceOp::kMax, ReduceOp::kMin};

/// Memory that knows its dtype, and can be compared byte by byte.
struct Values {
  std::vector<char> bytes;
  DType dtype;
  TensorView view() {
    return {bytes.data(),
            {static_cast<int64_t>(bytes.size()) / size_in_bytes(dtype)},
            dtype,
            Device::kCpu};
  }
};

/// Calls `body.operator()<T>()` with the type that `dtype` names.
template <typename Body>
void with_type(DType dtype, Body body) {
  if (dtype == DType::kFloat32) body.template operator()<float>();
  if (dtype == DType::kFloat64) body.template operator()<double>();
  if (dtype == DType::kBFloat16) body.template operator()<BFloat16>();
  if (dtype == DType::kInt32) body.template operator()<int32_t>();
  if (dtype == DType::kInt64) body.template operator()<int64_t>();
  if (dtype == DType::kUint8) body.template operator()<uint8_t>();
}

/// Numbers of many sizes, so that the bits of a sum tell its order; or small whole numbers, of
/// which every order gives the same bits.
Values random_values(DType dtype, int64_t begin, int64_t end, int seed, bool whole_numbers) {
  Values values{std::vector<char>((end - begin) * size_in_bytes(dtype)), dtype};
  const uint64_t key = random_key(seed, "test");
  with_type(dtype, [&]<typename T>() {
    for (int64_t i = 0; i < end - begin; ++i) {
      const uint32_t random = philox(key, {static_cast<uint32_t>(begin + i), 0, 0, 0})[0];
      double value = static_cast<double>(random % 30);
      if constexpr (!std::is_same_v<T, uint8_t>) value -= 15;
      if constexpr (!std::is_integral_v<T>) {
        if (!whole_numbers) value = std::ldexp(random / 4294967296.0 - 0.5, random % 11);
      }
      const T typed = T(static_cast<Wide<T>>(value));
      std::memcpy(values.bytes.data() + i * sizeof(T), &typed, sizeof(T));
    }
  });
  return values;
}

/// The tree of Communicator's contract over element i of operands [begin, end).
template <typename T>
Wide<T> tree(const std::vector<Values>& operands, int64_t i, size_t begin, size_t end,
             ReduceOp op) {
  if (end - begin == 1) {
    T value;
    std::memcpy(&value, operands[begin].bytes.data() + i * sizeof(T), sizeof(T));
    return value;
  }
  size_t half = 1;
  while (2 * half < end - begin) half *= 2;
  const Wide<T> left = tree<T>(operands, i, begin, begin + half, op);
  const Wide<T> right = tree<T>(operands, i, begin + half, end, op);
  if (op == ReduceOp::kSum) return static_cast<Wide<T>>(left + right);
  return (op == ReduceOp::kMax) == (left < right) ? right : left;
}

Values reduce_in_tree(const std::vector<Values>& operands, ReduceOp op) {
  Values result = operands[0];
  with_type(result.dtype, [&]<typename T>() {
    for (int64_t i = 0; i < result.view().num_elements(); ++i) {
      const T value = T(tree<T>(operands, i, 0, operands.size(), op));
      std::memcpy(result.bytes.data() + i * sizeof(T), &value, sizeof(T));
    }
  });
  return result;
}

/// Stands for the kernel that NCCL's communicator is given: the oracle, on a copy.
void tree_sum_on_host(const TensorView& out, const TensorView& x, const Stream& stream) {
  Buffer memory;
  const TensorView rows = on_host(x, memory, stream);
  std::vector<Values> operands;
  for (int64_t row = 0; row < rows.shape[0]; ++row) {
    const TensorView operand = rows.slice(row);
    const char* bytes = static_cast<const char*>(operand.data);
    operands.push_back({{bytes, bytes + operand.bytes()}, x.dtype});
  }
  Values sum = reduce_in_tree(operands, ReduceOp::kSum);
  copy(out, sum.view(), stream);
  stream.synchronize();
}

class CommunicatorTest : public ::testing::TestWithParam<Case> {
 protected:
  /// Without the GPUs that the case needs it is skipped, on all ranks alike. NCCL wants one for
  /// each rank, unless NCCL_HOSTID makes it believe that the ranks are on hosts of their own.
  void SetUp() override {
    int gpus = num_cuda_devices(), ranks = 1;
    MPI_Allreduce(MPI_IN_PLACE, &gpus, 1, MPI_INT, MPI_MIN, MPI_COMM_WORLD);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    const bool shares = is_nccl(GetParam().definition) && !std::getenv("NCCL_HOSTID");
    if (needs_gpu(GetParam().definition) && gpus < (shares ? ranks : 1)) {
      GTEST_SKIP() << gpus << " GPUs for " << ranks << " ranks";
    }
    if (needs_gpu(GetParam().definition)) select_cuda_device(world_rank());
    make_groups();
  }

  void make_groups() {
    const int rank = world_rank();
    members_ = MPI_COMM_WORLD;
    switch (GetParam().definition) {
      case Definition::kSelf:
        group_ = make_self_communicator();
        members_ = MPI_COMM_SELF;
        break;
      case Definition::kMpi:
        group_ = make_mpi_communicator();
        break;
      case Definition::kMpiShortMessages:
        group_ = make_mpi_communicator(GetParam().n > 1000 ? 3001 : 100);
        break;
      case Definition::kMpiSplit:  // even and odd ranks, each in reverse order
        group_ = make_mpi_communicator()->split(rank % 2, -rank, "half");
        MPI_Comm_split(MPI_COMM_WORLD, rank % 2, -rank, &members_);
        break;
      case Definition::kStaged:
        group_ = make_staged_communicator(make_mpi_communicator());
        break;
      case Definition::kStagedGpu:
        group_ =
            std::make_unique<testing::OnDevice>(make_staged_communicator(make_mpi_communicator()));
        break;
      case Definition::kNccl:
      case Definition::kNcclReproducible:
        group_ = std::make_unique<testing::OnDevice>(make_nccl_communicator(
            make_mpi_communicator(),
            GetParam().definition == Definition::kNcclReproducible ? tree_sum_on_host : TreeSum()));
        break;
    }
    MPI_Comm_rank(members_, &rank_);
    MPI_Comm_size(members_, &size_);
    world_ranks_.resize(size_);
    MPI_Allgather(&rank, 1, MPI_INT, world_ranks_.data(), 1, MPI_INT, members_);
  }
  ~CommunicatorTest() override {
    if (GetParam().definition == Definition::kMpiSplit) MPI_Comm_free(&members_);
  }

  /// What a rank of the group passes to the `call`-th collective of a test: elements [begin, end).
  Values operand(int rank, int64_t begin, int64_t end, int call = 0) const {
    return random_values(GetParam().dtype, begin, end, 100 * world_ranks_[rank] + call,
                         is_nccl(GetParam().definition) && !adds_in_tree());
  }
  bool adds_in_tree() const {
    return GetParam().definition == Definition::kNcclReproducible &&
           GetParam().dtype != DType::kFloat64;
  }
  Values mine(int64_t n, int call = 0) const { return operand(rank_, 0, n, call); }

  /// Elements [begin, end) of the op over the ranks' operands.
  std::vector<char> reduced(int64_t begin, int64_t end, ReduceOp op, int call = 0) const {
    std::vector<Values> operands;
    for (int rank = 0; rank < size_; ++rank) operands.push_back(operand(rank, begin, end, call));
    return reduce_in_tree(operands, op).bytes;
  }
  std::vector<char> reduced(ReduceOp op, int call = 0) const { return reduced(0, n(), op, call); }
  /// This rank's part of it, of operands of size * n elements.
  std::vector<char> reduced_part(ReduceOp op, int call = 0) const {
    return reduced(rank_ * n(), (rank_ + 1) * n(), op, call);
  }
  std::vector<char> gathered(int call = 0) const {
    std::vector<char> all;
    for (int rank = 0; rank < size_; ++rank) {
      const std::vector<char> part = operand(rank, 0, n(), call).bytes;
      all.insert(all.end(), part.begin(), part.end());
    }
    return all;
  }
  int64_t n() const { return GetParam().n; }

  std::unique_ptr<Communicator> group_;
  MPI_Comm members_ = MPI_COMM_NULL;
  std::vector<int> world_ranks_;  // of the members
  int rank_ = 0;
  int size_ = 0;
};

TEST_P(CommunicatorTest, KnowsItsRankAndSize) {
  EXPECT_EQ(ranks_with(group_->rank() != rank_ || group_->size() != size_), 0);
}

TEST_P(CommunicatorTest, AllReduceEqualsTheSerialTree) {
  for (const ReduceOp op : kOps) {
    Values x = mine(n());
    group_->all_reduce(x.view(), op, kHost);
    EXPECT_EQ(ranks_with(x.bytes != reduced(op)), 0) << "operation " << static_cast<int>(op);
  }
}

TEST_P(CommunicatorTest, ReduceScatterEqualsTheSerialTreeAndKeepsItsOperand) {
  for (const ReduceOp op : kOps) {
    Values x = mine(size_ * n()), out = mine(n(), 1);
    const Values x_before = x;
    group_->reduce_scatter(out.view(), x.view(), op, kHost);
    EXPECT_EQ(ranks_with(out.bytes != reduced_part(op) || x.bytes != x_before.bytes), 0);
  }
}

TEST_P(CommunicatorTest, ReduceScatterIntoItsOwnPartOfTheOperand) {
  Values x = mine(size_ * n());
  const TensorView part = x.view().rows(rank_ * n(), (rank_ + 1) * n());
  group_->reduce_scatter(part, x.view(), ReduceOp::kSum, kHost);
  const std::vector<char> expected = reduced_part(ReduceOp::kSum);
  const bool equal = n() == 0 || std::memcmp(part.data, expected.data(), expected.size()) == 0;
  EXPECT_EQ(ranks_with(!equal), 0);
}

TEST_P(CommunicatorTest, AllGatherKeepsTheOrderOfRanksAndItsOperand) {
  Values x = mine(n()), out = mine(size_ * n(), 1);
  group_->all_gather(out.view(), x.view(), kHost);
  EXPECT_EQ(ranks_with(out.bytes != gathered() || x.bytes != mine(n()).bytes), 0);
}

TEST_P(CommunicatorTest, AllGatherFromItsOwnPartOfTheResult) {
  Values x = mine(n()), out = mine(size_ * n(), 1);
  const TensorView part = out.view().rows(rank_ * n(), (rank_ + 1) * n());
  if (n() > 0) std::memcpy(part.data, x.bytes.data(), x.bytes.size());
  group_->all_gather(out.view(), part, kHost);
  EXPECT_EQ(ranks_with(out.bytes != gathered()), 0);
}

TEST_P(CommunicatorTest, SeveralCollectivesAreUnderWayAtOnceAndWaitedForInAnyOrder) {
  Values sum = mine(n(), 1), part = mine(n(), 2), scattered = mine(size_ * n(), 3),
         all = mine(size_ * n(), 4), largest = mine(n(), 5);
  std::vector<std::unique_ptr<PendingCollective>> under_way;
  under_way.push_back(group_->start_all_reduce(sum.view(), ReduceOp::kSum, kHost));
  under_way.push_back(
      group_->start_reduce_scatter(part.view(), scattered.view(), ReduceOp::kSum, kHost));
  under_way[0]->poll();
  Values x = mine(n(), 6);
  under_way.push_back(group_->start_all_gather(all.view(), x.view(), kHost));
  under_way.push_back(group_->start_all_reduce(largest.view(), ReduceOp::kMax, kHost));
  // every rank in an order of its own, with a barrier between that some reach before they wait
  for (int i = 0; i < 4; ++i) {
    if (i == rank_ % 4) group_->barrier();
    under_way[(i + rank_) % 4]->wait(kHost);
  }
  under_way[1]->poll();  // done: does nothing
  under_way[1]->wait(kHost);
  EXPECT_EQ(ranks_with(sum.bytes != reduced(ReduceOp::kSum, 1)), 0);
  EXPECT_EQ(ranks_with(part.bytes != reduced_part(ReduceOp::kSum, 3)), 0);
  EXPECT_EQ(ranks_with(all.bytes != gathered(6)), 0);
  EXPECT_EQ(ranks_with(largest.bytes != reduced(ReduceOp::kMax, 5)), 0);
}

TEST_P(CommunicatorTest, PollingAloneFinishesAStartedAllReduce) {
  if (needs_gpu(GetParam().definition)) GTEST_SKIP() << "the GPU needs no polling";
  Values x = mine(n());
  const std::vector<char> expected = reduced(ReduceOp::kSum);
  const auto under_way = group_->start_all_reduce(x.view(), ReduceOp::kSum, kHost);
  for (int attempt = 0; attempt < 1000000 && x.bytes != expected; ++attempt) {
    under_way->poll();
  }
  EXPECT_EQ(ranks_with(x.bytes != expected), 0);
  under_way->wait(kHost);
}

TEST_P(CommunicatorTest, BroadcastGivesEveryRootsValues) {
  for (int root = 0; root < size_; ++root) {
    Values x = mine(n());
    group_->broadcast(x.view(), root, kHost);
    // the groups of a split may have different sizes, so the verdict is each group's own
    int wrong = x.bytes != operand(root, 0, n()).bytes;
    MPI_Allreduce(MPI_IN_PLACE, &wrong, 1, MPI_INT, MPI_SUM, members_);
    EXPECT_EQ(wrong, 0) << "root " << root;
  }
}

TEST_P(CommunicatorTest, SendAndRecvPassValuesAroundTheRing) {
  const int next = (rank_ + 1) % size_, previous = (rank_ + size_ - 1) % size_;
  bool wrong = false;
  if (size_ > 1) {
    Values x = mine(n()), received = mine(n(), 1);
    if (rank_ == 0) {
      group_->send(x.view(), next, kHost);
      group_->recv(received.view(), previous, kHost);
    } else {
      group_->recv(received.view(), previous, kHost);
      group_->send(x.view(), next, kHost);
    }
    wrong = received.bytes != operand(previous, 0, n()).bytes;
  } else {
    Values x = mine(n());
    wrong = message_of([&] { group_->send(x.view(), 0, kHost); }).empty() ||
            message_of([&] { group_->recv(x.view(), 0, kHost); }).empty();
  }
  EXPECT_EQ(ranks_with(wrong), 0);
}

INSTANTIATE_TEST_SUITE_P(Definitions, CommunicatorTest, ::testing::ValuesIn(all_cases()),
                         ::testing::PrintToStringParamName());

// --- groups
// ---------------------------------------------------------------------------------------

TEST(CommunicatorGroupsTest, SplitOrdersByKeyAndThenByRank) {
  const auto world = make_mpi_communicator();
  const auto same_key = world->split(3, 5, "all");
  const auto reversed = world->split(0, -world->rank(), "all");
  EXPECT_EQ(ranks_with(same_key->rank() != world->rank() ||
                       reversed->rank() != world->size() - 1 - world->rank()),
            0);
}

TEST(CommunicatorGroupsTest, GroupsOfASplitReduceApart) {
  const auto world = make_mpi_communicator();
  const auto half = world->split(world->rank() % 2, 0, "half");
  int64_t sum = world->rank(), expected = 0;
  for (int rank = world->rank() % 2; rank < world->size(); rank += 2) expected += rank;
  half->all_reduce(view_of(&sum, {1}), ReduceOp::kSum, kHost);
  EXPECT_EQ(ranks_with(sum != expected), 0);
}

TEST(CommunicatorGroupsTest, SplitOfASplitAndOfAGroupOfOneWork) {
  const auto world = make_mpi_communicator();
  const auto alone = world->split(world->rank(), 0, "alone")->split(7, 0, "alone too");
  const auto self = make_self_communicator()->split(0, 0, "self");
  EXPECT_EQ(ranks_with(alone->size() != 1 || self->size() != 1 || self->name() != "self"), 0);
}

TEST(CommunicatorGroupsTest, KnowWhatTheyAreFor) {
  const auto world = make_mpi_communicator();
  const auto staged = make_staged_communicator(world->split(0, 0, "data-parallel"));
  EXPECT_EQ(world->group_name(), "world");
  EXPECT_EQ(staged->group_name(), "data-parallel");
  EXPECT_EQ(staged->split(0, 0, "tensor-parallel")->group_name(), "tensor-parallel");
  EXPECT_EQ(make_self_communicator()->split(0, 0, "alone")->group_name(), "alone");
}

TEST(CommunicatorGroupsTest, ARankThatWaitsForOneGroupMovesTheOthersOn) {
  const auto world = make_mpi_communicator();
  const auto pair = world->split(world->rank() / 2, 0, "pair");
  std::vector<double> x(100000, 1), y(100000, 1);
  const auto over_world = world->start_all_reduce(view_of(x), ReduceOp::kSum, kHost);
  const auto over_pair = pair->start_all_reduce(view_of(y), ReduceOp::kSum, kHost);
  (world->rank() % 2 ? over_world : over_pair)->wait(kHost);
  (world->rank() % 2 ? over_pair : over_world)->wait(kHost);
  const bool wrong = x != std::vector<double>(x.size(), world->size()) ||
                     y != std::vector<double>(y.size(), pair->size());
  EXPECT_EQ(ranks_with(wrong), 0);
}

TEST(CommunicatorGroupsTest, CountTheBytesThatTheySend) {
  const auto world = make_mpi_communicator();
  const int64_t size = world->size(), n = 6000 * size;
  std::vector<float> x(n), part(n / size);
  EXPECT_TRUE(world->traffic().empty());
  world->all_reduce(view_of(x), ReduceOp::kSum, kHost);
  world->reduce_scatter(view_of(part), view_of(x), ReduceOp::kSum, kHost);
  world->all_gather(view_of(x), view_of(part), kHost);
  world->broadcast(view_of(x), 0, kHost);
  const auto staged = make_staged_communicator(make_mpi_communicator());
  staged->all_reduce(view_of(part.data(), {10}), ReduceOp::kSum, kHost);
  std::map<std::string, int64_t> expected;
  const int64_t phase = (size - 1) * 6000 * 4;
  if (size > 1) {
    expected = {{"all_reduce", 2 * phase}, {"reduce_scatter", phase}, {"all_gather", phase}};
    if (world->rank() == 0) expected["broadcast"] = n * 4;
  }
  EXPECT_EQ(ranks_with(world->traffic() != expected), 0);
  const int64_t small = staged->traffic()["all_reduce"];  // in one phase, everything to all
  EXPECT_EQ(ranks_with(small != (size - 1) * 40), 0);
}

TEST(CommunicatorGroupsTest, BarrierWaitsForTheLastRank) {
  const auto world = make_mpi_communicator();
  double entered_last = 0;
  for (int late = 0; late < world->size(); ++late) {
    world->barrier();
    if (world->rank() == late) {
      const double until = seconds_now() + 0.02;
      while (seconds_now() < until) {
      }
    }
    double entered = seconds_now();
    world->barrier();
    const double left = seconds_now();
    MPI_Allreduce(&entered, &entered_last, 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
    EXPECT_EQ(ranks_with(left < entered_last), 0) << "late rank " << late;
  }
}

// --- texts
// ----------------------------------------------------------------------------------------

TEST(CommunicatorTextTest, BroadcastTextGivesTheRootsText) {
  const auto world = make_mpi_communicator();
  for (int root = 0; root < world->size(); ++root) {
    for (const std::string& text : {std::string(), std::string("of ") + std::to_string(root),
                                    std::string(70000, static_cast<char>('a' + root))}) {
      const std::string own = world->rank() == root ? text : "another text";
      EXPECT_EQ(ranks_with(broadcast_text(*world, own, root) != text), 0);
    }
  }
}

TEST(CommunicatorTextTest, AllGatherTextsKeepsLengthsAndOrder) {
  const auto world = make_mpi_communicator();
  const auto text_of = [](int rank) {
    return std::string(rank * 1000, static_cast<char>('a' + rank));
  };
  const std::vector<std::string> texts = all_gather_texts(*world, text_of(world->rank()));
  bool wrong = static_cast<int>(texts.size()) != world->size();
  for (int rank = 0; !wrong && rank < world->size(); ++rank) wrong = texts[rank] != text_of(rank);
  EXPECT_EQ(ranks_with(wrong), 0);
}

TEST(CommunicatorTextTest, TextsWorkInAGroupOfOne) {
  const auto self = make_self_communicator();
  EXPECT_EQ(broadcast_text(*self, "plum", 0), "plum");
  EXPECT_EQ(all_gather_texts(*self, "plum"), std::vector<std::string>{"plum"});
  EXPECT_EQ(all_gather_texts(*self, ""), std::vector<std::string>{""});
}

// --- checks
// ---------------------------------------------------------------------------------------

class CommunicatorChecksTest : public ::testing::TestWithParam<bool> {
 protected:
  CommunicatorChecksTest()
      : group_(GetParam() ? make_mpi_communicator() : make_self_communicator()) {}
  std::unique_ptr<Communicator> group_;
  std::vector<float> memory_ = std::vector<float>(64);
};

TEST_P(CommunicatorChecksTest, RefusesMemoryOfAnotherDevice) {
  TensorView x = view_of(memory_.data(), {4});
  x.device = Device::kCuda;
  const TensorView all = {memory_.data(), {4 * group_->size()}, DType::kFloat32, Device::kCuda};
  const std::string wanted = "moves host memory, not cuda memory";
  for (const std::string& message :
       {message_of([&] { group_->all_reduce(x, ReduceOp::kSum, kHost); }),
        message_of([&] { group_->start_all_reduce(x, ReduceOp::kSum, kHost); }),
        message_of([&] { group_->all_gather(all, x, kHost); }),
        message_of([&] { group_->reduce_scatter(x, all, ReduceOp::kSum, kHost); }),
        message_of([&] { group_->broadcast(x, 0, kHost); })}) {
    EXPECT_EQ(ranks_with(message.find(wanted) == std::string::npos), 0) << message;
  }
}

TEST_P(CommunicatorChecksTest, RefusesPartsThatDoNotFillTheWhole) {
  const int64_t size = group_->size();
  const TensorView x = view_of(memory_.data(), {4}), all = view_of(memory_.data(), {4 * size + 1});
  const std::string wanted =
      std::to_string(4 * size) + " elements in all, not " + std::to_string(4 * size + 1);
  for (const std::string& message :
       {message_of([&] { group_->all_gather(all, x, kHost); }),
        message_of([&] { group_->reduce_scatter(x, all, ReduceOp::kSum, kHost); })}) {
    EXPECT_EQ(ranks_with(message.find(wanted) == std::string::npos), 0) << message;
  }
}

TEST_P(CommunicatorChecksTest, RefusesPartsOfAnotherDtype) {
  const TensorView x = view_of(memory_.data(), {2});
  TensorView all = view_of(memory_.data(), {2 * group_->size()});
  all.dtype = DType::kInt32;
  const std::string message = message_of([&] { group_->all_gather(all, x, kHost); });
  EXPECT_EQ(ranks_with(message != "all_gather between int32 and float32"), 0) << message;
}

TEST_P(CommunicatorChecksTest, RefusesRanksThatDoNotExist) {
  const TensorView x = view_of(memory_.data(), {2});
  for (const int peer : {-1, group_->size()}) {
    const std::string message = message_of([&] { group_->broadcast(x, peer, kHost); });
    const std::string wanted = "broadcast names rank " + std::to_string(peer) + " in a group of " +
                               std::to_string(group_->size());
    EXPECT_EQ(ranks_with(message != wanted), 0) << message;
    EXPECT_EQ(ranks_with(message_of([&] { group_->send(x, peer, kHost); }).empty()), 0);
    EXPECT_EQ(ranks_with(message_of([&] { group_->recv(x, peer, kHost); }).empty()), 0);
  }
}

TEST_P(CommunicatorChecksTest, RefusesMessagesToItself) {
  const TensorView x = view_of(memory_.data(), {2});
  const int self = group_->rank();
  EXPECT_EQ(ranks_with(message_of([&] { group_->send(x, self, kHost); }).empty()), 0);
  EXPECT_EQ(ranks_with(message_of([&] { group_->recv(x, self, kHost); }).empty()), 0);
}

TEST_P(CommunicatorChecksTest, RefusesNegativeColours) {
  const std::string message = message_of([&] { group_->split(-1, 0, "none"); });
  EXPECT_EQ(ranks_with(message != "split wants a colour of at least 0, not -1"), 0) << message;
}

INSTANTIATE_TEST_SUITE_P(Definitions, CommunicatorChecksTest, ::testing::Bool(),
                         [](const auto& info) { return info.param ? "mpi" : "self"; });

TEST(MpiErrorsTest, AMessageLongerThanWantedIsAnErrorThatNamesTheOperation) {
  const auto group = make_mpi_communicator();
  std::vector<double> memory(20);
  std::string message;
  if (group->size() > 1 && group->rank() == 0) {
    group->send(view_of(memory.data(), {20}), 1, kHost);
  } else if (group->rank() == 1) {
    message = message_of([&] { group->recv(view_of(memory.data(), {5}), 0, kHost); });
  }
  const bool wrong = group->rank() == 1 && (message.find("MPI_ERR_TRUNCATE") == std::string::npos ||
                                            message.find("recv: ") != 0);
  EXPECT_EQ(ranks_with(wrong), 0) << message;
}

TEST(MpiErrorsTest, AMessageShorterThanWantedIsAnError) {
  const auto group = make_mpi_communicator();
  std::vector<double> memory(20);
  std::string message;
  if (group->size() > 1 && group->rank() == 0) {
    group->send(view_of(memory.data(), {5}), 1, kHost);
  } else if (group->rank() == 1) {
    message = message_of([&] { group->recv(view_of(memory.data(), {20}), 0, kHost); });
  }
  EXPECT_EQ(
      ranks_with(group->rank() == 1 && message != "recv from rank 0 wanted 160 bytes, got 40"), 0)
      << message;
}

TEST(MpiSessionTest, RefusesASecondSession) {
  const std::string message = message_of([] { MpiSession second(nullptr, nullptr); });
  EXPECT_EQ(ranks_with(message != "a process makes only one MpiSession"), 0) << message;
}

}  // namespace
}  // namespace mirabelle
