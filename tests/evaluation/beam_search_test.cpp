#include "mirabelle/evaluation/beam_search.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <set>

#include "mirabelle/core/copy.h"
#include "mirabelle/core/error.h"
#include "mirabelle/core/random.h"
#include "mirabelle/evaluation/exact_scoring.h"
#include "mirabelle/tokenizer/collisions.h"

namespace mirabelle {
namespace {

using Items = std::vector<int32_t>;

constexpr int64_t kHistoryLength = 6;
constexpr int64_t kMaxTokens = 256;

/// Distinct random codes for `num_items` items; the last level is dense enough to hold them all.
SemanticIds random_ids(int64_t num_items, std::vector<int64_t> level_sizes, uint64_t seed) {
  Random random(random_key(seed, "ids"));
  std::set<std::vector<int32_t>> taken;
  std::vector<int32_t> codes;
  while (static_cast<int64_t>(taken.size()) < num_items) {
    std::vector<int32_t> id;
    for (int64_t size : level_sizes) id.push_back(static_cast<int32_t>(random.below(size)));
    if (taken.insert(id).second) codes.insert(codes.end(), id.begin(), id.end());
  }
  return SemanticIds(std::move(level_sizes), codes);
}

/// Random codes that items may have in common; every third item is more popular than the others.
SemanticIds shared_ids(int64_t num_items, std::vector<int64_t> level_sizes, uint64_t seed) {
  Random random(random_key(seed, "ids"));
  const auto num_levels = static_cast<int64_t>(level_sizes.size());
  std::vector<int32_t> codes;
  std::vector<int64_t> popularity;
  for (int64_t item = 0; item < num_items; ++item) {
    for (int64_t size : level_sizes) codes.push_back(static_cast<int32_t>(random.below(size)));
    popularity.push_back(item % 3);
  }
  std::vector<int32_t> priorities = priorities_of({codes, num_levels}, popularity);
  return SemanticIds(std::move(level_sizes), std::move(codes), std::move(priorities));
}

SemanticIds item_ids(int64_t num_items) {
  std::vector<int32_t> codes(num_items);
  for (int64_t item = 0; item < num_items; ++item) codes[item] = static_cast<int32_t>(item);
  return SemanticIds({num_items}, codes);
}

/// With weights large enough for scores that differ clearly.
TransformerConfig tiny_config() {
  TransformerConfig config;
  config.hidden_size = 16;
  config.num_layers = 2;
  config.num_heads = 4;
  config.num_kv_heads = 2;
  config.ffn_hidden_size = 24;
  config.initializer_range = 0.5;
  return config;
}

std::unique_ptr<Transformer> make_model(const SemanticIds& ids, const TransformerConfig& config,
                                        DType dtype, Device device = Device::kCpu) {
  return std::make_unique<Transformer>(config, ids.vocab_size(), ids.padded_vocab_size(), dtype,
                                       Transformer::Limits{kMaxTokens, 64, false}, device);
}

std::unique_ptr<Transformer> tiny_model(const SemanticIds& ids, DType dtype = DType::kFloat64) {
  const TransformerConfig config = tiny_config();
  auto model = make_model(ids, config, dtype);
  initialize_weights(model->weights(), model->layout(), config, model->vocab_size(), 7);
  return model;
}

/// Users with histories of 0 to 9 items; excluded are their items, or nothing.
struct Users {
  std::vector<Items> histories, excluded;
  std::vector<RecommendationQuery> queries() const {
    std::vector<RecommendationQuery> out;
    for (size_t u = 0; u < histories.size(); ++u) out.push_back({histories[u], excluded[u]});
    return out;
  }
};

Users random_users(int64_t num_users, int64_t num_items, bool exclude, uint64_t seed = 1) {
  Random random(random_key(seed, "users"));
  Users users;
  for (int64_t u = 0; u < num_users; ++u) {
    Items history;
    for (int64_t n = u % 10; n > 0; --n) {
      history.push_back(static_cast<int32_t>(random.below(num_items)));
    }
    const std::set<int32_t> distinct(history.begin(), history.end());
    users.excluded.push_back(exclude ? Items(distinct.begin(), distinct.end()) : Items{});
    users.histories.push_back(history);
  }
  return users;
}

RankedLists search(const Transformer& model, const SemanticIds& ids, const Users& users,
                   int64_t beam_size, int64_t batch_users = 4) {
  BeamSearch beam_search(model, ids, {beam_size, batch_users, kHistoryLength});
  return beam_search.search(users.queries(), Stream());
}

void expect_same_lists(const RankedLists& actual, const RankedLists& expected, double tolerance) {
  ASSERT_EQ(actual.offsets, expected.offsets);
  EXPECT_EQ(actual.items, expected.items);
  for (size_t i = 0; i < actual.scores.size(); ++i) {
    ASSERT_NEAR(actual.scores[i], expected.scores[i], tolerance) << i;
  }
}

struct Case {
  const char* name;
  int64_t num_items;
  std::vector<int64_t> level_sizes;
  bool exclude;
  bool shared = false;
};

void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }

SemanticIds ids_of(const Case& c) {
  if (c.shared) return shared_ids(c.num_items, c.level_sizes, 5);
  return c.level_sizes.empty() ? item_ids(c.num_items) : random_ids(c.num_items, c.level_sizes, 5);
}

class BeamSearchTest : public ::testing::TestWithParam<Case> {};

TEST_P(BeamSearchTest, ABeamAsWideAsTheCatalogueIsExact) {
  const SemanticIds ids = ids_of(GetParam());
  const auto model = tiny_model(ids);
  const Users users = random_users(11, ids.num_items(), GetParam().exclude);
  const RankedLists found = search(*model, ids, users, ids.num_items());
  ExactScorer exact(*model, ids, kHistoryLength, kMaxTokens);
  expect_same_lists(found, exact.rank(users.queries(), ids.num_items(), Stream()), 1e-10);
  EXPECT_EQ(found.num_invalid, 0);
  EXPECT_EQ(found.num_duplicates, 0);
}

TEST_P(BeamSearchTest, ScoresOfANarrowBeamAreTrueLogProbabilities) {
  const SemanticIds ids = ids_of(GetParam());
  const auto model = tiny_model(ids);
  const Users users = random_users(11, ids.num_items(), GetParam().exclude);
  const RankedLists found = search(*model, ids, users, 3);
  ExactScorer exact(*model, ids, kHistoryLength, kMaxTokens);
  for (int64_t user = 0; user < found.num_users(); ++user) {
    const std::vector<double> scores = exact.scores(users.histories[user], Stream());
    ASSERT_EQ(found.list(user).size(), 3u);
    for (size_t i = 0; i < 3; ++i) {
      EXPECT_NEAR(found.list_scores(user)[i], scores[found.list(user)[i]], 1e-10);
      EXPECT_LE(found.list_scores(user)[i], found.list_scores(user)[i > 0 ? i - 1 : 0]);
    }
  }
}

TEST_P(BeamSearchTest, TheBatchSizeChangesNothing) {
  const SemanticIds ids = ids_of(GetParam());
  const auto model = tiny_model(ids);
  const Users users = random_users(13, ids.num_items(), GetParam().exclude);
  const RankedLists one = search(*model, ids, users, 5, 1);
  for (int64_t batch_users : {2, 5, 13, 64}) {
    expect_same_lists(search(*model, ids, users, 5, batch_users), one, 1e-10);
  }
}

INSTANTIATE_TEST_SUITE_P(Tokenizers, BeamSearchTest,
                         ::testing::Values(Case{"ThreeLevels", 60, {5, 4, 8}, false},
                                           Case{"ThreeLevelsExcluded", 60, {5, 4, 8}, true},
                                           Case{"FourLevels", 37, {3, 3, 3, 7}, true},
                                           Case{"ItemId", 41, {}, false},
                                           Case{"ItemIdExcluded", 41, {}, true},
                                           Case{"Shared", 60, {3, 4, 3}, false, true},
                                           Case{"SharedExcluded", 60, {3, 4, 3}, true, true},
                                           Case{"SharedOneLevel", 40, {15}, true, true}),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(BeamSearchCaseTest, TheProbabilitiesOfAllItemsSumToAtMostOne) {
  // Together with the tokens that no item has, to one; nothing is renormalised over the trie.
  const SemanticIds ids = item_ids(9);
  const auto model = tiny_model(ids);
  ExactScorer exact(*model, ids, kHistoryLength, kMaxTokens);
  double sum = 0;
  for (double score : exact.scores(Items{3, 1}, Stream())) sum += std::exp(score);
  EXPECT_LT(sum, 1);  // the rest is the probability of bos
  EXPECT_GT(sum, 0.1);
}

TEST(BeamSearchCaseTest, ABeamWiderThanTheCatalogueReturnsAllItems) {
  const SemanticIds ids = random_ids(7, {2, 2, 4}, 3);
  const auto model = tiny_model(ids);
  const RankedLists found = search(*model, ids, random_users(3, 7, false), 50);
  for (int64_t user = 0; user < 3; ++user) {
    Items items(found.list(user).begin(), found.list(user).end());
    std::sort(items.begin(), items.end());
    EXPECT_EQ(items, (Items{0, 1, 2, 3, 4, 5, 6}));
  }
}

TEST(BeamSearchCaseTest, ExcludedItemsNeverCostABeam) {
  // All items but one below each first code are excluded; a beam of 4 still finds the 4 others.
  std::vector<int32_t> codes;
  for (int32_t first = 0; first < 4; ++first) {
    for (int32_t last = 0; last < 3; ++last) codes.insert(codes.end(), {first, last});
  }
  const SemanticIds ids({4, 3}, codes);
  const auto model = tiny_model(ids);
  Users users;
  users.histories = {{0, 1, 3, 4}};
  users.excluded = {{0, 1, 3, 4, 6, 7, 9, 10}};
  Items found = search(*model, ids, users, 4).items;
  std::sort(found.begin(), found.end());
  EXPECT_EQ(found, (Items{2, 5, 8, 11}));
}

TEST(BeamSearchCaseTest, APrefixWithOnlyExcludedItemsIsDroppedAtOnce) {
  // The likeliest first code holds excluded items only: a beam of one must not follow it.
  std::vector<int32_t> codes;
  for (int32_t first = 0; first < 4; ++first) {
    for (int32_t last = 0; last < 3; ++last) codes.insert(codes.end(), {first, last});
  }
  const SemanticIds ids({4, 3}, codes);
  const auto model = tiny_model(ids);
  Users users;
  users.histories = {{5}};
  users.excluded = {{}};
  const int32_t first_code = search(*model, ids, users, 1).items.at(0) / 3;
  users.excluded = {{3 * first_code, 3 * first_code + 1, 3 * first_code + 2}};
  const RankedLists found = search(*model, ids, users, 1);
  ASSERT_EQ(found.items.size(), 1u);
  EXPECT_NE(found.items[0] / 3, first_code);
}

TEST(BeamSearchCaseTest, AllItemsExcludedLeavesAnEmptyList) {
  const SemanticIds ids = random_ids(5, {2, 4}, 3);
  const auto model = tiny_model(ids);
  Users users;
  users.histories = {{0}, {1}};
  users.excluded = {{0, 1, 2, 3, 4}, {}};
  const RankedLists found = search(*model, ids, users, 3);
  EXPECT_EQ(found.list(0).size(), 0u);
  EXPECT_EQ(found.list(1).size(), 3u);
}

TEST(BeamSearchCaseTest, EqualScoresGoToTheLowerCodes) {
  // With weights of zero every token has the same probability.
  const SemanticIds ids = random_ids(20, {3, 3, 5}, 9);
  const auto model = tiny_model(ids);
  std::fill_n(model->weights().as<double>(), model->weights().num_elements(), 0.0);
  const RankedLists found = search(*model, ids, random_users(2, 20, false), 6);
  std::vector<int32_t> order(20);
  for (int32_t i = 0; i < 20; ++i) order[i] = i;
  std::sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return std::ranges::lexicographical_compare(ids.codes(a), ids.codes(b));
  });
  order.resize(6);
  for (int64_t user = 0; user < 2; ++user) {
    EXPECT_EQ(Items(found.list(user).begin(), found.list(user).end()), order);
    EXPECT_NEAR(found.list_scores(user)[0], -3 * std::log(ids.vocab_size()), 1e-12);
  }
}

