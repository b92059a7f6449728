#include "mirabelle/kernels/concatenate.h"

#include "support/backends.h"
#include "support/errors.h"
#include "support/threads.h"

namespace mirabelle::testing {
namespace {

using Values = std::vector<double>;

class ConcatenateTest : public BackendTest {
 protected:
  Values run(const Values& x, int64_t num_shards, int64_t num_rows, int64_t shard_columns,
             int64_t num_columns) {
    const Buffer out =
        make_tensor(GetParam(), {num_rows, num_columns}, Values(num_rows * num_columns, 99.0));
    const Shape shape{num_shards, num_rows, shard_columns};
    concatenate_columns(out.view(), make_tensor(GetParam(), shape, x).view(), stream_);
    return to_doubles(out.view());
  }
};

TEST_P(ConcatenateTest, PutsTheShardsSideBySide) {
  for (const auto& [shards, rows, width, columns] : {std::array<int64_t, 4>{1, 1, 1, 1},
                                                     {2, 3, 1, 2},
                                                     {4, 7, 5, 20},
                                                     {4, 7, 5, 17},
                                                     {4, 7, 5, 3},
                                                     {3, 40, 16, 48},
                                                     {3, 40, 16, 40},
                                                     {3, 40, 16, 33},
                                                     {2, 300, 131, 261},
                                                     {4, 100, 512, 2000},
                                                     {3, 0, 5, 15},
                                                     {3, 4, 5, 0},
                                                     {3, 4, 0, 0},
                                                     {0, 4, 5, 0}}) {
    const Values x = random_values(shards * rows * width, 1);
    Values expected;
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t shard = 0; shard < shards; ++shard) {
        for (int64_t i = 0; i < width && shard * width + i < columns; ++i) {
          expected.push_back(x[(shard * rows + row) * width + i]);
        }
      }
    }
    EXPECT_EQ(run(x, shards, rows, width, columns), expected)
        << shards << ", " << rows << ", " << width << ", " << columns;
  }
}

TEST_P(ConcatenateTest, DoesNotDependOnTheNumberOfThreads) {
  if (GetParam().device != Device::kCpu) GTEST_SKIP() << "CPU only";
  const Values x = random_values(3 * 331 * 60, 1);
  expect_same_for_any_number_of_threads([&] { return run(x, 3, 331, 60, 177); });
}

TEST_P(ConcatenateTest, RefusesOperandsThatDisagree) {
  const Buffer x = empty_tensor(GetParam(), {2, 3, 4}), out = empty_tensor(GetParam(), {3, 9});
  const Buffer integers({2, 3, 4}, DType::kInt32, GetParam().device);
  expect_error("x has shape [6, 4], wanted [num_shards, num_rows, shard_columns]", [&] {
    concatenate_columns(out.view(), x.view().reshaped({6, 4}), stream_);
  });
  expect_error("out has shape [3, 9], wanted [3, at most 8]",
               [&] { concatenate_columns(out.view(), x.view(), stream_); });
  const TensorView eight = x.view().reshaped({24}).rows(0, 16).reshaped({2, 8});
  expect_error("out has shape [2, 8], wanted [3, at most 8]",
               [&] { concatenate_columns(eight, x.view(), stream_); });
  const TensorView fits = out.view().reshaped({27}).rows(0, 24).reshaped({3, 8});
  expect_error("x is int32, wanted", [&] { concatenate_columns(fits, integers.view(), stream_); });
}

MIRABELLE_INSTANTIATE_BACKENDS(ConcatenateTest);

}  // namespace
}  // namespace mirabelle::testing
