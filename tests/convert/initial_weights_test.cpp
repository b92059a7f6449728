#include "mirabelle/convert/initial_weights.h"

#include <gtest/gtest.h>

#include "mirabelle/core/copy.h"
#include "mirabelle/tokenizer/tokenizer_file.h"
#include "mirabelle/training/checkpoint.h"
#include "support/errors.h"
#include "support/temporary_folder.h"
#include "support/tiny_model.h"

namespace mirabelle {
namespace {

using testing::expect_error;

/// A checkpoint of a model of three items with two codes each, and later tokenizers.
class InitialWeightsTest : public ::testing::Test {
 protected:
  InitialWeightsTest() : config_(testing::tiny_qwen_config()) {
    write_tokenizer("old.h5", {3, 4}, {0, 0, 1, 3, 2, 1}, {"a", "b", "c"});
    const ParameterLayout layout(config_, 512);
    weights_.resize(layout.num_elements());
    initialize_weights(view_of(weights_), layout, config_, 8, 3);
    testing::vary_vectors(weights_.data(), layout);
    const auto self = make_self_communicator();
    CheckpointWriter writer(*self, layout, {{0, layout.num_elements()}}, folder_ / "old.h5");
    copy(writer.prepare().weights, view_of(weights_), Stream());
    writer.start(folder_ / "checkpoint", {}, "");
    writer.commit();
  }
  void write_tokenizer(const std::string& name, std::vector<int64_t> sizes,
                       std::vector<int32_t> codes, std::vector<std::string> items) {
    TokenizerFile tokenizer;
    tokenizer.kind = "item_id";
    tokenizer.ids = SemanticIds(std::move(sizes), std::move(codes));
    tokenizer.item_ids = std::move(items);
    write_tokenizer_file(folder_ / name, tokenizer);
  }
  std::vector<float> read(const std::string& tokenizer, const ModelShare& share = {}) {
    const ParameterLayout layout(config_, 512, share);
    std::vector<float> values(layout.num_elements(), -9);
    read_initial_weights(view_of(values), layout, folder_ / "checkpoint", folder_ / tokenizer, 1,
                         *make_self_communicator());
    return values;
  }
  TransformerConfig config_;
  std::vector<float> weights_;
  testing::TemporaryFolder folder_;
};

TEST_F(InitialWeightsTest, OfTheSameVocabularyAreTheCheckpoints) {
  EXPECT_EQ(read("old.h5"), weights_);
}

TEST_F(InitialWeightsTest, OfAnyShareAreThatPartOfThem) {
  ModelShare share;
  share.num_shards = share.tensor_parallel_size = 2;
  share.tensor_parallel_rank = 1;
  const ParameterLayout part(config_, 512, share), whole(config_, 512);
  const std::vector<float> actual = read("old.h5", share);
  for (const LogicalPiece& piece : part.pieces()) {
    for (const LogicalPiece& in : whole.pieces()) {
      if (in.name != piece.name || in.row_begin > piece.row_begin ||
          in.row_begin + in.num_rows <= piece.row_begin) {
        continue;
      }
      const int64_t from = in.offset + (piece.row_begin - in.row_begin) * in.num_columns +
                           piece.column_begin - in.column_begin;
      EXPECT_EQ(actual[piece.offset], weights_[from]) << piece.name;
    }
  }
}

// A level that grew by one code moves the tokens behind it.
TEST_F(InitialWeightsTest, FollowATokenizerThatGrew) {
  write_tokenizer("new.h5", {4, 4}, {0, 0, 1, 3, 2, 1, 3, 3}, {"a", "b", "c", "d"});
  const std::vector<float> actual = read("new.h5");
  const int64_t hidden = config_.hidden_size;
  const auto row = [&](const std::vector<float>& values, int64_t token) {
    return std::vector(values.begin() + token * hidden, values.begin() + (token + 1) * hidden);
  };
  for (int64_t token = 0; token < 4; ++token) EXPECT_EQ(row(actual, token), row(weights_, token));
  for (int64_t token = 5; token < 9; ++token) {
    EXPECT_EQ(row(actual, token), row(weights_, token - 1)) << token;
  }
  EXPECT_EQ(row(actual, 9), std::vector<float>(hidden, 0.0F));
  const std::vector<float> drawn = row(actual, 4);
  for (int64_t column = 0; column < hidden; ++column) {
    double mean = 0;
    for (int64_t token = 0; token < 8; ++token) mean += row(weights_, token)[column] / 8;
    EXPECT_NEAR(drawn[column], mean, 0.15) << column;
  }
  const std::vector<float> others(actual.begin() + 512 * hidden, actual.end());
  EXPECT_EQ(others, std::vector(weights_.begin() + 512 * hidden, weights_.end()));
}

TEST_F(InitialWeightsTest, RefusesItemsWhoseCodesChanged) {
  write_tokenizer("new.h5", {3, 4}, {0, 0, 1, 2, 2, 1}, {"a", "b", "c"});
  expect_error(ErrorKind::kData, "item b has other codes than in", [&] { read("new.h5"); });
}

TEST_F(InitialWeightsTest, RefusesAModelOfOtherSizes) {
  config_.ffn_hidden_size = 48;
  expect_error(ErrorKind::kData, "wanted [48, 24] by the configuration", [&] { read("old.h5"); });
}

}  // namespace
}  // namespace mirabelle
