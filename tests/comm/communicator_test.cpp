#include "mirabelle/comm/communicator.h"

#include <gtest/gtest.h>
#define OMPI_SKIP_MPICXX 1
#include <mpi.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "comm/on_device.h"

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

// Every definition of Communicator runs the same tests. The oracle is MPI itself, called here on a
// group of the same ranks.
enum class Definition {
  kSelf,
  kMpi,
  kMpiShortMessages,
  kMpiSplit,
  kStaged,     // host memory, which it hands on
  kStagedGpu,  // GPU memory
  kNccl,
};
bool needs_gpu(Definition definition) {
  return definition == Definition::kStagedGpu || definition == Definition::kNccl;
}

struct Case {
  Definition definition;
  DType dtype;
  int64_t n;
};

void PrintTo(const Case& c, std::ostream* out) {
  const char* names[] = {"self",       "mpi", "mpi_short_messages", "mpi_split", "staged",
                         "staged_gpu", "nccl"};
  *out << names[static_cast<int>(c.definition)] << "_" << to_string(c.dtype) << "_" << c.n;
}

std::vector<Case> all_cases() {
  std::vector<Case> cases;
  std::vector<Definition> definitions = {Definition::kSelf, Definition::kMpi,
                                         Definition::kMpiShortMessages, Definition::kMpiSplit,
                                         Definition::kStaged};
#ifdef MIRABELLE_CUDA
  definitions.insert(definitions.end(), {Definition::kStagedGpu, Definition::kNccl});
#endif
  for (const Definition definition : definitions) {
    for (const DType dtype :
         {DType::kFloat32, DType::kFloat64, DType::kInt32, DType::kInt64, DType::kUint8}) {
      for (const int64_t n : {0, 1, 1021}) cases.push_back({definition, dtype, n});
    }
  }
  cases.push_back({Definition::kMpi, DType::kFloat32, 1000003});
  cases.push_back({Definition::kMpiShortMessages, DType::kUint8, 1000003});
  return cases;
}

MPI_Datatype type_of(DType dtype) {
  return dtype == DType::kFloat32   ? MPI_FLOAT
         : dtype == DType::kFloat64 ? MPI_DOUBLE
         : dtype == DType::kInt32   ? MPI_INT32_T
         : dtype == DType::kInt64   ? MPI_INT64_T
                                    : MPI_UINT8_T;
}

constexpr std::pair<ReduceOp, int> kOps[] = {
    {ReduceOp::kSum, 0}, {ReduceOp::kMax, 1}, {ReduceOp::kMin, 2}};
MPI_Op oracle_op(int index) { return index == 0 ? MPI_SUM : index == 1 ? MPI_MAX : MPI_MIN; }

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

/// Small whole numbers, so that every order of summation gives the same bits.
Values random_values(DType dtype, int64_t n, int seed) {
  Values values{std::vector<char>(n * size_in_bytes(dtype)), dtype};
  std::mt19937 generator(seed);
  for (int64_t i = 0; i < n; ++i) {
    const int value = static_cast<int>(generator() % 30);
    char* const at = values.bytes.data() + i * size_in_bytes(dtype);
    const auto put = [&](auto typed) { std::memcpy(at, &typed, sizeof typed); };
    if (dtype == DType::kFloat32) put(static_cast<float>(value - 15));
    if (dtype == DType::kFloat64) put(static_cast<double>(value - 15));
    if (dtype == DType::kInt32) put(static_cast<int32_t>(value - 15));
    if (dtype == DType::kInt64) put(static_cast<int64_t>(value - 15));
    if (dtype == DType::kUint8) put(static_cast<uint8_t>(value));
  }
  return values;
}

