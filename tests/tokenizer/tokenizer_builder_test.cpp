#include "mirabelle/tokenizer/tokenizer_builder.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <numeric>
#include <set>

#include "mirabelle/core/error.h"
#include "mirabelle/data/training_histories.h"
#include "mirabelle/tokenizer/code_quality.h"
#include "mirabelle/tokenizer/collisions.h"
#include "mirabelle/tokenizer/rq_vae.h"
#include "mirabelle/tokenizer/tokenizer_assigner.h"
#include "support/tiny_corpus.h"

namespace mirabelle {
namespace {

/// Items whose features are drawn by their ID alone, so that corpora that share items agree on
/// them.
void write_items(const std::filesystem::path& folder, const std::vector<std::string>& ids,
                 int64_t dim = 6, const std::string& source = "title") {
  CorpusOptions options;
  options.dataset = "items";
  CorpusWriter writer(folder, options, false, {});
  for (const std::string& id : ids) writer.add_item(id);
  writer.add_feature(source, dim);
  for (const std::string& id : ids) {
    // IDs such as "12a", "12b", ... have the same features
    Random random(random_key(std::stoull(id), "features"));
    std::vector<float> row(dim);
    for (float& value : row) value = static_cast<float>(random.normal());
    writer.add_feature_rows(source, row.data(), 1);
  }
  writer.add_user({"1", {0, 0, 0}, {}, {}, ""});
  writer.finish();
}

std::vector<std::string> numbers(int64_t begin, int64_t end) {
  std::vector<std::string> ids;
  for (int64_t i = begin; i < end; ++i) ids.push_back(std::to_string(i));
  return ids;
}

std::vector<int32_t> codes_of(const SemanticIds& ids, int64_t item) {
  return {ids.codes(item).begin(), ids.codes(item).end()};
}

RqVaeConfig small_rq_vae() {
  RqVaeConfig config;
  config.hidden_sizes = {16};
  config.source_size = 8;
  config.codebook_dim = 5;
  config.steps = 80;
  config.batch_items = 64;
  return config;
}

class TokenizerBuilderTest : public ::testing::Test {
 protected:
  TokenizerBuilderTest() {
    const auto* info = ::testing::UnitTest::GetInstance()->current_test_info();
    folder_ = std::filesystem::path(::testing::TempDir()) / info->name();
    std::filesystem::remove_all(folder_);
    config_.levels = {8, 4};
  }
  ~TokenizerBuilderTest() override { std::filesystem::remove_all(folder_); }

  TokenizerFile build(const std::filesystem::path& corpus) {
    return build_tokenizer(Corpus(corpus), {config_, rq_vae_, {}, "config text"}, Device::kCpu,
                           *self_, on_progress_);
  }
  AssignedTokenizer assign(const TokenizerFile& old, const std::filesystem::path& corpus) {
    return assign_new_items(old, Corpus(corpus), 16, *self_);
  }
  static void expect_error(ErrorKind kind, const std::string& part,
                           const std::function<void()>& body) {
    try {
      body();
      ADD_FAILURE() << "no error, wanted: " << part;
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), kind);
      EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
    }
  }

  std::filesystem::path folder_;
  TokenizerConfig config_;
  RqVaeConfig rq_vae_ = small_rq_vae();
  TokenizerProgress on_progress_;
  std::unique_ptr<Communicator> self_ = make_self_communicator();
};

