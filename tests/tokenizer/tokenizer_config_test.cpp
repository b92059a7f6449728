#include "mirabelle/tokenizer/tokenizer_config.h"

#include <gtest/gtest.h>

#include <functional>

#include "mirabelle/core/error.h"

namespace mirabelle {
namespace {

TEST(TokenizerConfigTest, DefaultsAreValid) { EXPECT_NO_THROW(TokenizerConfig().check()); }

TEST(TokenizerConfigTest, MultiResolutionLevelsTakeThePlaceOfTheLevels) {
  TokenizerConfig config;
  config.levels = {7, 5};
  EXPECT_EQ(config.level_sizes(), (std::vector<int64_t>{7, 5}));
  config.multi_resolution_levels = 1;
  EXPECT_EQ(config.level_sizes(), (std::vector<int64_t>{2048}));
  config.multi_resolution_levels = 13;
  EXPECT_EQ(config.level_sizes(),
            (std::vector<int64_t>{2048, 1024, 512, 256, 128, 64, 32, 16, 8, 4, 2, 1, 1}));
}

TEST(TokenizerConfigTest, CollisionRulesAreKnownByName) {
  for (const char* rule :
       {"disambiguation_code", "nearest_free", "balanced", "shared", "item_code"}) {
    TokenizerConfig config;
    config.collisions = rule;
    EXPECT_NO_THROW(config.check()) << rule;
  }
}

TEST(TokenizerConfigTest, EveryBadValueIsRefusedByTheNameOfItsField) {
  struct BadValue {
    const char* field;
    std::function<void(TokenizerConfig&)> set;
  };
  const BadValue kBadValues[] = {
      {"tokenizer.file", [](auto& config) { config.file = ""; }},
      {"tokenizer.kind", [](auto& config) { config.kind = "opq"; }},
      {"tokenizer.co_occurrence_dim", [](auto& config) { config.co_occurrence_dim = -1; }},
      {"tokenizer.co_occurrence_weight", [](auto& config) { config.co_occurrence_weight = 0; }},
      {"tokenizer.levels", [](auto& config) { config.levels = {}; }},
      {"tokenizer.levels",
       [](auto& config) {
         config.levels = {256, 0};
       }},
      {"tokenizer.levels", [](auto& config) { config.levels = {1 << 25}; }},
      {"tokenizer.features",
       [](auto& config) {
         config.features = {"a", "b", "a"};
       }},
      {"tokenizer.feature_weights",
       [](auto& config) {
         config.features = {"a", "b"};
         config.feature_weights = {1};
       }},
      {"tokenizer.feature_weights",
       [](auto& config) {
         config.feature_weights = {1, 0};
       }},
      {"tokenizer.standardize", [](auto& config) { config.standardize = "no"; }},
      {"tokenizer.iterations", [](auto& config) { config.iterations = 0; }},
      {"tokenizer.tolerance", [](auto& config) { config.tolerance = 1; }},
      {"tokenizer.initialization", [](auto& config) { config.initialization = "zeros"; }},
      {"tokenizer.initialization_sample", [](auto& config) { config.initialization_sample = 0; }},
      {"tokenizer.collisions", [](auto& config) { config.collisions = "ignore"; }},
      {"tokenizer.balance_temperature", [](auto& config) { config.balance_temperature = 0; }},
      {"tokenizer.multi_resolution_levels",
       [](auto& config) { config.multi_resolution_levels = -1; }},
      {"tokenizer.batch_items", [](auto& config) { config.batch_items = 0; }},
  };
  for (const BadValue& bad : kBadValues) {
    TokenizerConfig config;
    bad.set(config);
    try {
      config.check();
      ADD_FAILURE() << bad.field << " was not refused";
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kUsage);
      EXPECT_EQ(std::string(error.what()).rfind(bad.field, 0), 0u) << error.what();
    }
  }
}

}  // namespace
}  // namespace mirabelle
