#include "mirabelle/evaluation/html_report.h"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>

#include "mirabelle/core/files.h"
#include "mirabelle/evaluation/svg_plot.h"
#include "support/tiny_corpus.h"

namespace mirabelle {
namespace {

using nlohmann::json;

int64_t occurrences(const std::string& text, const std::string& part) {
  int64_t count = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++count;
  return count;
}

ReportInput small_input() {
  ReportInput input;
  input.result = {{"dataset", "a <b> & \"c\""},   {"split", "test"},
                  {"recall@10", 0.0612},          {"ndcg@10", 0.0334},
                  {"markov_recall@10", 0.067},    {"popularity_recall@10", 0.012},
                  {"ceiling_recall@10", 0.3},     {"intervals", {{"recall@10", {0.058, 0.0645}}}},
                  {"split_hash", "0123456789ab"}, {"beam_size", 50}};
  for (int step = 20; step <= 2000; step += 20) {
    input.metrics.push_back({{"step", step}, {"loss", 3 + 100.0 / step}});
  }
  input.metrics.push_back(
      {{"step", 1000}, {"validation", {{"recall@10", 0.05}, {"ndcg@10", 0.03}}}});
  input.tokenizer = {{"levels", json::array()},
                     {"unique_items", 0.84},
                     {"disambiguation", {{"size", 20}, {"largest", 17}}}};
  for (int level = 0; level < 3; ++level) {
    input.tokenizer["levels"].push_back(
        {{"size", 4}, {"used", 3}, {"entropy", 0.75}, {"counts", {5, 0, 9, 2}}});
  }
  ReportUser user{.id = "u<1>", .history = {}, .recommendations = {}, .targets = {}};
  user.history = {{"Soap & Water", 0, false}};
  user.recommendations = {{"<script>alert(1)</script>", -1.5, false}, {"Brush", -2.25, true}};
  user.targets = {{"Brush", 0, false}};
  input.users = {user};
  return input;
}

TEST(HtmlReportTest, ShowsEveryPart) {
  const std::string page = html_report(small_input());
  for (const char* part :
       {"Training loss", "Validation during training", "Level 1: 3 of 4 codes used", "Level 3",
        "0.0612", "[0.0580, 0.0645]", "ceiling", "Markov", "popularity", "0123456789ab",
        "84.0 % of the items", "Example users", "-2.25"}) {
    EXPECT_NE(page.find(part), std::string::npos) << part;
  }
  EXPECT_EQ(occurrences(page, "<svg"), 2 + 3 + 2);  // curves, levels, bars
  EXPECT_EQ(occurrences(page, "<svg"), occurrences(page, "</svg>"));
  EXPECT_EQ(occurrences(page, "<li class='hit'>"), 1);
}

TEST(HtmlReportTest, EscapesWhateverComesFromData) {
  const std::string page = html_report(small_input());
  EXPECT_EQ(page.find("<script"), std::string::npos);
  EXPECT_NE(page.find("&lt;script&gt;alert(1)&lt;/script&gt;"), std::string::npos);
  EXPECT_NE(page.find("a &lt;b&gt; &amp; &quot;c&quot;"), std::string::npos);
  EXPECT_NE(page.find("User u&lt;1&gt;"), std::string::npos);
  EXPECT_NE(page.find("Soap &amp; Water"), std::string::npos);
}

TEST(HtmlReportTest, LoadsNothingFromElsewhere) {
  const std::string page = html_report(small_input());
  for (const char* part : {"src=", "href=", "url(", "@import", "https://"}) {
    EXPECT_EQ(page.find(part), std::string::npos) << part;
  }
}

TEST(HtmlReportTest, LeavesOutWhatIsNotKnown) {
  const std::string page = html_report({});
  for (const char* part : {"<svg", "Training", "Example users", "Semantic IDs", "nan"}) {
    EXPECT_EQ(page.find(part), std::string::npos) << part;
  }
  EXPECT_NE(page.find("</html>"), std::string::npos);
}

TEST(HtmlReportTest, ReadsMetricsUpToALineThatWasCutOff) {
  const auto path = std::filesystem::temp_directory_path() / "mirabelle_metrics.jsonl";
  write_text_file(path, "{\"step\": 1, \"loss\": 2.5}\n{\"step\": 2}\n{\"step\": 3, \"lo");
  const std::vector<json> lines = read_metrics(path);
  std::filesystem::remove(path);
  ASSERT_EQ(lines.size(), 2u);
  EXPECT_EQ(lines[0]["loss"], 2.5);
  EXPECT_TRUE(read_metrics(path).empty());
}

TEST(HtmlReportTest, ExampleUsersShowHistoryTargetAndHits) {
  const auto folder = std::filesystem::temp_directory_path() / "mirabelle_report_corpus";
  std::filesystem::remove_all(folder);
  const Corpus corpus(write_tiny_corpus(folder, 60, 30, 5));
  // Recommends item 0, 1, 2, ... except what is excluded.
  const Recommender recommend = [](std::span<const RecommendationQuery> queries) {
    RankedLists lists;
    for (const RecommendationQuery& query : queries) {
      for (int32_t item = 0; item < 30; ++item) {
        if (std::binary_search(query.excluded.begin(), query.excluded.end(), item)) continue;
        lists.items.push_back(item);
        lists.scores.push_back(-item);
      }
      lists.offsets.push_back(static_cast<int64_t>(lists.items.size()));
    }
    return lists;
  };
  const auto users = example_users(corpus, Split::kTest, recommend, false, 5, 4, 30, 1);
  std::filesystem::remove_all(folder);
  ASSERT_EQ(users.size(), 5u);
  for (const ReportUser& user : users) {
    EXPECT_LE(user.history.size(), 4u);
    ASSERT_EQ(user.targets.size(), 1u);
    ASSERT_EQ(user.recommendations.size(), 30u);
    EXPECT_EQ(user.recommendations[0].title, "Item 1");
    int64_t hits = 0;
    for (const auto& item : user.recommendations) {
      hits += item.is_target;
      EXPECT_EQ(item.is_target, item.title == user.targets[0].title);
    }
    EXPECT_EQ(hits, 1);
  }
}

TEST(SvgPlotTest, TicksAreRoundAndWithinTheRange) {
  EXPECT_EQ(nice_ticks(0, 10, 5), (std::vector<double>{0, 2, 4, 6, 8, 10}));
  EXPECT_EQ(nice_ticks(3, 3, 5), (std::vector<double>{3}));
  const std::vector<double> ticks = nice_ticks(0.013, 0.0671, 5);
  ASSERT_GE(ticks.size(), 4u);
  EXPECT_NEAR(ticks.front(), 0.02, 1e-12);
  EXPECT_NEAR(ticks.back(), 0.06, 1e-12);
}

TEST(SvgPlotTest, PutsPointsWhereTheirValuesAre) {
  // y from zero to 10.6: the bottom stands for 0, so half of the points' heights are equal steps.
  const std::string svg =
      svg_plot({.title = "t",
                .x_label = "x",
                .y_label = "y",
                .series = {{.name = "s", .color = "red", .points = {{0, 0}, {1, 5}, {2, 10}}}},
                .width = 458,
                .height = 300});
  // left 58, 386 wide; top 50, 206 high
  EXPECT_NE(svg.find("M58.0 256.0L251.0 158.8L444.0 61.7"), std::string::npos) << svg;
}

TEST(SvgPlotTest, LeavesOutPointsThatAreNotFinite) {
  const std::string svg =
      svg_plot({.title = "t",
                .x_label = "",
                .y_label = "",
                .series = {{.name = "", .color = "red", .points = {{0, 1}, {1, NAN}, {2, 3}}}}});
  EXPECT_EQ(svg.find("nan"), std::string::npos);
  EXPECT_EQ(svg.find("inf"), std::string::npos);
}

TEST(SvgPlotTest, ThinsLongSeries) {
  PlotSeries series{.name = "", .color = "red", .points = {}};
  for (int i = 0; i < 100000; ++i) series.points.emplace_back(i, i % 7);
  const std::string svg = svg_plot({.title = "", .x_label = "", .y_label = "", .series = {series}});
  EXPECT_LT(svg.size(), 20000u);
}

TEST(SvgPlotTest, ReplacesBytesThatAreNoUtf8) {
  EXPECT_EQ(escape_html("caf\xC3\xA9"), "caf\xC3\xA9");
  EXPECT_EQ(escape_html("caf\xE9!"), "caf\xEF\xBF\xBD!");
  EXPECT_EQ(escape_html("\xF0\x9F"), "\xEF\xBF\xBD\xEF\xBF\xBD");
}

}  // namespace
}  // namespace mirabelle