TEST_F(TokenizerBuilderTest, GivesEveryItemOfACorpusAnId) {
  const TokenizerFile tokenizer = build(write_tiny_corpus(folder_, 60, 200, 1));
  EXPECT_EQ(tokenizer.kind, "residual_kmeans");
  EXPECT_EQ(tokenizer.dataset, "tiny");
  EXPECT_EQ(tokenizer.split_hash, Corpus(folder_).split_hash());
  EXPECT_EQ(tokenizer.config, "config text");
  ASSERT_EQ(tokenizer.ids.num_items(), 200);
  ASSERT_EQ(tokenizer.ids.num_levels(), 3);
  EXPECT_EQ(tokenizer.ids.level_size(0), 8);
  EXPECT_EQ(tokenizer.ids.level_size(1), 4);
  EXPECT_EQ(tokenizer.item_ids.front(), "1");
  EXPECT_EQ(tokenizer.item_ids.back(), "200");
  // 200 items in 32 places: the disambiguation codes of every place are 0, 1, 2, ...
  std::map<std::vector<int32_t>, int32_t> next;
  int32_t largest = 0;
  for (int64_t item = 0; item < 200; ++item) {
    std::vector<int32_t> id = codes_of(tokenizer.ids, item);
    const int32_t code = id.back();
    id.pop_back();
    EXPECT_EQ(code, next[id]++) << "item " << item;
    largest = std::max(largest, code + 1);
  }
  EXPECT_EQ(tokenizer.ids.level_size(2), disambiguation_level_size(largest));
  const auto report = nlohmann::json::parse(tokenizer.report);
  EXPECT_EQ(report["disambiguation"]["largest"], largest);
  EXPECT_EQ(report["levels"][0]["used"], 8);
  const PrefixRecall recall =
      prefix_recall(tokenizer.ids, 2, count_co_occurrences(Corpus(folder_), {}, *self_));
  EXPECT_GT(recall.num_items, 50);
  EXPECT_EQ(report["prefix_recall"]["items"], recall.num_items);
  EXPECT_EQ(report["prefix_recall"]["recall@10"], recall.recall_at_10);
  EXPECT_LT(report["levels"][1]["relative_error"], report["levels"][0]["relative_error"]);
}

TEST_F(TokenizerBuilderTest, CodesAreThoseOfTheStoredNormalisationAndCodebooks) {
  const Corpus corpus(write_tiny_corpus(folder_, 60, 100, 2));
  config_.features = {"metadata", "title"};
  config_.feature_weights = {2, 1};
  const TokenizerFile tokenizer = build(folder_);
  const FeatureNormalization& normalization = tokenizer.quantizer.normalization;
  ASSERT_EQ(normalization.feature_dim(), 13);
  std::vector<float> metadata(100 * 5), title(100 * 8);
  corpus.read_features("metadata", 0, 100, metadata.data());
  corpus.read_features("title", 0, 100, title.data());
  for (int64_t item = 0; item < 100; ++item) {
    std::vector<double> residual;
    for (int64_t j = 0; j < 13; ++j) {
      const double x = j < 5 ? metadata[item * 5 + j] : title[item * 8 + j - 5];
      residual.push_back((x - normalization.means[j]) / normalization.deviations[j] *
                         (j < 5 ? 2 / std::sqrt(5.0) : 1 / std::sqrt(8.0)));
    }
    for (int64_t level = 0; level < 2; ++level) {
      const Codebook& codebook = tokenizer.quantizer.codebooks[level];
      const auto distance = [&](int64_t code) {
        double sum = 0;
        for (int64_t j = 0; j < 13; ++j) {
          sum += std::pow(residual[j] - codebook.rows[code * 13 + j], 2);
        }
        return sum;
      };
      const int32_t chosen = tokenizer.ids.codes(item)[level];
      for (int64_t code = 0; code < codebook.size; ++code) {
        ASSERT_LE(distance(chosen), distance(code) + 1e-5) << "item " << item;
      }
      for (int64_t j = 0; j < 13; ++j) residual[j] -= codebook.rows[chosen * 13 + j];
    }
  }
}

TEST_F(TokenizerBuilderTest, OfKindItemIdCountsTheItems) {
  config_.kind = "item_id";
  const TokenizerFile tokenizer = build(write_tiny_corpus(folder_, 60, 30, 3));
  ASSERT_EQ(tokenizer.ids.num_levels(), 1);
  EXPECT_EQ(tokenizer.ids.level_size(0), 30);
  for (int64_t item = 0; item < 30; ++item) EXPECT_EQ(tokenizer.ids.codes(item)[0], item);
  EXPECT_EQ(tokenizer.quantizer.num_levels(), 0);
}

