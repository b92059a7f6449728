#include "mirabelle/tokenizer/tokenizer_file.h"

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <functional>

#include "mirabelle/core/buffer.h"
#include "mirabelle/core/error.h"
#include "mirabelle/core/hdf5_file.h"
#include "mirabelle/tokenizer/rq_vae.h"

namespace mirabelle {
namespace {

class TokenizerFileTest : public ::testing::Test {
 protected:
  TokenizerFileTest() {
    const auto* info = ::testing::UnitTest::GetInstance()->current_test_info();
    path_ = std::filesystem::path(::testing::TempDir()) / (std::string(info->name()) + ".h5");
  }
  ~TokenizerFileTest() override { std::filesystem::remove(path_); }

  static TokenizerFile example() {
    TokenizerFile tokenizer;
    tokenizer.kind = "residual_kmeans";
    tokenizer.dataset = "tiny";
    tokenizer.split_hash = "abc";
    tokenizer.config = "tokenizer:\n  levels: [2, 3]\n";
    tokenizer.report = "{}";
    tokenizer.ids = SemanticIds({2, 3, 8}, {0, 0, 0, 1, 2, 0, 1, 2, 1});
    tokenizer.item_ids = {"17", "B000Y", "\xC3\xA9"};
    tokenizer.quantizer.normalization = {
        {{"title", 2, 1.0}, {"image", 1, 0.5}}, {0.1, 0.2, 0.3}, {1, 0, 2}};
    tokenizer.quantizer.codebooks = {{2, 3, {1, 2, 3, 4, 5, 6}},
                                     {3, 3, {7, 8, 9, 0, 1, 2, 3, 4, 5}}};
    return tokenizer;
  }

  /// With an RQ-VAE of 4 latent columns in the place of the features.
  static TokenizerFile rq_vae_example() {
    TokenizerFile tokenizer = example();
    tokenizer.kind = "rq_vae";
    RqVaeConfig config;
    config.hidden_sizes = {6, 5};
    config.source_size = 3;
    config.codebook_dim = 4;
    config.contrastive_weight = 0.5;
    config.contrastive_size = 7;
    const auto model = std::make_shared<RqVae>(tokenizer.quantizer.normalization.sources,
                                               std::vector<int64_t>{2, 3}, config, Device::kCpu);
    model->initialize(9);
    tokenizer.quantizer.codebooks = codebooks_of(*model);
    tokenizer.quantizer.rq_vae = model;
    return tokenizer;
  }

  /// Writes a valid file but for one dataset.
  void write_with(const std::string& replaced, const std::function<void(Hdf5File&)>& write,
                  const TokenizerFile& tokenizer = example()) {
    write_tokenizer_file(path_, tokenizer);
    const std::filesystem::path whole = path_.string() + ".whole";
    std::filesystem::rename(path_, whole);
    const Hdf5File source = Hdf5File::open(whole);
    Hdf5File copy = Hdf5File::create(path_);
    copy_group(source, copy, "", replaced);
    if (write) write(copy);
    copy.close();
    std::filesystem::remove(whole);
  }

  void expect_refused(const std::string& part) {
    try {
      read_tokenizer_file(path_);
      ADD_FAILURE() << "read the file";
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kData);
      EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
      EXPECT_NE(std::string(error.what()).find(path_.string()), std::string::npos) << error.what();
    }
  }

  std::filesystem::path path_;

