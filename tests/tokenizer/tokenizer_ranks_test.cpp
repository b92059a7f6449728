// A whole tokenizer, made by all ranks together and by one alone: the same file.
#include <gtest/gtest.h>

#include "mirabelle/tokenizer/rq_vae.h"
#include "mirabelle/tokenizer/tokenizer_builder.h"
#include "support/temporary_folder.h"
#include "support/tiny_corpus.h"

namespace mirabelle {
namespace {

class TokenizerRanksTest : public ::testing::TestWithParam<const char*> {};

TEST_P(TokenizerRanksTest, BuildTheSameTokenizer) {
  const auto world = make_mpi_communicator();
  const auto self = make_self_communicator();
  // Each rank has the corpus to itself: it is a pure function of its arguments.
  const testing::TemporaryFolder folder;
  const Corpus corpus(write_tiny_corpus(folder / "corpus", 150, 300, 4));
  TokenizerRecipe recipe;
  recipe.tokenizer.kind = GetParam();
  recipe.tokenizer.levels = {16, 8};
  recipe.tokenizer.co_occurrence_dim = 4;
  recipe.tokenizer.collisions = "nearest_free";
  recipe.tokenizer.batch_items = 50;
  recipe.rq_vae.hidden_sizes = {12};
  recipe.rq_vae.source_size = 6;
  recipe.rq_vae.codebook_dim = 5;
  recipe.rq_vae.steps = 30;
  recipe.rq_vae.batch_items = 64;
  recipe.rq_vae.contrastive_weight = 0.2;
  const TokenizerFile together = build_tokenizer(corpus, recipe, Device::kCpu, *world);
  const TokenizerFile alone = build_tokenizer(corpus, recipe, Device::kCpu, *self);

  int64_t differences = 0;  // all ranks reach the verdict together
  for (int64_t item = 0; item < 300; ++item) {
    differences += !std::ranges::equal(together.ids.codes(item), alone.ids.codes(item));
  }
  for (size_t level = 0; level < alone.quantizer.codebooks.size(); ++level) {
    differences +=
        together.quantizer.codebooks[level].rows != alone.quantizer.codebooks[level].rows;
  }
  differences +=
      together.quantizer.normalization.deviations != alone.quantizer.normalization.deviations;
  differences += together.report != alone.report;
  if (alone.quantizer.rq_vae) {
    const TensorView &a = together.quantizer.rq_vae->weights(),
                     &b = alone.quantizer.rq_vae->weights();
    differences +=
        !std::equal(a.as<float>(), a.as<float>() + a.shape.num_elements(), b.as<float>());
  }
  world->all_reduce(view_of(&differences, {1}), ReduceOp::kSum, Stream());
  EXPECT_EQ(differences, 0);
}

INSTANTIATE_TEST_SUITE_P(Kinds, TokenizerRanksTest, ::testing::Values("residual_kmeans", "rq_vae"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace mirabelle