TEST_F(TokenizerBuilderTest, RefusesSourcesThatTheCorpusLacks) {
  write_tiny_corpus(folder_, 60, 30, 4);
  config_.features = {"image"};
  expect_error(ErrorKind::kUsage, "has no source image, it has: title metadata",
               [&] { build(folder_); });
  config_.features = {};
  config_.feature_weights = {1};
  expect_error(ErrorKind::kUsage, "has 1 weights for the 2 sources", [&] { build(folder_); });
}

TEST_F(TokenizerBuilderTest, RefusesACorpusWithoutFeaturesUnlessOfKindItemId) {
  CorpusOptions options;
  options.dataset = "bare";
  CorpusWriter writer(folder_, options, false, {});
  writer.add_item("7");
  writer.add_user({"1", {0, 0, 0}, {}, {}, ""});
  writer.finish();
  expect_error(ErrorKind::kUsage, "has no feature sources", [&] { build(folder_); });
  config_.kind = "item_id";
  EXPECT_EQ(build(folder_).item_ids, std::vector<std::string>{"7"});
}

/// Items of which the first `num_copied` have copies.
std::vector<std::string> alike(int64_t num_different, int64_t num_copied,
                               const std::string& letters) {
  std::vector<std::string> ids = numbers(0, num_different);
  for (const char letter : letters) {
    for (int64_t i = 0; i < num_copied; ++i) ids.push_back(std::to_string(i) + letter);
  }
  return ids;
}

void expect_all_different(const SemanticIds& ids) {
  std::set<std::vector<int32_t>> seen;
  for (int64_t item = 0; item < ids.num_items(); ++item) {
    EXPECT_TRUE(seen.insert(codes_of(ids, item)).second) << "item " << item;
  }
}

TEST_F(TokenizerBuilderTest, NearestFreeAndBalancedNeedNoFurtherLevel) {
  config_.levels = {4, 64};
  write_items(folder_, alike(60, 5, "ab"));
  for (const char* rule : {"nearest_free", "balanced"}) {
    config_.collisions = rule;
    const TokenizerFile tokenizer = build(folder_);
    EXPECT_EQ(tokenizer.collisions, rule);
    ASSERT_EQ(tokenizer.ids.num_levels(), 2);
    expect_all_different(tokenizer.ids);
    const auto report = nlohmann::json::parse(tokenizer.report);
    EXPECT_EQ(report["collision_rule"], rule);
    EXPECT_GE(report["moved_items"], 10);  // two of each three that look alike make room
    EXPECT_LE(report["moved_items"], 30);
    EXPECT_EQ(report["unique_items"], 1.0);
    config_.collisions = "disambiguation_code";
    EXPECT_EQ(report["unique_nearest"],
              nlohmann::json::parse(build(folder_).report)["unique_items"]);
  }
}

TEST_F(TokenizerBuilderTest, PrefixesWithMoreItemsThanCodesAreNumberedToo) {
  write_items(folder_, alike(3, 3, "abcdefg"));  // 24 items in at most 3 x 3 places
  config_.levels = {2, 3};
  for (const char* rule : {"nearest_free", "balanced"}) {
    config_.collisions = rule;
    const TokenizerFile tokenizer = build(folder_);
    ASSERT_EQ(tokenizer.ids.num_levels(), 3) << rule;
    expect_all_different(tokenizer.ids);
  }
}