TEST(BeamSearchCaseTest, EqualScoresOfDifferentPrefixesGoToTheLowerCodes) {
  // Whatever came before, code 1 is likelier than code 0 at both levels: (1, 1) is the best item,
  // and (0, 1) and (1, 0) are equal although their prefixes are not.
  const SemanticIds ids({2, 2}, {0, 0, 0, 1, 1, 0, 1, 1});
  TransformerConfig config = tiny_config();
  config.tie_embeddings = false;
  const auto model = make_model(ids, config, DType::kFloat64);
  std::fill_n(model->weights().as<double>(), model->weights().num_elements(), 0.0);
  const TransformerTensors& tensors = model->tensors();
  for (const TensorView& ones : {tensors.embedding, tensors.final_norm}) {
    std::fill_n(ones.as<double>(), ones.num_elements(), 1.0);
  }
  for (int64_t level = 0; level < 2; ++level) {
    tensors.head[0].as<double>()[(ids.level_begin(level) + 1) * config.hidden_size] = 2;
  }
  const RankedLists found = search(*model, ids, random_users(1, 4, false), 2);
  EXPECT_EQ(found.items, (Items{3, 1}));
}

/// Items 0, 1 and 2 share an ID, of which 1 is the most popular, then 2; items 4 and 5 share one,
/// of which 5 is.
SemanticIds popular_ids() {
  return SemanticIds({2, 3}, {0, 1, 0, 1, 0, 1, 0, 2, 1, 0, 1, 0}, {2, 0, 1, 0, 1, 0});
}

