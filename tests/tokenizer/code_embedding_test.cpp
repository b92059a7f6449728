// Angles between rows of the embedding against angles between mean features, which random
// projections to many dimensions keep.
#include "mirabelle/tokenizer/code_embedding.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "mirabelle/core/error.h"
#include "support/errors.h"
#include "support/temporary_folder.h"
#include "support/tiny_corpus.h"

namespace mirabelle {
namespace {

constexpr int64_t kItems = 120;

class CodeEmbeddingTest : public ::testing::Test {
 protected:
  CodeEmbeddingTest() {
    recipe.tokenizer.levels = {8};
    recipe.tokenizer.collisions = "item_code";
    recipe.tokenizer.batch_items = 50;
  }
  TokenizerFile build(const Communicator& communicator) const {
    return build_tokenizer(corpus, recipe, Device::kCpu, communicator);
  }

  testing::TemporaryFolder folder;
  Corpus corpus{write_tiny_corpus(folder / "corpus", 80, kItems, 4)};
  TokenizerRecipe recipe;
  const std::unique_ptr<Communicator> world = make_mpi_communicator();
  const std::unique_ptr<Communicator> self = make_self_communicator();
};

template <typename T>
double cosine(const T* a, const T* b, int64_t n) {
  double ab = 0, aa = 0, bb = 0;
  for (int64_t i = 0; i < n; ++i) ab += a[i] * b[i], aa += a[i] * a[i], bb += b[i] * b[i];
  return ab / std::sqrt(aa * bb);
}

/// [vocab_size][13]: sums over the items of each code of the standardised features.
std::vector<std::vector<double>> feature_sums(const Corpus& corpus, const SemanticIds& ids) {
  std::vector<std::vector<double>> sums(ids.vocab_size(), std::vector<double>(13));
  int64_t column = 0;
  for (const auto& [name, dim] : std::vector<std::pair<std::string, int64_t>>{
           {corpus.feature_names()[0], corpus.feature_dim(corpus.feature_names()[0])},
           {corpus.feature_names()[1], corpus.feature_dim(corpus.feature_names()[1])}}) {
    std::vector<float> rows(kItems * dim);
    corpus.read_features(name, 0, kItems, rows.data());
    for (int64_t j = 0; j < dim; ++j, ++column) {
      double sum = 0, squares = 0;
      for (int64_t i = 0; i < kItems; ++i) sum += rows[i * dim + j];
      const double mean = sum / kItems;
      for (int64_t i = 0; i < kItems; ++i) squares += std::pow(rows[i * dim + j] - mean, 2);
      const double scale = 1 / std::sqrt(squares / kItems * static_cast<double>(dim));
      for (int64_t i = 0; i < kItems; ++i) {
        for (int64_t level = 0; level < ids.num_levels(); ++level) {
          sums[ids.token(i, level)][column] += scale * (rows[i * dim + j] - mean);
        }
      }
    }
  }
  return sums;
}

TEST_F(CodeEmbeddingTest, RowsLieAsTheMeanFeaturesOfTheirItems) {
  constexpr int64_t kHidden = 8192;  // an angle's cosine is kept within about 1 / sqrt(8192)
  const TokenizerFile tokenizer = build(*self);
  const std::vector<float> rows = code_embedding(corpus, tokenizer, recipe, kHidden, 3, *self);
  const auto sums = feature_sums(corpus, tokenizer.ids);
  ASSERT_EQ(rows.size(), (1 + 8 + kItems) * kHidden);
  const auto row = [&](int64_t token) { return rows.data() + token * kHidden; };
  for (int64_t j = 0; j < kHidden; ++j) ASSERT_EQ(row(0)[j], 0);  // the token that starts histories
  for (int64_t a = 1; a < tokenizer.ids.vocab_size(); ++a) {
    EXPECT_NEAR(std::inner_product(row(a), row(a) + kHidden, row(a), 0.0) / kHidden, 1, 1e-4);
    for (const int64_t b : {int64_t{1}, int64_t{7}, int64_t{20}, int64_t{100}}) {
      EXPECT_NEAR(cosine(row(a), row(b), kHidden), cosine(sums[a].data(), sums[b].data(), 13), 0.06)
          << a << ' ' << b;
    }
  }
}

TEST_F(CodeEmbeddingTest, DependsOnTheSeedAndNotOnTheRanks) {
  recipe.tokenizer.co_occurrence_dim = 4;
  const TokenizerFile tokenizer = build(*self);
  const std::vector<float> alone = code_embedding(corpus, tokenizer, recipe, 16, 3, *self);
  const std::vector<float> together = code_embedding(corpus, tokenizer, recipe, 16, 3, *world);
  EXPECT_EQ(together, alone);
  EXPECT_NE(code_embedding(corpus, tokenizer, recipe, 16, 4, *self), alone);
  EXPECT_NE(
      code_embedding(corpus, tokenizer, {recipe.tokenizer, {}, {.window = 1}, ""}, 16, 3, *self),
      alone);
}

TEST_F(CodeEmbeddingTest, CodesWithoutItemsHaveNoRow) {
  recipe.tokenizer.collisions = "disambiguation_code";
  const TokenizerFile tokenizer = build(*self);
  const std::vector<float> rows = code_embedding(corpus, tokenizer, recipe, 4, 3, *self);
  for (int64_t token = 1; token < tokenizer.ids.vocab_size(); ++token) {
    bool is_used = false;
    for (int64_t item = 0; item < kItems; ++item) {
      is_used |= tokenizer.ids.token(item, 0) == token || tokenizer.ids.token(item, 1) == token;
    }
    EXPECT_EQ(rows[4 * token] != 0, is_used) << token;
  }
}

TEST_F(CodeEmbeddingTest, RefusesFeaturesOfAnotherWidth) {
  TokenizerFile tokenizer = build(*self);
  tokenizer.quantizer.normalization.sources.back().dim -= 1;
  testing::expect_error(ErrorKind::kData, "the tokenizer was built from dim",
                        [&] { code_embedding(corpus, tokenizer, recipe, 16, 3, *self); });
}

TEST_F(CodeEmbeddingTest, RefusesTokenizersWithoutFeatures) {
  recipe.tokenizer.kind = "item_id";
  const TokenizerFile tokenizer = build(*self);
  try {
    code_embedding(corpus, tokenizer, recipe, 16, 3, *self);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kUsage);
    EXPECT_NE(std::string(error.what()).find("of kind item_id"), std::string::npos);
  }
}

}  // namespace
}  // namespace mirabelle