TEST_F(TokenizerBuilderTest, SharedIdsAreRankedByTrainingEvents) {
  CorpusOptions options;
  options.dataset = "shared";
  CorpusWriter writer(folder_, options, false, {});
  for (int i = 0; i < 4; ++i) writer.add_item(std::to_string(i));
  writer.add_feature("title", 1);
  const float features[] = {5, 1, 5, 5};
  writer.add_feature_rows("title", features, 4);
  writer.add_user({"1", {3, 3, 2, 0, 0}, {}, {}, ""});  // the zeros are targets
  writer.finish();
  config_.levels = {2};
  config_.collisions = "shared";
  const TokenizerFile tokenizer = build(folder_);
  ASSERT_EQ(tokenizer.ids.num_levels(), 1);
  EXPECT_EQ(codes_of(tokenizer.ids, 0), codes_of(tokenizer.ids, 2));
  EXPECT_EQ(codes_of(tokenizer.ids, 0), codes_of(tokenizer.ids, 3));
  EXPECT_EQ(tokenizer.ids.priority(3), 0);
  EXPECT_EQ(tokenizer.ids.priority(2), 1);
  EXPECT_EQ(tokenizer.ids.priority(0), 2);
  EXPECT_EQ(tokenizer.ids.priority(1), 0);
  const auto report = nlohmann::json::parse(tokenizer.report);
  EXPECT_EQ(report["shared"], nlohmann::json::parse(R"({"ids": 1, "items": 3, "largest": 3})"));
}

TEST_F(TokenizerBuilderTest, MultiResolutionLevelsHalve) {
  config_.multi_resolution_levels = 3;
  const TokenizerFile tokenizer = build(write_tiny_corpus(folder_, 60, 50, 6));
  ASSERT_EQ(tokenizer.ids.num_levels(), 4);
  EXPECT_EQ(tokenizer.ids.level_size(0), 2048);
  EXPECT_EQ(tokenizer.ids.level_size(1), 1024);
  EXPECT_EQ(tokenizer.ids.level_size(2), 512);
}

TEST_F(TokenizerBuilderTest, AssigningFollowsTheRuleOfTheTokenizer) {
  config_.levels = {4, 64};
  write_items(folder_ / "old", alike(60, 5, "a"));
  write_items(folder_ / "new", alike(70, 5, "abc"));
  for (const std::string rule : {"nearest_free", "balanced", "shared"}) {
    config_.collisions = rule;
    const std::filesystem::path path = folder_ / "tokenizer.h5";
    write_tokenizer_file(path, build(folder_ / "old"));
    const TokenizerFile old = read_tokenizer_file(path);
    const SemanticIds table = assign(old, folder_ / "new").tokenizer.ids;
    EXPECT_EQ(table.vocab_size(), old.ids.vocab_size());
    const auto place = [](int64_t old_item) { return old_item < 60 ? old_item : old_item + 10; };
    for (int64_t item = 0; item < 65; ++item) {
      EXPECT_EQ(codes_of(table, place(item)), codes_of(old.ids, item)) << rule << " " << item;
    }
    if (rule != "shared") {
      expect_all_different(table);
      continue;
    }
    for (int64_t item = 70; item < 85; ++item) {
      EXPECT_EQ(codes_of(table, item), codes_of(table, item % 5)) << item;
    }
  }
}

TEST_F(TokenizerBuilderTest, ItemCodesAreALevelOfTheirOwn) {
  config_.levels = {4, 8};
  config_.collisions = "item_code";
  write_items(folder_ / "old", alike(60, 5, "a"));
  write_items(folder_ / "new", alike(70, 5, "abc"));
  const auto path = folder_ / "tokenizer.h5";
  write_tokenizer_file(path, build(folder_ / "old"));
  const TokenizerFile old = read_tokenizer_file(path);
  ASSERT_EQ(old.ids.num_levels(), 3);
  EXPECT_EQ(old.ids.level_size(2), 65);
  for (int64_t item = 0; item < 65; ++item) EXPECT_EQ(old.ids.codes(item)[2], item);

  // Items 60 .. 69 of the new corpus are new, and so are 75 .. 84.
  const SemanticIds table = assign(old, folder_ / "new").tokenizer.ids;
  ASSERT_EQ(table.num_items(), 85);
  EXPECT_EQ(table.level_size(2), 85);
  for (int64_t item = 0; item < 85; ++item) {
    const int64_t number = item < 60 ? item : item < 70 ? item + 5 : item < 75 ? item - 10 : item;
    EXPECT_EQ(table.codes(item)[2], number) << item;
  }
  for (int64_t item = 75; item < 85; ++item) {  // copies have the codes of their originals
    EXPECT_TRUE(std::ranges::equal(table.codes(item).first(2), table.codes(item % 5).first(2)));
  }
}