TEST(BeamSearchCaseTest, ItemsOfAnIdFollowEachOtherByPriority) {
  const SemanticIds ids = popular_ids();
  const auto model = tiny_model(ids);
  std::fill_n(model->weights().as<double>(), model->weights().num_elements(), 0.0);
  Users users;  // equal scores all: in the order of IDs, then of priorities
  users.histories = {{3}, {3}, {3}};
  users.excluded = {{}, {1, 5}, {0, 1, 2}};
  const std::vector<Items> expected = {{1, 2, 0, 3, 5, 4}, {2, 0, 3, 4}, {3, 5, 4}};
  ExactScorer exact(*model, ids, kHistoryLength, kMaxTokens);
  for (const int64_t beam_size : {1, 2, 3, 4, 6, 50}) {
    const RankedLists found = search(*model, ids, users, beam_size);
    const RankedLists ranked = exact.rank(users.queries(), beam_size, Stream());
    expect_same_lists(found, ranked, 1e-12);
    EXPECT_EQ(found.num_invalid + found.num_duplicates, 0);
    for (size_t user = 0; user < 3; ++user) {
      Items list = expected[user];
      list.resize(std::min<size_t>(list.size(), beam_size));
      EXPECT_EQ(Items(found.list(user).begin(), found.list(user).end()), list) << beam_size;
    }
  }
}