class CommunicatorTest : public ::testing::TestWithParam<Case> {
 protected:
  /// Without the GPUs that the case needs it is skipped, on all ranks alike. NCCL wants one for
  /// each rank, unless NCCL_HOSTID makes it believe that the ranks are on hosts of their own.
  void SetUp() override {
    int gpus = num_cuda_devices(), ranks = 1;
    MPI_Allreduce(MPI_IN_PLACE, &gpus, 1, MPI_INT, MPI_MIN, MPI_COMM_WORLD);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    const bool shares = GetParam().definition == Definition::kNccl && !std::getenv("NCCL_HOSTID");
    if (needs_gpu(GetParam().definition) && gpus < (shares ? ranks : 1)) {
      GTEST_SKIP() << gpus << " GPUs for " << ranks << " ranks";
    }
    if (needs_gpu(GetParam().definition)) select_cuda_device(world_rank());
    make_groups();
  }

  void make_groups() {
    const int rank = world_rank();
    switch (GetParam().definition) {
      case Definition::kSelf:
        group_ = make_self_communicator();
        MPI_Comm_dup(MPI_COMM_SELF, &oracle_);
        break;
      case Definition::kMpi:
        group_ = make_mpi_communicator();
        MPI_Comm_dup(MPI_COMM_WORLD, &oracle_);
        break;
      case Definition::kMpiShortMessages:
        group_ = make_mpi_communicator(GetParam().n > 10000 ? 300007 : 100);
        MPI_Comm_dup(MPI_COMM_WORLD, &oracle_);
        break;
      case Definition::kMpiSplit:  // even and odd ranks, each in reverse order
        group_ = make_mpi_communicator()->split(rank % 2, -rank);
        MPI_Comm_split(MPI_COMM_WORLD, rank % 2, -rank, &oracle_);
        break;
      case Definition::kStaged:
        group_ = make_staged_communicator(make_mpi_communicator());
        MPI_Comm_dup(MPI_COMM_WORLD, &oracle_);
        break;
      case Definition::kStagedGpu:
        group_ =
            std::make_unique<testing::OnDevice>(make_staged_communicator(make_mpi_communicator()));
        MPI_Comm_dup(MPI_COMM_WORLD, &oracle_);
        break;
      case Definition::kNccl:
        group_ =
            std::make_unique<testing::OnDevice>(make_nccl_communicator(make_mpi_communicator()));
        MPI_Comm_dup(MPI_COMM_WORLD, &oracle_);
        break;
    }
    MPI_Comm_rank(oracle_, &rank_);
    MPI_Comm_size(oracle_, &size_);
  }
  ~CommunicatorTest() override {
    if (oracle_ != MPI_COMM_NULL) MPI_Comm_free(&oracle_);
  }

  Values mine(int64_t n) const { return random_values(GetParam().dtype, n, 1000 + world_rank()); }
  MPI_Datatype type() const { return type_of(GetParam().dtype); }
  int64_t n() const { return GetParam().n; }
  int count() const { return static_cast<int>(GetParam().n); }

  std::unique_ptr<Communicator> group_;
  MPI_Comm oracle_ = MPI_COMM_NULL;
  int rank_ = 0;
  int size_ = 0;
};

TEST_P(CommunicatorTest, KnowsItsRankAndSize) {
  EXPECT_EQ(ranks_with(group_->rank() != rank_ || group_->size() != size_), 0);
}

TEST_P(CommunicatorTest, AllReduceEqualsMpi) {
  for (const auto& [op, index] : kOps) {
    Values x = mine(n()), expected = x;
    MPI_Allreduce(MPI_IN_PLACE, expected.bytes.data(), count(), type(), oracle_op(index), oracle_);
    group_->all_reduce(x.view(), op, kHost);
    EXPECT_EQ(ranks_with(x.bytes != expected.bytes), 0) << "operation " << index;
  }
}