TEST_F(TokenizerBuilderTest, AssigningSaysWhenNoLastCodeIsFree) {
  config_.levels = {1, 4};
  config_.collisions = "nearest_free";
  write_items(folder_ / "old", {"1", "2", "3"});
  write_items(folder_ / "new", {"1", "2", "3", "3a", "4"});
  const TokenizerFile old = build(folder_ / "old");
  ASSERT_EQ(old.quantizer.codebooks[1].size, 3);
  expect_error(ErrorKind::kData, "item 3a has the first codes of 3 other items",
               [&] { assign(old, folder_ / "new"); });
}

TEST_F(TokenizerBuilderTest, AssigningWithoutNewItemsChangesNothing) {
  write_tiny_corpus(folder_, 60, 80, 5);
  const TokenizerFile old = build(folder_);
  const AssignedTokenizer assigned = assign(old, folder_);
  EXPECT_EQ(assigned.num_new_items, 0);
  for (int64_t item = 0; item < 80; ++item) {
    EXPECT_EQ(codes_of(assigned.tokenizer.ids, item), codes_of(old.ids, item));
  }
  EXPECT_EQ(assigned.tokenizer.quantizer.codebooks[0].rows, old.quantizer.codebooks[0].rows);
}

TEST_F(TokenizerBuilderTest, AssigningKeepsOldCodesWhereverTheItemsNowStand) {
  write_items(folder_ / "old", numbers(100, 160));
  const TokenizerFile old = build(folder_ / "old");
  std::vector<std::string> ids = numbers(90, 175);  // new ones before and after
  std::reverse(ids.begin(), ids.end());
  write_items(folder_ / "new", ids);
  const AssignedTokenizer assigned = assign(old, folder_ / "new");
  EXPECT_EQ(assigned.num_new_items, 25);
  const SemanticIds& table = assigned.tokenizer.ids;
  ASSERT_EQ(table.num_items(), 85);
  EXPECT_EQ(table.vocab_size(), old.ids.vocab_size());
  EXPECT_EQ(assigned.tokenizer.item_ids, ids);
  for (int64_t row = 0; row < 60; ++row) {
    const int64_t item = std::ranges::find(ids, old.item_ids[row]) - ids.begin();
    EXPECT_EQ(codes_of(table, item), codes_of(old.ids, row)) << ids[item];
  }
  EXPECT_EQ(nlohmann::json::parse(assigned.tokenizer.report)["assigned"]["new_items"], 25);
}

TEST_F(TokenizerBuilderTest, AssigningGivesACopyItsOriginalsCodesAndTheNextFreeNumber) {
  write_items(folder_ / "old", {"1", "2", "3", "4", "5", "4a", "6"});
  const TokenizerFile old = build(folder_ / "old");
  ASSERT_EQ(codes_of(old.ids, 5).back(), 1) << "the second of the two that look alike";
  write_items(folder_ / "new", {"4c", "1", "2", "3", "4", "5", "4a", "6", "4b", "2a"});
  const SemanticIds table = assign(old, folder_ / "new").tokenizer.ids;
  std::vector<int32_t> expected = codes_of(old.ids, 3);
  for (const auto& [item, code] : std::map<int64_t, int32_t>{{4, 0}, {6, 1}, {0, 2}, {8, 3}}) {
    expected.back() = code;
    EXPECT_EQ(codes_of(table, item), expected) << "item " << item;
  }
  expected = codes_of(old.ids, 1);
  expected.back() = 1;
  EXPECT_EQ(codes_of(table, 9), expected);
}

TEST_F(TokenizerBuilderTest, AssigningTwiceEqualsAssigningOnce) {
  write_items(folder_ / "old", numbers(0, 40));
  write_items(folder_ / "more", numbers(0, 50));
  write_items(folder_ / "most", numbers(0, 60));
  const TokenizerFile old = build(folder_ / "old");
  const SemanticIds once = assign(old, folder_ / "most").tokenizer.ids;
  const SemanticIds twice =
      assign(assign(old, folder_ / "more").tokenizer, folder_ / "most").tokenizer.ids;
  for (int64_t item = 0; item < 60; ++item) EXPECT_EQ(codes_of(once, item), codes_of(twice, item));
}