TEST(BeamSearchCaseTest, ListsOfSharedIdsAreFull) {
  const SemanticIds ids = shared_ids(200, {4, 4, 4}, 8);
  const auto model = tiny_model(ids);
  const Users users = random_users(20, 200, true);
  for (const int64_t beam_size : {1, 7, 30}) {
    const RankedLists found = search(*model, ids, users, beam_size);
    for (int64_t user = 0; user < found.num_users(); ++user) {
      const std::set<int32_t> items(found.list(user).begin(), found.list(user).end());
      ASSERT_EQ(static_cast<int64_t>(found.list(user).size()), beam_size);
      EXPECT_EQ(static_cast<int64_t>(items.size()), beam_size) << "different items";
    }
    EXPECT_EQ(found.num_invalid + found.num_duplicates, 0);
  }
}

TEST(BeamSearchCaseTest, OnlyTheNewestItemsOfTheHistoryAreSeen) {
  const SemanticIds ids = random_ids(30, {4, 4, 4}, 2);
  const auto model = tiny_model(ids);
  Users users;
  users.histories = {{9, 1, 2, 3, 4, 5, 6}, {1, 2, 3, 4, 5, 6}, {2, 3, 4, 5, 6}};
  users.excluded = {{}, {}, {}};
  const RankedLists found = search(*model, ids, users, 5);
  EXPECT_EQ(found.list_scores(0)[0], found.list_scores(1)[0]);
  EXPECT_NE(found.list_scores(0)[0], found.list_scores(2)[0]);
}

