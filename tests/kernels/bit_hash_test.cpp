#include "mirabelle/kernels/bit_hash.h"

#include <cstring>
#include <limits>

#include "support/backends.h"
#include "support/errors.h"
#include "support/threads.h"

namespace mirabelle::testing {
namespace {

using Values = std::vector<double>;
using Offsets = std::vector<int64_t>;

/// The formula of the header, bit by bit.
uint64_t oracle_term(uint64_t bits, uint64_t index) {
  const auto xor_shift = [](uint64_t z, int by) { return z ^ (z >> by); };
  const uint64_t start = bits + (index + 1) * 0x9E3779B97F4A7C15ull;
  const uint64_t once = xor_shift(start, 30) * 0xBF58476D1CE4E5B9ull;
  return xor_shift(xor_shift(once, 27) * 0x94D049BB133111EBull, 31);
}

class BitHashTest : public BackendTest {
 protected:
  Offsets run(const TensorView& x, const Offsets& offsets) {
    const Buffer out({static_cast<int64_t>(offsets.size()) - 1}, DType::kInt64, GetParam().device);
    bit_hashes(out.view(), x, offsets, stream_);
    return to_host<int64_t>(out.view());
  }
  Offsets run(const Values& x, const Offsets& offsets) {
    return run(make_tensor(GetParam(), {static_cast<int64_t>(x.size())}, x).view(), offsets);
  }
  int64_t run(const Values& x) { return run(x, {0, static_cast<int64_t>(x.size())})[0]; }
};

TEST_P(BitHashTest, FollowsTheFormula) {
  const Offsets offsets = {3, 3, 4, 11, 1011, 71018, 71018};
  const int64_t n = 71020, element = size_in_bytes(GetParam().dtype);
  const Values x = random_values(n, 1);
  const Buffer bytes = make_tensor(Device::kCpu, GetParam().dtype, {n}, x);
  Offsets expected;
  for (size_t range = 0; range + 1 < offsets.size(); ++range) {
    uint64_t sum = 0;
    for (int64_t i = offsets[range]; i < offsets[range + 1]; ++i) {
      uint64_t bits = 0;  // little endian
      std::memcpy(&bits, static_cast<const char*>(bytes.data()) + i * element, element);
      sum += oracle_term(bits, i - offsets[range]);
    }
    expected.push_back(static_cast<int64_t>(sum));
  }
  EXPECT_EQ(run(x, offsets), expected);
}

TEST_P(BitHashTest, AnyChangedBitChangesIt) {
  const Values x = random_values(9, 1);
  const int64_t bytes = 9 * size_in_bytes(GetParam().dtype), before = run(x);
  const Buffer host = make_tensor(Device::kCpu, GetParam().dtype, {9}, x);
  const Buffer changed = empty_tensor(GetParam(), {9});
  for (int64_t bit = 0; bit < 8 * bytes; ++bit) {
    unsigned char& byte = static_cast<unsigned char*>(host.data())[bit / 8];
    byte ^= 1 << bit % 8;
    copy(changed.view(), host.view(), stream_);
    EXPECT_NE(run(changed.view(), {0, 9})[0], before) << bit;
    byte ^= 1 << bit % 8;
  }
}

TEST_P(BitHashTest, ExchangedElementsZeroesAndSignsChangeIt) {
  Values x = random_values(1000, 1);
  const int64_t before = run(x);
  EXPECT_EQ(run(x), before);
  std::swap(x[3], x[4]);
  EXPECT_NE(run(x), before);
  std::swap(x[3], x[4]);
  std::swap(x[0], x[999]);
  EXPECT_NE(run(x), before);
  EXPECT_NE(run({0, 0}), run({0, 0, 0}));
  EXPECT_NE(run({0.0}), run({-0.0}));
  EXPECT_NE(run({std::nan("")}), run({std::numeric_limits<double>::infinity()}));
}

TEST_P(BitHashTest, TheSameRangeHasTheSameHashAnywhere) {
  const Values x = random_values(500, 1);
  Values twice = x;
  twice.push_back(7);
  twice.insert(twice.end(), x.begin(), x.end());
  const Offsets hashes = run(twice, {0, 500, 501, 1001});
  EXPECT_EQ(hashes[0], hashes[2]);
}

TEST_P(BitHashTest, TakesNothing) {
  EXPECT_EQ(run(Values{}), 0);
  EXPECT_TRUE(run(Values{1, 2}, {0}).empty());
}

TEST_P(BitHashTest, DoesNotDependOnTheNumberOfThreads) {
  if (GetParam().device != Device::kCpu) GTEST_SKIP() << "CPU only";
  const Values x = random_values(70001, 1);
  expect_same_for_any_number_of_threads([&] {
    const int64_t hash = run(x);
    return Values{static_cast<double>(hash >> 32), static_cast<double>(hash & 0xFFFFFFFF)};
  });
}

TEST_P(BitHashTest, RefusesOperandsThatDisagree) {
  const Buffer x = empty_tensor(GetParam(), {4}), out({2}, DType::kInt64, GetParam().device);
  const auto hashes = [&](const TensorView& result, const Offsets& offsets) {
    bit_hashes(result, x.view(), offsets, stream_);
  };
  expect_error("offsets are none", [&] { hashes(out.view(), {}); });
  expect_error("out has shape [2], wanted [1]", [&] { hashes(out.view(), {0, 4}); });
  expect_error("wanted int64", [&] { hashes(x.view().rows(0, 2), {0, 2, 4}); });
  expect_error("offsets run from 0 to 5, x has 4", [&] { hashes(out.view(), {0, 2, 5}); });
  expect_error("offsets run from -1 to 4", [&] { hashes(out.view(), {-1, 2, 4}); });
  expect_error("offsets[2] is 2, wanted at least 3", [&] { hashes(out.view(), {0, 3, 2}); });
  const Buffer integers({4}, DType::kInt32, GetParam().device);
  const Offsets whole = {0, 2, 4};
  expect_error("no kernel for int32",
               [&] { bit_hashes(out.view(), integers.view(), whole, stream_); });
}

MIRABELLE_INSTANTIATE_BACKENDS(BitHashTest);

}  // namespace
}  // namespace mirabelle::testing