TEST_F(TokenizerBuilderTest, AssigningSaysWhenAGroupIsFull) {
  write_items(folder_ / "old", {"1", "2", "3", "4"});
  const TokenizerFile old = build(folder_ / "old");
  ASSERT_EQ(old.ids.level_size(2), 8);
  std::vector<std::string> ids = {"1", "2", "3", "4"};
  for (char letter = 'a'; letter <= 'g'; ++letter) ids.push_back(std::string("3") + letter);
  write_items(folder_ / "full", ids);
  EXPECT_EQ(assign(old, folder_ / "full").num_new_items, 7);
  ids.push_back("3h");
  write_items(folder_ / "over", ids);
  expect_error(ErrorKind::kData, "item 3h has the codes of 8 other items",
               [&] { assign(old, folder_ / "over"); });
}

TEST_F(TokenizerBuilderTest, AssigningRefusesACorpusThatLacksOldItems) {
  write_items(folder_ / "old", numbers(0, 5));
  write_items(folder_ / "new", numbers(1, 9));
  const TokenizerFile old = build(folder_ / "old");
  expect_error(ErrorKind::kData, "lacks 1 items of the tokenizer, among them 0",
               [&] { assign(old, folder_ / "new"); });
}

TEST_F(TokenizerBuilderTest, AssigningRefusesOtherFeatureSources) {
  write_items(folder_ / "old", numbers(0, 5));
  write_items(folder_ / "wider", numbers(0, 6), 7);
  write_items(folder_ / "other", numbers(0, 6), 6, "image");
  const TokenizerFile old = build(folder_ / "old");
  expect_error(ErrorKind::kData, "has dim 7, the tokenizer was built from dim 6",
               [&] { assign(old, folder_ / "wider"); });
  expect_error(ErrorKind::kData, "lacks the feature source title",
               [&] { assign(old, folder_ / "other"); });
}

TEST_F(TokenizerBuilderTest, AssigningToKindItemIdAppendsCodes) {
  config_.kind = "item_id";
  write_items(folder_ / "old", {"5", "6", "7"});
  write_items(folder_ / "new", {"9", "7", "6", "8", "5"});
  const AssignedTokenizer assigned = assign(build(folder_ / "old"), folder_ / "new");
  EXPECT_EQ(assigned.num_new_items, 2);
  EXPECT_EQ(assigned.tokenizer.ids.level_size(0), 5);
  const int32_t expected[] = {3, 2, 1, 4, 0};
  for (int64_t item = 0; item < 5; ++item) {
    EXPECT_EQ(assigned.tokenizer.ids.codes(item)[0], expected[item]) << item;
  }
}

TEST_F(TokenizerBuilderTest, AnAssignedFileIsReadBackAndAssignedAgain) {
  write_items(folder_ / "old", numbers(0, 20));
  write_items(folder_ / "new", numbers(0, 30));
  const std::filesystem::path path = folder_ / "tokenizer.h5";
  write_tokenizer_file(path, build(folder_ / "old"));
  const AssignedTokenizer assigned = assign(read_tokenizer_file(path), folder_ / "new");
  write_tokenizer_file(path, assigned.tokenizer);
  EXPECT_EQ(SemanticIds::read(path).num_items(), 30);
  EXPECT_EQ(assign(read_tokenizer_file(path), folder_ / "new").num_new_items, 0);
}