TEST(BeamSearchCaseTest, NoQueriesGiveNoLists) {
  const SemanticIds ids = random_ids(5, {2, 4}, 3);
  const auto model = tiny_model(ids);
  EXPECT_EQ(search(*model, ids, {}, 3).num_users(), 0);
}

TEST(BeamSearchCaseTest, Float32AgreesWithFloat64) {
  const SemanticIds ids = random_ids(60, {5, 4, 8}, 5);
  const auto narrow = tiny_model(ids, DType::kFloat32), wide = tiny_model(ids);
  const Users users = random_users(11, 60, true);
  const RankedLists a = search(*narrow, ids, users, 5), b = search(*wide, ids, users, 5);
  ASSERT_EQ(a.offsets, b.offsets);
  for (size_t i = 0; i < a.scores.size(); ++i) EXPECT_NEAR(a.scores[i], b.scores[i], 1e-3);
}

TEST(BeamSearchCaseTest, RefusesAModelOfAnotherVocabulary) {
  const SemanticIds ids = item_ids(9), others = item_ids(8);
  const auto model = tiny_model(ids);
  EXPECT_THROW(BeamSearch(*model, others, {5, 2, 3}), Error);
  EXPECT_THROW(ExactScorer(*model, others, 3, kMaxTokens), Error);
}

TEST(BeamSearchCaseTest, RefusesSizesThatAreNotPositive) {
  const SemanticIds ids = item_ids(9);
  const auto model = tiny_model(ids);
  EXPECT_THROW(BeamSearch(*model, ids, {0, 2, 3}), Error);
  EXPECT_THROW(BeamSearch(*model, ids, {5, 0, 3}), Error);
  EXPECT_THROW(BeamSearch(*model, ids, {5, 2, 0}), Error);
}

TEST(BeamSearchCaseTest, RefusesAnUnknownItemInAHistory) {
  const SemanticIds ids = item_ids(9);
  const auto model = tiny_model(ids);
  Users users;
  users.histories = {{9}};
  users.excluded = {{}};
  EXPECT_THROW(search(*model, ids, users, 3), Error);
}

TEST(BeamSearchCaseTest, RefusesAModelThatHasDiverged) {
  const SemanticIds ids = item_ids(9);
  const auto model = tiny_model(ids);
  model->weights().as<double>()[0] = std::nan("");
  EXPECT_THROW(search(*model, ids, random_users(2, 9, false), 3), Error);
}

TEST(BeamSearchCaseTest, ADivergedModelIsForgottenWithItsBatch) {
  const SemanticIds ids = random_ids(30, {4, 4, 4}, 2);
  const auto model = tiny_model(ids);
  const Users users = random_users(5, 30, true);
  BeamSearch beam_search(*model, ids, {4, 2, kHistoryLength});
  const RankedLists expected = beam_search.search(users.queries(), Stream());
  double& weight = model->tensors().final_norm.as<double>()[0];
  const double before = weight;
  weight = std::nan("");
  EXPECT_THROW(beam_search.search(users.queries(), Stream()), Error);
  weight = before;
  expect_same_lists(beam_search.search(users.queries(), Stream()), expected, 0);
}