TEST_P(CommunicatorTest, StartedAllReducesEqualMpi) {
  std::vector<Values> x, expected;
  std::vector<std::unique_ptr<PendingCollective>> under_way;
  for (const auto& [op, index] : kOps) {
    x.push_back(mine(n()));
    expected.push_back(x.back());
    MPI_Allreduce(MPI_IN_PLACE, expected.back().bytes.data(), count(), type(), oracle_op(index),
                  oracle_);
  }
  for (const auto& [op, index] : kOps) {
    under_way.push_back(group_->start_all_reduce(x[index].view(), op, kHost));
    under_way[0]->poll();
  }
  for (int index = 2; index >= 0; --index) under_way[index]->wait(kHost);
  under_way[1]->poll();  // done: does nothing
  under_way[1]->wait(kHost);
  for (int index = 0; index < 3; ++index) {
    EXPECT_EQ(ranks_with(x[index].bytes != expected[index].bytes), 0) << "operation " << index;
  }
}

TEST_P(CommunicatorTest, PollingAloneFinishesAStartedAllReduce) {
  if (needs_gpu(GetParam().definition)) GTEST_SKIP() << "the GPU needs no polling";
  Values x = mine(n()), expected = x;
  MPI_Allreduce(MPI_IN_PLACE, expected.bytes.data(), count(), type(), MPI_SUM, oracle_);
  const auto under_way = group_->start_all_reduce(x.view(), ReduceOp::kSum, kHost);
  for (int attempt = 0; attempt < 1000000 && x.bytes != expected.bytes; ++attempt) {
    under_way->poll();
  }
  EXPECT_EQ(ranks_with(x.bytes != expected.bytes), 0);
  under_way->wait(kHost);
}

TEST_P(CommunicatorTest, AllGatherEqualsMpi) {
  Values x = mine(n()), out = random_values(x.dtype, size_ * n(), 1), expected = out;
  MPI_Allgather(x.bytes.data(), count(), type(), expected.bytes.data(), count(), type(), oracle_);
  const Values x_before = x;
  group_->all_gather(out.view(), x.view(), kHost);
  EXPECT_EQ(ranks_with(out.bytes != expected.bytes || x.bytes != x_before.bytes), 0);
}

TEST_P(CommunicatorTest, AllGatherFromItsOwnPartEqualsMpi) {
  Values x = mine(n()), out = random_values(x.dtype, size_ * n(), 1), expected = out;
  MPI_Allgather(x.bytes.data(), count(), type(), expected.bytes.data(), count(), type(), oracle_);
  const TensorView part = out.view().rows(rank_ * n(), (rank_ + 1) * n());
  if (n() > 0) std::memcpy(part.data, x.bytes.data(), x.bytes.size());
  group_->all_gather(out.view(), part, kHost);
  EXPECT_EQ(ranks_with(out.bytes != expected.bytes), 0);
}

TEST_P(CommunicatorTest, ReduceScatterEqualsMpiAndKeepsItsOperand) {
  for (const auto& [op, index] : kOps) {
    Values x = mine(size_ * n()), out = random_values(x.dtype, n(), 1), expected = out;
    MPI_Reduce_scatter_block(x.bytes.data(), expected.bytes.data(), count(), type(),
                             oracle_op(index), oracle_);
    const Values x_before = x;
    group_->reduce_scatter(out.view(), x.view(), op, kHost);
    EXPECT_EQ(ranks_with(out.bytes != expected.bytes || x.bytes != x_before.bytes), 0);
  }
}

TEST_P(CommunicatorTest, ReduceScatterIntoItsOwnPartEqualsMpi) {
  Values x = mine(size_ * n()), expected = random_values(x.dtype, n(), 1);
  MPI_Reduce_scatter_block(x.bytes.data(), expected.bytes.data(), count(), type(), MPI_SUM,
                           oracle_);
  const TensorView part = x.view().rows(rank_ * n(), (rank_ + 1) * n());
  group_->reduce_scatter(part, x.view(), ReduceOp::kSum, kHost);
  const bool equal =
      n() == 0 || std::memcmp(part.data, expected.bytes.data(), expected.bytes.size()) == 0;
  EXPECT_EQ(ranks_with(!equal), 0);
}

