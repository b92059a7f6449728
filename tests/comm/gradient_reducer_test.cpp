#include "mirabelle/comm/gradient_reducer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>
#include <utility>
#include <vector>

namespace mirabelle {
namespace {

const Stream kHost;

/// Records what a reducer starts, polls and waits for.
struct Record {
  std::vector<std::pair<float*, int64_t>> started;
  int polls = 0;
  int waits = 0;
};

class RecordingCommunicator : public Communicator {
 public:
  explicit RecordingCommunicator(Record& record) : record_(record) {}
  int rank() const override { return 0; }
  int size() const override { return 1; }
  std::string name() const override { return "recording"; }
  void all_reduce(const TensorView&, ReduceOp, const Stream&) const override {}
  std::unique_ptr<PendingCollective> start_all_reduce(const TensorView& x, ReduceOp op,
                                                      const Stream&) const override {
    EXPECT_EQ(op, ReduceOp::kSum);
    record_.started.emplace_back(x.as<float>(), x.num_elements());
    struct Pending : PendingCollective {
      explicit Pending(Record& record) : record(record) {}
      void poll() override { ++record.polls; }
      void wait(const Stream&) override { ++record.waits; }
      Record& record;
    };
    return std::make_unique<Pending>(record_);
  }
  void all_gather(const TensorView&, const TensorView&, const Stream&) const override {}
  void reduce_scatter(const TensorView&, const TensorView&, ReduceOp,
                      const Stream&) const override {}
  void broadcast(const TensorView&, int, const Stream&) const override {}
  void send(const TensorView&, int, const Stream&) const override {}
  void recv(const TensorView&, int, const Stream&) const override {}
  void barrier() const override {}
  std::unique_ptr<Communicator> split(int, int) const override { return nullptr; }

 private:
  Record& record_;
};

class GradientBucketsTest : public ::testing::Test {
 protected:
  TensorView range(int64_t begin, int64_t end) {
    return view_of(memory_.data(), {static_cast<int64_t>(memory_.size())}).rows(begin, end);
  }
  std::vector<std::pair<int64_t, int64_t>> started() const {
    std::vector<std::pair<int64_t, int64_t>> ranges;
    for (const auto& [data, n] : record_.started) {
      ranges.emplace_back(data - memory_.data(), data - memory_.data() + n);
    }
    return ranges;
  }
  using Ranges = std::vector<std::pair<int64_t, int64_t>>;