TEST_F(TokenizerBuilderTest, AnRqVaesLatentsAreQuantized) {
  config_.kind = "rq_vae";
  rq_vae_.contrastive_weight = 0.1;
  const TokenizerFile tokenizer = build(write_tiny_corpus(folder_, 60, 200, 1));
  ASSERT_TRUE(tokenizer.quantizer.rq_vae);
  const RqVae& model = *tokenizer.quantizer.rq_vae;
  ASSERT_EQ(tokenizer.quantizer.num_levels(), 2);
  EXPECT_EQ(tokenizer.quantizer.codebooks[0].size, 8);
  EXPECT_EQ(tokenizer.quantizer.codebooks[1].dim, 5);

  // Codes and errors again, of normalised features, in double precision.
  const Corpus corpus(folder_);
  std::vector<float> features;
  for (int64_t item = 0; item < 200; ++item) {
    float row[13];
    for (float* out = row; const FeatureSource& source : model.sources()) {
      corpus.read_features(source.name, item, item + 1, out);
      out += source.dim;
    }
    features.insert(features.end(), row, row + 13);
  }
  tokenizer.quantizer.normalization.apply(features.data(), 200);
  const ItemRows rows = {200, 13, [&](int64_t begin, int64_t end, float* out) {
                           std::copy_n(&features[begin * 13], (end - begin) * 13, out);
                         }};
  std::vector<float> latents(200 * 5);
  RqVaeEncoder(model, 64).encode(nullptr, latents.data(), rows, 0, 200);
  std::vector<double> errors(3);
  for (int64_t item = 0; item < 200; ++item) {
    std::vector<double> residual(&latents[item * 5], &latents[item * 5] + 5);
    const auto square = [&] {
      return std::inner_product(residual.begin(), residual.end(), residual.begin(), 0.0);
    };
    errors[0] += square();
    for (int64_t level = 0; level < 2; ++level) {
      const float* row =
          model.tensors().codebooks[level].as<float>() + 5 * tokenizer.ids.codes(item)[level];
      for (int64_t j = 0; j < 5; ++j) residual[j] -= row[j];
      errors[level + 1] += square();
    }
  }
  const auto report = nlohmann::json::parse(tokenizer.report);
  for (int64_t level = 0; level < 2; ++level) {
    EXPECT_NEAR(report["levels"][level]["relative_error"], errors[level + 1] / errors[0], 1e-5);
    EXPECT_LT(errors[level + 1], errors[level]);
  }
  EXPECT_EQ(report["rq_vae"]["steps"], 80);
  EXPECT_GT(report["rq_vae"]["contrastive"], 0);
}

TEST_F(TokenizerBuilderTest, ReportsHowFarEncodingIs) {
  config_.kind = "rq_vae";
  config_.batch_items = 2;  // of the 3 or 4 items of a chunk (CanonicalSum)
  rq_vae_.steps = 1;
  int64_t items = 0, calls = 0;
  on_progress_.encoding = [&](const EncodingProgress& now) {
    EXPECT_GT(now.items, items);
    EXPECT_LE(now.items, items + 2);
    EXPECT_EQ(now.num_items, 200);
    EXPECT_GT(now.items_per_second, 0);
    items = now.items;
    ++calls;
  };
  build(write_tiny_corpus(folder_, 60, 200, 1));
  EXPECT_EQ(items, 200);
  EXPECT_EQ(calls, 2 * 64);
}

TEST_F(TokenizerBuilderTest, NewItemsGoThroughTheRqVae) {
  config_.kind = "rq_vae";
  rq_vae_.steps = 20;
  write_items(folder_ / "old", numbers(0, 150));
  const TokenizerFile old = build(folder_ / "old");
  const auto path = folder_ / "tokenizer.h5";
  write_tokenizer_file(path, old);
  // "12a" has the features of "12", so it has its codes, but for the disambiguation code.
  std::vector<std::string> ids = numbers(0, 150);
  for (const int64_t twin : {12, 77, 149}) ids.push_back(std::to_string(twin) + "a");
  write_items(folder_ / "new", ids);
  const AssignedTokenizer assigned = assign(read_tokenizer_file(path), folder_ / "new");
  EXPECT_EQ(assigned.num_new_items, 3);
  for (int64_t item = 0; item < 150; ++item) {
    EXPECT_EQ(codes_of(assigned.tokenizer.ids, item), codes_of(old.ids, item));
  }
  for (const auto& [item, twin] : {std::pair{150, 12}, {151, 77}, {152, 149}}) {
    const auto codes = codes_of(assigned.tokenizer.ids, item), others = codes_of(old.ids, twin);
    EXPECT_EQ(codes[0], others[0]);
    EXPECT_EQ(codes[1], others[1]);
    EXPECT_NE(codes[2], others[2]);
  }
}