TEST_P(CommunicatorTest, BroadcastEqualsMpiFromEveryRoot) {
  for (int root = 0; root < size_; ++root) {
    Values x = mine(n()), expected = x;
    MPI_Bcast(expected.bytes.data(), count(), type(), root, oracle_);
    group_->broadcast(x.view(), root, kHost);
    // the groups of a split may have different sizes, so the verdict is each group's own
    int wrong = x.bytes != expected.bytes;
    MPI_Allreduce(MPI_IN_PLACE, &wrong, 1, MPI_INT, MPI_SUM, oracle_);
    EXPECT_EQ(wrong, 0) << "root " << root;
  }
}

TEST_P(CommunicatorTest, SendAndRecvPassValuesAroundTheRing) {
  const int next = (rank_ + 1) % size_, previous = (rank_ + size_ - 1) % size_;
  bool wrong = false;
  if (size_ > 1) {
    Values x = mine(n()), received = random_values(x.dtype, n(), 1), expected = received;
    MPI_Sendrecv(x.bytes.data(), count(), type(), next, 0, expected.bytes.data(), count(), type(),
                 previous, 0, oracle_, MPI_STATUS_IGNORE);
    if (rank_ == 0) {
      group_->send(x.view(), next, kHost);
      group_->recv(received.view(), previous, kHost);
    } else {
      group_->recv(received.view(), previous, kHost);
      group_->send(x.view(), next, kHost);
    }
    wrong = received.bytes != expected.bytes;
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
  const auto same_key = world->split(3, 5);
  const auto reversed = world->split(0, -world->rank());
  EXPECT_EQ(ranks_with(same_key->rank() != world->rank() ||
                       reversed->rank() != world->size() - 1 - world->rank()),
            0);
}

TEST(CommunicatorGroupsTest, GroupsOfASplitReduceApart) {
  const auto world = make_mpi_communicator();
  const auto half = world->split(world->rank() % 2, 0);
  int64_t sum = world->rank(), expected = 0;
  for (int rank = world->rank() % 2; rank < world->size(); rank += 2) expected += rank;
  half->all_reduce(view_of(&sum, {1}), ReduceOp::kSum, kHost);
  EXPECT_EQ(ranks_with(sum != expected), 0);
}

TEST(CommunicatorGroupsTest, SplitOfASplitAndOfAGroupOfOneWork) {
  const auto world = make_mpi_communicator();
  const auto alone = world->split(world->rank(), 0)->split(7, 0);
  const auto self = make_self_communicator()->split(0, 0);
  EXPECT_EQ(ranks_with(alone->size() != 1 || self->size() != 1 || self->name() != "self"), 0);
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
  const std::string message = message_of([&] { group_->split(-1, 0); });
  EXPECT_EQ(ranks_with(message != "split wants a colour of at least 0, not -1"), 0) << message;
}

INSTANTIATE_TEST_SUITE_P(Definitions, CommunicatorChecksTest, ::testing::Bool(),
                         [](const auto& info) { return info.param ? "mpi" : "self"; });

TEST(MpiErrorsTest, AMessageLongerThanWantedIsAnErrorThatNamesTheCall) {
  const auto group = make_mpi_communicator();
  std::vector<double> memory(20);
  std::string message;
  if (group->size() > 1 && group->rank() == 0) {
    group->send(view_of(memory.data(), {20}), 1, kHost);
  } else if (group->rank() == 1) {
    message = message_of([&] { group->recv(view_of(memory.data(), {5}), 0, kHost); });
  }
  const bool wrong = group->rank() == 1 && (message.find("MPI_ERR_TRUNCATE") == std::string::npos ||
                                            message.find("MPI_Recv") == std::string::npos);
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
      ranks_with(group->rank() == 1 && message != "recv from rank 0 wanted 20 elements, got 5"), 0)
      << message;
}

TEST(MpiSessionTest, RefusesASecondSession) {
  const std::string message = message_of([] { MpiSession second(nullptr, nullptr); });
  EXPECT_EQ(ranks_with(message != "a process makes only one MpiSession"), 0) << message;
}

}  // namespace
}  // namespace mirabelle