TEST(BeamSearchCaseTest, BatchesOfAllSizesAndExclusionsShareTheMemory) {
  const SemanticIds ids = random_ids(60, {5, 4, 8}, 5);
  const auto model = tiny_model(ids);
  BeamSearch beam_search(*model, ids, {7, 4, kHistoryLength});
  for (int64_t num_users : {3, 4, 1, 9}) {
    for (bool exclude : {true, false}) {
      Users users = random_users(num_users, 60, exclude, 10 + num_users);
      if (exclude) {  // only the items 50 .. 59 are left to the last
        users.excluded.back().resize(50);
        std::iota(users.excluded.back().begin(), users.excluded.back().end(), 0);
      }
      expect_same_lists(beam_search.search(users.queries(), Stream()),
                        search(*model, ids, users, 7, 4), 0);
    }
  }
}

#ifdef MIRABELLE_CUDA
TEST(BeamSearchGpuTest, FindsWhatTheCpuFinds) {
  if (num_cuda_devices() == 0) GTEST_SKIP() << "no GPU";
  const Stream stream(Device::kCuda);
  for (const SemanticIds& ids : {random_ids(600, {8, 8, 16}, 5), item_ids(600)}) {
    const auto on_cpu = tiny_model(ids, DType::kFloat32);
    const auto on_gpu = make_model(ids, tiny_config(), DType::kFloat32, Device::kCuda);
    copy(on_gpu->weights(), on_cpu->weights(), stream);
    const Users users = random_users(11, 600, true);
    for (int64_t beam_size : {1, 20, 1000}) {
      BeamSearch beam_search(*on_gpu, ids, {beam_size, 4, kHistoryLength});
      const RankedLists found = beam_search.search(users.queries(), stream);
      const RankedLists expected = search(*on_cpu, ids, users, beam_size);
      ASSERT_EQ(found.offsets, expected.offsets);
      EXPECT_EQ(found.num_invalid + found.num_duplicates, 0);
      size_t num_swapped = 0;  // of nearly equal scores
      for (size_t i = 0; i < found.items.size(); ++i) {
        num_swapped += found.items[i] != expected.items[i];
        ASSERT_NEAR(found.scores[i], expected.scores[i], 1e-3) << i;
      }
      EXPECT_LE(num_swapped, found.items.size() / 100);
      EXPECT_EQ(beam_search.search(users.queries(), stream).scores, found.scores);
    }
  }
}

TEST(BeamSearchGpuTest, EqualScoresGoToTheLowerCodes) {
  if (num_cuda_devices() == 0) GTEST_SKIP() << "no GPU";
  const SemanticIds ids = random_ids(600, {8, 8, 16}, 5);
  const auto on_gpu = make_model(ids, tiny_config(), DType::kFloat32, Device::kCuda);
  const auto on_cpu = make_model(ids, tiny_config(), DType::kFloat32);  // all weights are 0
  const Users users = random_users(11, 600, true);
  BeamSearch beam_search(*on_gpu, ids, {30, 4, kHistoryLength});
  expect_same_lists(beam_search.search(users.queries(), Stream(Device::kCuda)),
                    search(*on_cpu, ids, users, 30), 1e-4);
}

TEST(BeamSearchGpuTest, RefusesMoreBeamsThanTheGpuCanChoose) {
  if (num_cuda_devices() == 0) GTEST_SKIP() << "no GPU";
  const SemanticIds ids = item_ids(9000);
  const auto model = make_model(ids, tiny_config(), DType::kFloat32, Device::kCuda);
  EXPECT_THROW(BeamSearch(*model, ids, {8193, 2, 3}), Error);
  const BeamSearch fits(*model, ids, {8192, 2, 3});
}
#endif

TEST(ExactScorerTest, RefusesBatchesTooSmallForASequence) {
  const SemanticIds ids = random_ids(5, {2, 4}, 3);
  const auto model = tiny_model(ids);
  EXPECT_THROW(ExactScorer(*model, ids, kHistoryLength, 13), Error);
  const ExactScorer fits(*model, ids, kHistoryLength, 14);
}

}  // namespace
}  // namespace mirabelle
