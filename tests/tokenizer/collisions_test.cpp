// Run on several ranks: each must get what one alone gets.
#include "mirabelle/tokenizer/collisions.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <set>

#include "mirabelle/core/random.h"

namespace mirabelle {
namespace {

using Codes = std::vector<int32_t>;

/// Items of `num_prefixes` prefixes (codes [prefix, nearest last code]) and their residuals.
struct Catalogue {
  Codebook codebook;
  std::vector<float> values;
  Codes codes;
  ItemRows residuals() const {
    return {static_cast<int64_t>(values.size()) / codebook.dim, codebook.dim,
            [this](int64_t begin, int64_t end, float* out) {
              std::copy(values.begin() + begin * codebook.dim, values.begin() + end * codebook.dim,
                        out);
            }};
  }
  double distance(int64_t item, int64_t code) const {
    double sum = 0;
    for (int64_t j = 0; j < codebook.dim; ++j) {
      sum += std::pow(
          double{values[item * codebook.dim + j]} - double{codebook.rows[code * codebook.dim + j]},
          2);
    }
    return sum;
  }
  double total_distance(const Codes& changed) const {
    double sum = 0;
    for (size_t item = 0; item < changed.size() / 2; ++item) {
      sum += distance(static_cast<int64_t>(item), changed[2 * item + 1]);
    }
    return sum;
  }
};

Catalogue random_catalogue(int64_t num_items, int64_t num_prefixes, int64_t size, int64_t dim,
                           uint64_t seed) {
  Random random(random_key(seed, "catalogue"));
  Catalogue catalogue{{size, dim, std::vector<float>(size * dim)}, {}, {}};
  for (float& value : catalogue.codebook.rows) value = static_cast<float>(random.normal());
  for (int64_t i = 0; i < num_items * dim; ++i) {
    catalogue.values.push_back(static_cast<float>(random.normal()));
  }
  for (int64_t item = 0; item < num_items; ++item) {
    int32_t nearest = 0;
    for (int32_t code = 1; code < size; ++code) {
      if (catalogue.distance(item, code) < catalogue.distance(item, nearest)) nearest = code;
    }
    catalogue.codes.push_back(static_cast<int32_t>(random.below(num_prefixes)));
    catalogue.codes.push_back(nearest);
  }
  return catalogue;
}

const Communicator& world() {
  static const std::unique_ptr<Communicator> world = make_mpi_communicator();
  return *world;
}

Codes nearest_free(const Catalogue& catalogue, const std::vector<bool>& fixed = {},
                   int64_t batch_items = 10, const Communicator& communicator = world()) {
  Codes codes = catalogue.codes;
  const ItemRows residuals = catalogue.residuals();
  move_to_nearest_free(codes, 2, fixed, {catalogue.codebook, residuals, batch_items}, communicator);
  return codes;
}

Codes balanced(const Catalogue& catalogue, double temperature = 0.02, int64_t batch_items = 10,
               const Communicator& communicator = world()) {
  Codes codes = catalogue.codes;
  const ItemRows residuals = catalogue.residuals();
  balance_last_level(codes, 2, temperature, {catalogue.codebook, residuals, batch_items},
                     communicator);
  return codes;
}

/// The rule, item by item.
Codes nearest_free_oracle(const Catalogue& catalogue, const std::vector<bool>& fixed) {
  Codes codes = catalogue.codes;
  std::map<int32_t, std::vector<int64_t>> prefixes;
  for (size_t item = 0; item < codes.size() / 2; ++item) prefixes[codes[2 * item]].push_back(item);
  for (auto& [prefix, items] : prefixes) {
    std::set<int32_t> taken;
    std::vector<int64_t> movable, homeless;
    for (const int64_t item : items) {
      if (fixed.empty() || !fixed[item])
        movable.push_back(item);
      else
        taken.insert(codes[2 * item + 1]);
    }
    std::stable_sort(movable.begin(), movable.end(), [&](int64_t a, int64_t b) {
      return catalogue.distance(a, codes[2 * a + 1]) < catalogue.distance(b, codes[2 * b + 1]);
    });
    for (const int64_t item : movable) {
      if (!taken.insert(codes[2 * item + 1]).second) homeless.push_back(item);
    }
    for (const int64_t item : homeless) {
      std::pair<double, int32_t> best{INFINITY, -1};
      for (int32_t code = 0; code < catalogue.codebook.size; ++code) {
        if (!taken.contains(code)) best = std::min(best, {catalogue.distance(item, code), code});
      }
      if (best.second < 0) continue;
      taken.insert(best.second);
      codes[2 * item + 1] = best.second;
    }
  }
  return codes;
}

TEST(NearestFreeTest, FollowsTheRuleItemByItem) {
  for (const auto& [num_items, num_prefixes, size] : std::vector<std::array<int64_t, 3>>{
           {1, 1, 1}, {2, 1, 1}, {7, 2, 8}, {150, 9, 16}, {150, 3, 16}, {1000, 40, 33}}) {
    const Catalogue catalogue = random_catalogue(num_items, num_prefixes, size, 5, num_items);
    EXPECT_EQ(nearest_free(catalogue), nearest_free_oracle(catalogue, {})) << num_items;
    std::vector<bool> fixed(num_items);
    for (int64_t item = 0; item < num_items; ++item) fixed[item] = item % 3 != 1;
    EXPECT_EQ(nearest_free(catalogue, fixed), nearest_free_oracle(catalogue, fixed)) << num_items;
  }
}

TEST(NearestFreeTest, TheNearestStaysAndEqualItemsMoveInOrder) {
  // Codes at 0, 1, 2, 4 on a line; items at 0.2, 0, 0 and 0.
  const Catalogue catalogue{{4, 1, {0, 1, 2, 4}}, {0.2F, 0, 0, 0}, {7, 0, 7, 0, 7, 0, 7, 0}};
  EXPECT_EQ(nearest_free(catalogue), (Codes{7, 3, 7, 0, 7, 1, 7, 2}));
  EXPECT_EQ(nearest_free(catalogue, {true, true, false, false}), (Codes{7, 0, 7, 0, 7, 1, 7, 2}));
}

TEST(NearestFreeTest, ItemsThatFindNoCodeStay) {
  const Catalogue catalogue{{2, 1, {0, 1}}, {0, 0, 0.1F, 0}, {3, 0, 3, 0, 3, 0, 4, 0}};
  EXPECT_EQ(nearest_free(catalogue), (Codes{3, 0, 3, 1, 3, 0, 4, 0}));
}

TEST(NearestFreeTest, OfNoItemsOrNoCollisionsChangesNothing) {
  EXPECT_EQ(nearest_free({{1, 1, {0}}, {}, {}}), Codes{});
  const Catalogue catalogue{{2, 1, {0, 1}}, {0, 0, 1}, {3, 0, 4, 0, 3, 1}};
  EXPECT_EQ(nearest_free(catalogue), catalogue.codes);
}

TEST(BalancedTest, NoCodeHasMoreItemsThanItsShare) {
  for (const auto& [num_items, num_prefixes, size] : std::vector<std::array<int64_t, 3>>{
           {1, 1, 1}, {3, 1, 1}, {150, 9, 16}, {150, 3, 16}, {1000, 40, 33}, {500, 1, 3}}) {
    const Catalogue catalogue = random_catalogue(num_items, num_prefixes, size, 5, num_items);
    const Codes codes = balanced(catalogue);
    std::map<int32_t, int64_t> items_of_prefix;
    std::map<std::pair<int32_t, int32_t>, int64_t> items_of_id;
    for (int64_t item = 0; item < num_items; ++item) {
      ASSERT_EQ(codes[2 * item], catalogue.codes[2 * item]);
      ASSERT_TRUE(codes[2 * item + 1] >= 0 && codes[2 * item + 1] < size);
      ++items_of_prefix[codes[2 * item]];
      ++items_of_id[{codes[2 * item], codes[2 * item + 1]}];
    }
    for (const auto& [id, count] : items_of_id) {
      EXPECT_LE(count, (items_of_prefix[id.first] + size - 1) / size) << num_items;
    }
  }
}

TEST(BalancedTest, IsNearTheAssignmentOfLeastTotalDistance) {
  double total = 0, total_of_best = 0, total_of_greedy = 0;
  for (uint64_t seed = 0; seed < 30; ++seed) {
    const Catalogue catalogue = random_catalogue(6, 1, 7, 2, seed);
    std::vector<int32_t> order{0, 1, 2, 3, 4, 5, 6};
    double best = INFINITY;
    do {
      double sum = 0;
      for (int64_t item = 0; item < 6; ++item) sum += catalogue.distance(item, order[item]);
      best = std::min(best, sum);
    } while (std::next_permutation(order.begin(), order.end()));
    const double found = catalogue.total_distance(balanced(catalogue, 0.01));
    EXPECT_GE(found, best - 1e-5) << seed;
    total += found;
    total_of_best += best;
    total_of_greedy += catalogue.total_distance(nearest_free(catalogue));
  }
  EXPECT_LT(total, 1.02 * total_of_best);
  EXPECT_GT(total_of_greedy, 1.05 * total_of_best);
}

TEST(BalancedTest, WorksOnlyOnPrefixesThatAreCrowded) {
  // Item 2 is nearest to code 1, but was given code 0: its prefix has room, so it stays.
  const Catalogue catalogue{{2, 1, {0, 1}}, {0, 0, 1}, {3, 0, 3, 0, 4, 0}};
  EXPECT_EQ(balanced(catalogue), (Codes{3, 0, 3, 1, 4, 0}));
  EXPECT_EQ(balanced({{1, 1, {0}}, {}, {}}), Codes{});
}

TEST(CollisionRulesTest, RanksAndBatchesChangeNothing) {
  const auto self = make_self_communicator();
  const Catalogue catalogue = random_catalogue(700, 30, 20, 6, 3);
  for (const int64_t batch_items : {1, 7, 5000}) {
    EXPECT_EQ(nearest_free(catalogue, {}, batch_items), nearest_free(catalogue, {}, 100, *self));
    EXPECT_EQ(balanced(catalogue, 0.05, batch_items), balanced(catalogue, 0.05, 100, *self));
  }
}

TEST(ResidualsBeforeLastTest, SubtractTheCodesOfAllLevelsButTheLast) {
  const std::vector<float> values{1, 2, 3, 4, 5, 6};
  const ItemRows rows{3, 2, [&](int64_t begin, int64_t end, float* out) {
                        std::copy(values.begin() + 2 * begin, values.begin() + 2 * end, out);
                      }};
  const std::vector<Codebook> codebooks{
      {2, 2, {10, 20, 30, 40}}, {1, 2, {100, 200}}, {1, 2, {7, 7}}};
  const Codes codes{0, 0, 0, 1, 0, 0, 0, 0, 0};
  std::vector<float> residuals(4);
  residuals_before_last(rows, codebooks, codes).read(1, 3, residuals.data());
  EXPECT_EQ(residuals, (std::vector<float>{3 - 130, 4 - 240, 5 - 110, 6 - 220}));
}

TEST(DisambiguationCodeTest, NumbersEqualCodesInItemOrder) {
  const Codes codes{1, 2, 3, 4, 1, 2, 1, 3, 1, 2};
  Codes numbers(5, -1);
  number_items(numbers, {codes, 2});
  EXPECT_EQ(numbers, (Codes{0, 0, 1, 0, 2}));
  EXPECT_EQ(append_level({codes, 2}, numbers),
            (Codes{1, 2, 0, 3, 4, 0, 1, 2, 1, 1, 3, 0, 1, 2, 2}));
  numbers = {-1, -1, 4, -1, -1};  // those that are there stay, and are not filled up
  number_items(numbers, {codes, 2});
  EXPECT_EQ(numbers, (Codes{5, 0, 4, 0, 6}));
  numbers.clear();
  number_items(numbers, {{}, 2});
  EXPECT_EQ(append_level({{}, 2}, numbers), Codes{});
}

TEST(DisambiguationCodeTest, LevelHasRoomForTwiceTheLargestGroup) {
  EXPECT_EQ(disambiguation_level_size(1), 8);
  EXPECT_EQ(disambiguation_level_size(4), 8);
  EXPECT_EQ(disambiguation_level_size(5), 16);
  EXPECT_EQ(disambiguation_level_size(100), 200);
}

TEST(PrioritiesTest, RankTheItemsOfAnIdByPopularity) {
  const Codes codes{1, 2, 1, 1, 2, 1};
  EXPECT_EQ(priorities_of({codes, 1}, {3, 0, 9, 3, 4, 2}), (Codes{1, 1, 0, 2, 0, 3}));
  EXPECT_EQ(priorities_of({{}, 1}, {}), Codes{});
}

}  // namespace
}  // namespace mirabelle