 private:
  static void copy_group(const Hdf5File& source, Hdf5File& copy, const std::string& group,
                         const std::string& left_out) {
    for (const std::string& name : source.names(group.empty() ? "/" : group)) {
      const std::string path = group.empty() ? name : group + "/" + name;
      if (path == left_out) continue;
      if (name == "table" || name == "vocabulary" || name == "features" || name == "codebooks" ||
          name == "rq_vae") {
        copy_group(source, copy, path, left_out);
      } else {
        Buffer values(source.shape(path), source.dtype(path));
        source.read_rows(path, 0, values.view());
        copy.write(path, values.view());
      }
    }
  }
};

template <typename T>
auto writes(const std::string& name, const std::vector<T>& values, const Shape& shape) {
  return [=](Hdf5File& file) { file.write(name, view_of(values.data(), shape)); };
}

TEST_F(TokenizerFileTest, ReadsBackWhatWasWritten) {
  const TokenizerFile written = example();
  write_tokenizer_file(path_, written);
  const TokenizerFile read = read_tokenizer_file(path_);
  EXPECT_EQ(read.kind, written.kind);
  EXPECT_EQ(read.dataset, written.dataset);
  EXPECT_EQ(read.split_hash, written.split_hash);
  EXPECT_EQ(read.config, written.config);
  EXPECT_EQ(read.report, written.report);
  EXPECT_EQ(read.item_ids, written.item_ids);
  ASSERT_EQ(read.ids.num_items(), 3);
  ASSERT_EQ(read.ids.num_levels(), 3);
  for (int64_t item = 0; item < 3; ++item) {
    for (int64_t level = 0; level < 3; ++level) {
      EXPECT_EQ(read.ids.token(item, level), written.ids.token(item, level));
    }
  }
  const FeatureNormalization& normalization = read.quantizer.normalization;
  ASSERT_EQ(normalization.sources.size(), 2u);
  EXPECT_EQ(normalization.sources[1].name, "image");
  EXPECT_EQ(normalization.sources[1].dim, 1);
  EXPECT_EQ(normalization.sources[1].weight, 0.5);
  EXPECT_EQ(normalization.means, written.quantizer.normalization.means);
  EXPECT_EQ(normalization.deviations, written.quantizer.normalization.deviations);
  ASSERT_EQ(read.quantizer.num_levels(), 2);
  EXPECT_EQ(read.quantizer.codebooks[0].rows, written.quantizer.codebooks[0].rows);
  EXPECT_EQ(read.quantizer.codebooks[1].size, 3);
  EXPECT_EQ(read.quantizer.codebooks[1].rows, written.quantizer.codebooks[1].rows);
}

TEST_F(TokenizerFileTest, SemanticIdsReadOnlyTheTable) {
  write_tokenizer_file(path_, example());
  const SemanticIds ids = SemanticIds::read(path_);
  EXPECT_EQ(ids.num_items(), 3);
  EXPECT_EQ(ids.level_size(2), 8);
  EXPECT_EQ(ids.codes(2)[1], 2);
}

TEST_F(TokenizerFileTest, OfKindItemIdHasNoFeatures) {
  TokenizerFile tokenizer = example();
  tokenizer.kind = "item_id";
  tokenizer.ids = SemanticIds({3}, {0, 1, 2});
  tokenizer.quantizer = {};
  write_tokenizer_file(path_, tokenizer);
  EXPECT_FALSE(Hdf5File::open(path_).contains("features/names_bytes"));
  EXPECT_EQ(read_tokenizer_file(path_).ids.level_size(0), 3);
}

TEST_F(TokenizerFileTest, KeepsTheTextTokensBeforeTheSemanticIds) {
  TokenizerFile tokenizer = example();
  tokenizer.ids = tokenizer.ids.after_text(300);
  write_tokenizer_file(path_, tokenizer);
  EXPECT_EQ(read_tokenizer_file(path_).ids.token_ranges()[1].begin, 300);
  EXPECT_EQ(read_semantic_ids(path_).token(1, 2), 300 + 1 + 2 + 3 + 0);

  tokenizer = {};
  tokenizer.kind = "text";
  tokenizer.ids = SemanticIds().after_text(700);
  write_tokenizer_file(path_, tokenizer);
  const SemanticIds ids = read_tokenizer_file(path_).ids;
  EXPECT_EQ(ids.num_items(), 0);
  EXPECT_EQ(ids.num_levels(), 0);
  EXPECT_EQ(ids.vocab_size(), 700);
}

TEST_F(TokenizerFileTest, StoresTheVocabularyAsATable) {
  write_tokenizer_file(path_, example());
  const Hdf5File file = Hdf5File::open(path_);
  EXPECT_EQ(file.read_strings("vocabulary/names"),
            (std::vector<std::string>{"special", "level_0", "level_1", "level_2", "padding"}));
  EXPECT_EQ(file.read<int64_t>("vocabulary/begin"), (std::vector<int64_t>{0, 1, 3, 6, 14}));
  EXPECT_EQ(file.read<int64_t>("vocabulary/size"), (std::vector<int64_t>{1, 2, 3, 8, 498}));
}

TEST_F(TokenizerFileTest, RefusesAMissingFile) { expect_refused("no such file"); }

TEST_F(TokenizerFileTest, RefusesAFileOfAnotherFormat) {
  std::ofstream(path_) << "not HDF5 at all";
  expect_refused("not a readable HDF5 file");
}

TEST_F(TokenizerFileTest, RefusesATruncatedFile) {
  write_tokenizer_file(path_, example());
  std::filesystem::resize_file(path_, std::filesystem::file_size(path_) / 2);
  expect_refused("truncated");
}

TEST_F(TokenizerFileTest, RefusesAnotherMagic) {
  write_with("magic", [](Hdf5File& file) { file.write_text("magic", "something else"); });
  expect_refused("not a tokenizer's file");
  write_with("magic", nullptr);
  expect_refused("not a tokenizer's file");
}

TEST_F(TokenizerFileTest, RefusesAnotherSchemaVersion) {
  write_with("schema_version", writes<int64_t>("schema_version", {3}, {1}));
  expect_refused("schema version 3, this program reads 1 to 2");
  write_with("schema_version", writes<int64_t>("schema_version", {0}, {1}));
  expect_refused("schema version 0, this program reads 1 to 2");
}

TEST_F(TokenizerFileTest, ReadsVersionOneWithoutPriorities) {
  write_with("table/priority",
             [](Hdf5File& file) { file.write_text("unknown datasets", "are not read"); });
  expect_refused("table/priority: missing");
  write_with("schema_version", writes<int64_t>("schema_version", {1}, {1}));
  EXPECT_EQ(read_tokenizer_file(path_).collisions, "disambiguation_code");
  EXPECT_EQ(read_tokenizer_file(path_).ids.priority(2), 0);
}

TEST_F(TokenizerFileTest, ReadsSharedIdsBackInTheirOrder) {
  TokenizerFile tokenizer = example();
  tokenizer.collisions = "shared";
  tokenizer.ids = SemanticIds({2, 3}, {1, 2, 0, 0, 1, 2}, {1, 0, 0});
  write_tokenizer_file(path_, tokenizer);
  EXPECT_EQ(read_tokenizer_file(path_).collisions, "shared");
  for (const SemanticIds& ids : {read_tokenizer_file(path_).ids, SemanticIds::read(path_)}) {
    EXPECT_EQ(ids.items_by_id(), (std::vector<int32_t>{1, 2, 0}));
  }
}

TEST_F(TokenizerFileTest, RefusesCollisionsAndPrioritiesThatCannotBe) {
  write_with("collisions", [](Hdf5File& file) { file.write_text("collisions", "ignored"); });
  expect_refused("the unknown rule \"ignored\" for collisions");
  write_with("table/priority", writes<int32_t>("table/priority", {0, 0}, {2}));
  expect_refused("table/priority has 2 elements, wanted one for each of 3 items");
  write_with("table/priority", writes<int32_t>("table/priority", {0, 0, 1}, {3}));
  expect_refused("item 2 has priority 1 among the 1 items of the semantic ID [1, 2, 1]");
}

TEST_F(TokenizerFileTest, RefusesAnUnknownKind) {
  write_with("kind", [](Hdf5File& file) { file.write_text("kind", "opq"); });
  expect_refused("a tokenizer of kind \"opq\"");
}

TEST_F(TokenizerFileTest, RefusesAMissingDataset) {
  write_with("features/means", nullptr);
  expect_refused("features/means: missing");
}

TEST_F(TokenizerFileTest, RefusesCodesOfAnotherWidth) {
  write_with("table/codes", writes<int32_t>("table/codes", {0, 0, 1, 2}, {2, 2}));
  expect_refused("table/codes has shape [2, 2], wanted [num_items, 3]");
}

TEST_F(TokenizerFileTest, RefusesSharedSemanticIdsAndCodesOutOfRange) {
  write_with("table/codes", writes<int32_t>("table/codes", {0, 0, 0, 1, 2, 0, 1, 2, 0}, {3, 3}));
  expect_refused("item 2 has priority 0 among the 2 items of the semantic ID [1, 2, 0]");
  write_with("table/codes", writes<int32_t>("table/codes", {0, 0, 0, 1, 2, 0, 1, 3, 1}, {3, 3}));
  expect_refused("item 2 has code 3 at level 1");
}

TEST_F(TokenizerFileTest, RefusesAVocabularyThatDoesNotFollowFromTheLevels) {
  write_with("vocabulary/begin", writes<int64_t>("vocabulary/begin", {0, 1, 3, 7, 14}, {5}));
  expect_refused("the vocabulary's ranges do not follow");
}

TEST_F(TokenizerFileTest, RefusesAnotherNumberOfItemIds) {
  write_with("table/item_ids_offsets", writes<int64_t>("table/item_ids_offsets", {0, 2, 9}, {3}));
  expect_refused("2 item IDs for 3 rows of codes");
}

TEST_F(TokenizerFileTest, RefusesSourcesThatDoNotMatch) {
  write_with("features/weights", writes<double>("features/weights", {1}, {1}));
  expect_refused("2 feature names, 2 dims and 1 weights");
  write_with("features/dims", writes<int64_t>("features/dims", {2, 0}, {2}));
  expect_refused("feature source image has dim 0");
  const int64_t large = INT64_MAX;
  write_with("features/dims", writes<int64_t>("features/dims", {2, large}, {2}));
  expect_refused("feature source image has dim 9223372036854775807, wanted 1 to 16777216");
  for (const double weight : {0.0, -1.0, static_cast<double>(NAN)}) {
    write_with("features/weights", writes<double>("features/weights", {1, weight}, {2}));
    expect_refused("feature source image has weight");
  }
  write_with("features/means", writes<double>("features/means", {0, 0}, {2}));
  expect_refused("2 means and 3 deviations, wanted 3 of each");
  write_with("features/deviations", writes<double>("features/deviations", {1, NAN, 1}, {3}));
  expect_refused("features/deviations holds nan at 1");
}

TEST_F(TokenizerFileTest, RefusesCodebooksThatDoNotMatch) {
  write_with("codebooks/level_1", nullptr);
  expect_refused("1 codebooks for 3 levels");
  write_with("codebooks/level_1", writes<float>("codebooks/level_1", {1, 2}, {1, 2}));
  expect_refused("codebooks/level_1 has shape [1, 2]");
  write_with("codebooks/level_0",
             writes<float>("codebooks/level_0", std::vector<float>(9), {3, 3}));
  expect_refused("codebooks/level_0 has shape [3, 3]");
  write_with("codebooks/level_1", writes<float>("codebooks/level_1", {1, 2, INFINITY}, {1, 3}));
  expect_refused("codebooks/level_1 holds inf at 2");
  write_with("codebooks/level_1", writes<float>("codebooks/level_1", {1, 2, 3, 4, 5, 6}, {2, 3}));
  expect_refused("item 1 has code 2 at level 1, whose codebook has 2 rows");
}

TEST_F(TokenizerFileTest, RefusesALevelWhoseSizeOverflows) {
  const int64_t large = std::numeric_limits<int64_t>::max();
  write_with("table/level_sizes", writes<int64_t>("table/level_sizes", {2, 3, large}, {3}));
  expect_refused("level 2 of the semantic IDs has size 9223372036854775807");
}

TEST_F(TokenizerFileTest, ReadsItemIdsAlone) {
  write_tokenizer_file(path_, example());
  EXPECT_EQ(read_item_ids(path_), example().item_ids);
}

TEST_F(TokenizerFileTest, LeavesTheFormerFileWhenItCannotWrite) {
  write_tokenizer_file(path_, example());
  TokenizerFile bad = example();
  bad.item_ids.pop_back();
  EXPECT_THROW(write_tokenizer_file(path_, bad), Error);
  EXPECT_EQ(read_tokenizer_file(path_).item_ids.size(), 3u);
}

TEST_F(TokenizerFileTest, ReadsTheRqVaeThatWasWritten) {
  const TokenizerFile written = rq_vae_example();
  write_tokenizer_file(path_, written);
  const TokenizerFile read = read_tokenizer_file(path_);
  EXPECT_EQ(read.kind, "rq_vae");
  ASSERT_TRUE(read.quantizer.rq_vae);
  const RqVae &model = *read.quantizer.rq_vae, &original = *written.quantizer.rq_vae;
  EXPECT_EQ(model.config().hidden_sizes, (std::vector<int64_t>{6, 5}));
  ASSERT_EQ(model.layout().num_elements(), original.layout().num_elements());
  for (int64_t i = 0; i < model.layout().num_elements(); ++i) {
    ASSERT_EQ(model.weights().as<float>()[i], original.weights().as<float>()[i]) << i;
  }
  EXPECT_EQ(read.quantizer.codebooks[1].rows, written.quantizer.codebooks[1].rows);
}

TEST_F(TokenizerFileTest, RefusesAnRqVaeThatDoesNotFit) {
  const TokenizerFile example = rq_vae_example();
  write_with("rq_vae/encoders.0.0.weight", nullptr, example);
  expect_refused("wanted a dataset rq_vae/encoders.0.0.weight of shape [6, 2]");
  const std::vector<float> nan(12, std::nanf(""));
  write_with(
      "rq_vae/encoders.0.0.weight",
      [&](Hdf5File& file) {
        file.write("rq_vae/encoders.0.0.weight", view_of(nan.data(), {6, 2}));
      },
      example);
  expect_refused("rq_vae/encoders.0.0.weight holds nan at 0");
  const auto with_sizes = [&](const std::vector<int64_t>& sizes) {
    write_with(
        "rq_vae/sizes",
        [&](Hdf5File& file) {
          file.write("rq_vae/sizes", view_of(sizes.data(), {static_cast<int64_t>(sizes.size())}));
        },
        example);
  };
  with_sizes({3, 4});
  expect_refused("rq_vae/sizes has 2 elements, wanted 3");
  with_sizes({3, -4, 7});
  expect_refused("the sizes of the RQ-VAE must be 1 to");
  with_sizes({int64_t{1} << 40, 4, 7});
  expect_refused("the sizes of the RQ-VAE must be 1 to");
  with_sizes({1 << 24, 4, 7});  // refused before anything of that size is allocated
  expect_refused("wanted a dataset rq_vae/encoders.0.2.weight of shape");
}

}  // namespace
}  // namespace mirabelle