TEST_F(TokenizerBuilderTest, NewItemsMayStandAnywhere) {
  write_items(folder_ / "old", numbers(20, 60));
  write_items(folder_ / "new", numbers(0, 90));
  std::vector<std::string> mixed;  // one old item between any two runs of new ones
  for (int64_t i = 0; i < 90; ++i) mixed.push_back(std::to_string(i * 37 % 90));
  write_items(folder_ / "mixed", mixed);
  config_.collisions = "shared";
  for (const char* kind : {"residual_kmeans", "rq_vae"}) {
    config_.kind = kind;
    rq_vae_.steps = 20;
    const TokenizerFile old = build(folder_ / "old");
    const SemanticIds in_order = assign(old, folder_ / "new").tokenizer.ids;
    const AssignedTokenizer anywhere = assign(old, folder_ / "mixed");
    EXPECT_EQ(anywhere.num_new_items, 50);
    for (int64_t i = 0; i < 90; ++i) {
      const auto codes = codes_of(anywhere.tokenizer.ids, i);
      const auto expected = codes_of(in_order, i * 37 % 90);
      EXPECT_EQ(codes[0], expected[0]) << kind << ' ' << i;
      EXPECT_EQ(codes[1], expected[1]) << kind << ' ' << i;
    }
  }
}

TEST_F(TokenizerBuilderTest, RefusesASourceOfTheNameOfCoOccurrence) {
  write_items(folder_, numbers(0, 5), 6, "co_occurrence");
  expect_error(ErrorKind::kUsage, "has a feature source co_occurrence", [&] { build(folder_); });
}

TEST_F(TokenizerBuilderTest, CoOccurrenceIsASourceOfItsOwn) {
  // Features say nothing; histories are of even or of odd items; nobody has item 40.
  CorpusOptions options;
  options.dataset = "parity";
  CorpusWriter writer(folder_, options, false, {});
  for (int64_t item = 0; item <= 40; ++item) writer.add_item(std::to_string(item));
  writer.add_feature("noise", 3);
  for (int64_t i = 0; i <= 40; ++i) {
    const float row[3] = {static_cast<float>(random_normal(1, 3 * i)), 1, 0};
    writer.add_feature_rows("noise", row, 1);
  }
  Random random(4);
  for (int64_t user = 0; user < 80; ++user) {
    std::vector<int32_t> items;
    for (int64_t event = 0; event < 14; ++event) {
      items.push_back(static_cast<int32_t>(2 * random.below(20) + user % 2));
    }
    writer.add_user({std::to_string(user), items, {}, {}, ""});
  }
  writer.finish();
  config_.levels = {2, 4};
  config_.standardize = "per_source";
  config_.co_occurrence_dim = 2;
  config_.co_occurrence_weight = 10;
  const TokenizerFile tokenizer = build(folder_);
  const std::vector<FeatureSource>& sources = tokenizer.quantizer.normalization.sources;
  ASSERT_EQ(sources.size(), 2);
  EXPECT_EQ(sources[1].name, "co_occurrence");
  EXPECT_EQ(sources[1].dim, 2);
  EXPECT_EQ(sources[1].weight, 10);
  for (int64_t item = 0; item < 40; ++item) {
    EXPECT_EQ(tokenizer.ids.codes(item)[0], tokenizer.ids.codes(item % 2)[0]) << item;
  }
  EXPECT_NE(tokenizer.ids.codes(0)[0], tokenizer.ids.codes(1)[0]);
  EXPECT_EQ(assign(tokenizer, folder_).num_new_items, 0);
}

}  // namespace
}  // namespace mirabelle
