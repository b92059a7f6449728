#include "mirabelle/tokenizer/tokenizer_report.h"

#include <gtest/gtest.h>

#include <cmath>
#include <sstream>

#include "mirabelle/core/error.h"

namespace mirabelle {
namespace {

/// Codes before the disambiguation: [0,0] three times, [0,1] once, [2,1] twice.
SemanticIds six_items() {
  return SemanticIds({4, 2, 8}, {0, 0, 0, 0, 1, 0, 0, 0, 1, 2, 1, 0, 0, 0, 2, 2, 1, 1});
}

TEST(TokenizerReportTest, CountsUsageAndEntropyOfEachLevel) {
  const nlohmann::json report = tokenizer_report(six_items(), 2, {4, 1, 0.5});
  ASSERT_EQ(report["levels"].size(), 2u);
  const nlohmann::json& first = report["levels"][0];
  EXPECT_EQ(first["counts"], nlohmann::json({4, 0, 2, 0}));
  EXPECT_EQ(first["size"], 4);
  EXPECT_EQ(first["used"], 2);
  const double bits = -(2.0 / 3 * std::log2(2.0 / 3) + 1.0 / 3 * std::log2(1.0 / 3));
  EXPECT_NEAR(first["entropy_bits"].get<double>(), bits, 1e-12);
  EXPECT_NEAR(first["entropy"].get<double>(), bits / 2, 1e-12);
  EXPECT_EQ(first["relative_error"], 0.25);
  const nlohmann::json& second = report["levels"][1];
  EXPECT_EQ(second["counts"], nlohmann::json({3, 3}));
  EXPECT_DOUBLE_EQ(second["entropy_bits"].get<double>(), 1);
  EXPECT_DOUBLE_EQ(second["entropy"].get<double>(), 1);
  EXPECT_EQ(second["relative_error"], 0.125);
}

TEST(TokenizerReportTest, CountsCollisionsBeforeTheDisambiguationCode) {
  const nlohmann::json report = tokenizer_report(six_items(), 2, {});
  EXPECT_EQ(report["collisions"], nlohmann::json::parse(R"([{"items": 1, "ids": 1},
      {"items": 2, "ids": 1}, {"items": 3, "ids": 1}])"));
  EXPECT_DOUBLE_EQ(report["unique_items"].get<double>(), 1.0 / 6);
  EXPECT_DOUBLE_EQ(report["distinct_codes"].get<double>(), 0.5);
  EXPECT_EQ(report["disambiguation"]["size"], 8);
  EXPECT_EQ(report["disambiguation"]["largest"], 3);
  EXPECT_EQ(report["vocab_size"], 15);
  EXPECT_EQ(report["padded_vocab_size"], 512);
  EXPECT_FALSE(report["levels"][0].contains("relative_error"));
}

TEST(TokenizerReportTest, OfOneCodePerItemHasNoCollisions) {
  const nlohmann::json report = tokenizer_report(SemanticIds({3}, {0, 1, 2}), 1, {});
  EXPECT_EQ(report["unique_items"], 1.0);
  EXPECT_EQ(report["distinct_codes"], 1.0);
  EXPECT_FALSE(report.contains("disambiguation"));
  EXPECT_DOUBLE_EQ(report["levels"][0]["entropy"].get<double>(), 1);
}

TEST(TokenizerReportTest, LevelsOfOneCodeAndFeaturesWithoutVarianceHaveFiniteFigures) {
  const nlohmann::json report = tokenizer_report(SemanticIds({1, 8}, {0, 0, 0, 1}), 1, {0, 0});
  EXPECT_EQ(report["levels"][0]["entropy"], 1.0);
  EXPECT_EQ(report["levels"][0]["relative_error"], 0.0);
}

TEST(TokenizerReportTest, CountsAndPrintsSharedIds) {
  const SemanticIds ids({4, 2}, {0, 0, 0, 1, 0, 0, 2, 1, 0, 0, 2, 1}, {0, 0, 1, 1, 2, 0});
  nlohmann::json report = tokenizer_report(ids, 2, {});
  EXPECT_EQ(report["shared"], nlohmann::json::parse(R"({"ids": 2, "items": 5, "largest": 3})"));
  EXPECT_FALSE(report.contains("disambiguation"));
  report["moved_items"] = 1234;
  report["unique_nearest"] = 0.625;
  std::ostringstream out;
  print_tokenizer_report(report, out);
  for (const char* part : {"5 items share 2 semantic IDs, at most 3 one",
                           "16.7 % of the items have codes of their own;",
                           "1,234 items have another last code than the nearest; 62.5 % of all"}) {
    EXPECT_NE(out.str().find(part), std::string::npos) << part << " in\n" << out.str();
  }
}

TEST(TokenizerReportTest, SaysThatEveryItemHasACodeOfItsOwn) {
  nlohmann::json report = tokenizer_report(SemanticIds({2, 4}, {0, 0, 0, 1, 0, 2, 1, 3}), 1, {});
  report["collision_rule"] = "item_code";
  std::ostringstream out;
  print_tokenizer_report(report, out);
  for (const char* part : {"25.0 % of the items have codes of their own before the last level;",
                           "The last level has a code for every item."}) {
    EXPECT_NE(out.str().find(part), std::string::npos) << part << " in\n" << out.str();
  }
  EXPECT_EQ(out.str().find("disambiguation"), std::string::npos) << out.str();
}

TEST(TokenizerReportTest, PrintsHowPartnersShareCodes) {
  nlohmann::json report = tokenizer_report(six_items(), 2, {});
  add_prefix_recall(report, six_items(), 2, {{0, 0, 0, 0, 0, 0, 0}, {}, {}});
  EXPECT_FALSE(report.contains("prefix_recall")) << "without partners";
  // Of all others five fit into the list; item 0 shares both codes with item 2, nothing with 3.
  add_prefix_recall(report, six_items(), 2, {{0, 2, 2, 2, 2, 2, 2}, {2, 3}, {1, 1}});
  EXPECT_EQ(report["prefix_recall"]["recall@10"], 1.0);
  EXPECT_EQ(report["prefix_recall"]["partners_share"], nlohmann::json({0.5, 0.5}));
  EXPECT_EQ(report["prefix_recall"]["items"], 1);
  std::ostringstream out;
  print_tokenizer_report(report, out);
  for (const char* part : {"finds 100.0 % among the first 10", "46.6667 %", "26.6667 %"}) {
    EXPECT_NE(out.str().find(part), std::string::npos) << part << " in\n" << out.str();
  }
}

TEST(TokenizerReportTest, RefusesAnotherNumberOfErrors) {
  EXPECT_THROW(tokenizer_report(six_items(), 2, {1, 2}), Error);
}

TEST(TokenizerReportTest, PrintsEveryLevelAndTheShareOfUniqueItems) {
  std::ostringstream out;
  print_tokenizer_report(tokenizer_report(six_items(), 2, {4, 1, 0.5}), out);
  for (const char* part : {"6 items, 15 tokens", "0.2500", "0.1250", "16.7 % of the items",
                           "50.0 % different codes per item", "the largest group takes 3"}) {
    EXPECT_NE(out.str().find(part), std::string::npos) << part << " in\n" << out.str();
  }
}

}  // namespace
}  // namespace mirabelle