  std::vector<float> memory_ = std::vector<float>(100);
  Record record_;
  RecordingCommunicator group_{record_};
};

TEST_F(GradientBucketsTest, MergesRangesInBackwardOrderUntilABucketIsFull) {
  GradientReducer reducer(group_, 30 * sizeof(float));
  reducer.add(range(80, 100), kHost);
  EXPECT_EQ(started(), Ranges{});
  reducer.add(range(60, 80), kHost);
  EXPECT_EQ(started(), (Ranges{{60, 100}}));
  reducer.add(range(0, 60), kHost);
  EXPECT_EQ(started(), (Ranges{{60, 100}, {0, 60}}));
  reducer.finish(kHost);
  EXPECT_EQ(record_.waits, 2);
}

TEST_F(GradientBucketsTest, MergesRangesInForwardOrderToo) {
  GradientReducer reducer(group_, 1000);
  reducer.add(range(10, 20), kHost);
  reducer.add(range(20, 30), kHost);
  reducer.finish(kHost);
  EXPECT_EQ(started(), (Ranges{{10, 30}}));
}

TEST_F(GradientBucketsTest, StartsWhatIsPendingWhenARangeDoesNotTouchIt) {
  GradientReducer reducer(group_, 1000);
  reducer.add(range(10, 20), kHost);
  reducer.add(range(30, 40), kHost);
  EXPECT_EQ(started(), (Ranges{{10, 20}}));
  reducer.finish(kHost);
  EXPECT_EQ(started(), (Ranges{{10, 20}, {30, 40}}));
}

TEST_F(GradientBucketsTest, PollsWhatIsUnderWayAtEveryAdd) {
  GradientReducer reducer(group_, 1);
  reducer.add(range(90, 100), kHost);
  EXPECT_EQ(record_.polls, 0);
  reducer.add(range(80, 90), kHost);
  EXPECT_EQ(record_.polls, 1);
  reducer.add(range(70, 70), kHost);
  EXPECT_EQ(record_.polls, 3);
}

TEST_F(GradientBucketsTest, SkipsEmptyRangesAndFinishesWithoutAny) {
  GradientReducer reducer(group_, 4);
  reducer.add(range(50, 50), kHost);
  reducer.finish(kHost);
  reducer.finish(kHost);
  EXPECT_EQ(started(), Ranges{});
  EXPECT_EQ(record_.waits, 0);
}

TEST_F(GradientBucketsTest, ServesStepAfterStep) {
  GradientReducer reducer(group_, 1000);
  for (int step = 0; step < 3; ++step) {
    reducer.add(range(0, 100), kHost);
    reducer.finish(kHost);
  }
  EXPECT_EQ(started(), (Ranges{{0, 100}, {0, 100}, {0, 100}}));
  EXPECT_EQ(record_.waits, 3);
}

TEST_F(GradientBucketsTest, RefusesEmptyBuckets) {
  EXPECT_THROW(GradientReducer(group_, 0), Error);
}

// --- over MPI
// -------------------------------------------------------------------------------------

struct ReducerCase {
  int64_t n;
  int64_t num_ranges;
  int64_t bucket_bytes;
};

void PrintTo(const ReducerCase& c, std::ostream* out) {
  *out << c.n << "_elements_" << c.num_ranges << "_ranges_" << c.bucket_bytes << "_bytes";
}

class GradientReducerTest : public ::testing::TestWithParam<ReducerCase> {};

/// Whole numbers that differ by rank and place, whose sums float32 holds exactly.
float gradient(int rank, int64_t i) { return static_cast<float>((i * 7 + rank * 13) % 101 - 50); }

TEST_P(GradientReducerTest, EqualsThePlainSumWhateverTheRangesAndBuckets) {
  const auto [n, num_ranges, bucket_bytes] = GetParam();
  const auto world = make_mpi_communicator();
  std::mt19937 generator(5);  // the same cuts on every rank
  std::vector<int64_t> cuts = {0, n};
  for (int64_t i = 1; i < num_ranges; ++i) cuts.push_back(generator() % (n + 1));
  std::sort(cuts.begin(), cuts.end());

  GradientReducer reducer(*world, bucket_bytes);
  std::vector<float> gradients(n);
  for (int step = 0; step < 2; ++step) {
    const TensorView all = view_of(gradients.data(), {n});
    for (size_t cut = cuts.size() - 1; cut > 0; --cut) {
      for (int64_t i = cuts[cut - 1]; i < cuts[cut]; ++i) {
        gradients[i] = gradient(world->rank() + step, i);  // "computed" while others are under way
      }
      reducer.add(all.rows(cuts[cut - 1], cuts[cut]), kHost);
    }
    reducer.finish(kHost);
    int64_t wrong = 0;
    for (int64_t i = 0; i < n; ++i) {
      float expected = 0;
      for (int rank = 0; rank < world->size(); ++rank) expected += gradient(rank + step, i);
      wrong += gradients[i] != expected;
    }
    world->all_reduce(view_of(&wrong, {1}), ReduceOp::kSum, kHost);
    EXPECT_EQ(wrong, 0) << "step " << step;
  }
}

INSTANTIATE_TEST_SUITE_P(Sizes, GradientReducerTest,
                         ::testing::Values(ReducerCase{1, 1, 1}, ReducerCase{7, 3, 8},
                                           ReducerCase{1000, 40, 1}, ReducerCase{1000, 40, 400},
                                           ReducerCase{1000, 40, 1 << 20},
                                           ReducerCase{1000003, 1, 1 << 16},
                                           ReducerCase{1000003, 60, 1 << 18},
                                           ReducerCase{1000003, 60, 1 << 30}),
                         ::testing::PrintToStringParamName());

}  // namespace
}  // namespace mirabelle
