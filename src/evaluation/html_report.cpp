#include "mirabelle/evaluation/html_report.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <sstream>

#include "mirabelle/core/progress.h"
#include "mirabelle/core/table.h"
#include "mirabelle/evaluation/metrics.h"
#include "mirabelle/evaluation/svg_plot.h"
#include "mirabelle/evaluation/user_histories.h"

namespace mirabelle {
namespace {

using nlohmann::json;

constexpr const char* kBlue = "#2a6fb0";
constexpr const char* kOrange = "#d9822b";
constexpr const char* kGreen = "#3b8f5a";
constexpr const char* kGrey = "#9aa5b1";

constexpr const char* kStyle = R"(
body { font: 15px/1.5 system-ui, "Segoe UI", "Helvetica Neue", Arial, sans-serif; color: #1f2933;
  background: #f5f7fa; margin: 0; }
main { max-width: 1010px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 26px; margin: 0; } h2 { font-size: 19px; margin: 34px 0 10px; }
.subtitle { color: #616e7c; margin: 2px 0 0; }
.panel { background: #fff; border: 1px solid #e4e7eb; border-radius: 8px; padding: 16px 18px; }
.row { display: flex; flex-wrap: wrap; gap: 18px; } .row > .panel { flex: 1 1 440px; }
.thirds > .panel { flex: 1 1 270px; padding: 12px; }
table { border-collapse: collapse; width: 100%; } th, td { padding: 5px 10px; text-align: right; }
th { font-weight: 600; color: #52606d; border-bottom: 2px solid #e4e7eb; }
td { border-bottom: 1px solid #edf0f3; } th:first-child, td:first-child { text-align: left; }
td small { color: #7b8794; white-space: nowrap; } tr.best td { font-weight: 600; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 3px 18px; margin: 0; }
dt { color: #616e7c; } dd { margin: 0; overflow-wrap: anywhere; }
.user { margin-bottom: 16px; } .user h3 { margin: 0 0 8px; font-size: 15px; }
.columns { display: grid; grid-template-columns: 1fr 1fr; gap: 26px; }
.columns h4 { margin: 0 0 4px; font-size: 13px; color: #616e7c; font-weight: 600; }
ol, ul { margin: 0; padding-left: 26px; } li { overflow-wrap: anywhere; }
li.hit { background: #e3f4e8; border-radius: 4px; font-weight: 600; }
.score { color: #7b8794; font-weight: 400; font-size: 13px; white-space: nowrap; }
.target { margin-top: 10px; } svg { max-width: 100%; height: auto; display: block; }
svg text { font-family: system-ui, "Segoe UI", "Helvetica Neue", Arial, sans-serif; fill: #1f2933; }
svg .title { font-size: 14px; font-weight: 600; } svg .label { font-size: 12px; fill: #52606d; }
svg .tick { font-size: 11px; fill: #616e7c; } svg .value { font-size: 12px; font-weight: 600; }
svg .grid { stroke: #e9edf1; } svg .axis { stroke: #7b8794; }
svg .interval { stroke: #1f2933; stroke-width: 1.4; fill: none; }
@media (max-width: 700px) { .columns { grid-template-columns: 1fr; } }
)";

std::string panel(const std::string& content) {
  return "<div class='panel'>" + content + "</div>\n";
}

/// result[key] as text, as it is for people.
std::string text_of(const json& result, const std::string& key) {
  if (!result.contains(key)) return "";
  const json& value = result[key];
  if (value.is_string()) return value.get<std::string>();
  if (value.is_boolean()) return value.get<bool>() ? "yes" : "no";
  if (value.is_number_integer()) return format_count(value.get<int64_t>());
  if (value.is_number()) return format_number(value.get<double>(), 1);
  return value.dump();
}

/// The values of metrics lines by step: `name` at the top, or within `group`.
std::vector<std::pair<double, double>> curve(const std::vector<json>& metrics,
                                             const std::string& group, const std::string& name) {
  std::vector<std::pair<double, double>> points;
  for (const json& line : metrics) {
    const json& values = group.empty() ? line : line.value(group, json::object());
    const json step = line.value("step", json());
    if (!step.is_number() || !values.contains(name) || !values[name].is_number()) continue;
    points.emplace_back(step.get<double>(), values[name].get<double>());
  }
  return points;
}

/// Exponential mean over about the last 4 % of the points, corrected for its start.
std::vector<std::pair<double, double>> smoothed(std::vector<std::pair<double, double>> points) {
  const double keep = 1 - 1 / std::max(1.0, 0.04 * static_cast<double>(points.size()));
  double sum = 0, weight = 0;
  for (auto& [step, value] : points) {
    if (!std::isfinite(value)) continue;
    sum = keep * sum + value;
    weight = keep * weight + 1;
    value = sum / weight;
  }
  return points;
}

void write_training(std::ostream& out, const std::vector<json>& metrics) {
  const auto loss = curve(metrics, "", "loss");
  const auto recall = curve(metrics, "validation", "recall@10");
  const auto ndcg = curve(metrics, "validation", "ndcg@10");
  if (loss.empty() && recall.empty()) return;
  out << "<h2>Training</h2>\n<div class='row'>\n";
  if (!loss.empty()) {
    out << panel(
        svg_plot({.title = "Training loss",
                  .x_label = "step",
                  .y_label = "nats per token",
                  .series = {{.name = "logged",
                              .color = kBlue,
                              .points = loss,
                              .stroke_width = 1,
                              .opacity = 0.35},
                             {.name = "smoothed", .color = kBlue, .points = smoothed(loss)}},
                  .y_from_zero = false}));
  }
  if (!recall.empty()) {
    out << panel(svg_plot(
        {.title = "Validation during training",
         .x_label = "step",
         .y_label = "mean over users",
         .series = {{.name = "recall@10", .color = kBlue, .points = recall, .markers = true},
                    {.name = "NDCG@10", .color = kOrange, .points = ndcg, .markers = true}}}));
  }
  out << "</div>\n";
}

void write_tokenizer(std::ostream& out, const json& report) {
  if (!report.is_object() || !report.contains("levels") || report["levels"].empty()) return;
  out << "<h2>Semantic IDs</h2>\n<p class='subtitle'>Items per code, codes sorted by use. A flat "
         "curve uses all codes alike.</p>\n<div class='row thirds'>\n";
  for (size_t level = 0; level < report["levels"].size(); ++level) {
    const json& values = report["levels"][level];
    auto counts = values.at("counts").get<std::vector<double>>();
    std::sort(counts.rbegin(), counts.rend());
    PlotSeries series{
        .name = "", .color = kGreen, .points = {}, .stroke_width = 1.5, .filled = true};
    for (size_t code = 0; code < counts.size(); ++code) {
      series.points.emplace_back(static_cast<double>(code + 1), counts[code]);
    }
    out << panel(svg_plot(
        {.title = "Level " + std::to_string(level + 1) + ": " + text_of(values, "used") + " of " +
                  text_of(values, "size") + " codes used",
         .x_label = "codes, most used first",
         .y_label = "items per code; entropy " +
                    format_number(100 * values.at("entropy").get<double>(), 1) + " % of the most",
         .series = {series},
         .width = 310,
         .height = 230}));
  }
  out << "</div>\n";
  if (report.contains("shared")) {
    out << "<p class='subtitle'>" << text_of(report["shared"], "items") << " items share "
        << text_of(report["shared"], "ids") << " semantic IDs, at most "
        << text_of(report["shared"], "largest") << " one.</p>\n";
  }
  if (!report.contains("disambiguation")) return;
  out << "<p class='subtitle'>" << format_number(100 * report.at("unique_items").get<double>(), 1)
      << " % of the items have codes of their own; a disambiguation code parts the others, at most "
      << text_of(report["disambiguation"], "largest") << " of which share their codes.</p>\n";
}

struct System {
  const char *prefix, *name, *color;
};
constexpr System kSystems[] = {{"", "model", kBlue},
                               {"markov_", "Markov", kOrange},
                               {"popularity_", "popularity", kGrey},
                               {"ceiling_", "ceiling", kGreen}};

std::string cell(const json& result, const std::string& key) {
  if (!result.contains(key)) return "<td>–</td>";
  std::string text = "<td>" + format_number(result[key].get<double>(), 4);
  const json& intervals = result.value("intervals", json::object());
  if (intervals.contains(key)) {
    text += " <small>[" + format_number(intervals[key][0].get<double>(), 4) + ", " +
            format_number(intervals[key][1].get<double>(), 4) + "]</small>";
  }
  return text + "</td>";
}

void write_figures(std::ostream& out, const json& result) {
  std::vector<std::string> names;
  for (const char* name : {"recall@5", "recall@10", "ndcg@5", "ndcg@10"}) {
    if (result.contains(name)) names.push_back(name);
  }
  if (names.empty()) return;
  out << "<h2>Figures on the " << escape_html(text_of(result, "split")) << " split</h2>\n";
  std::ostringstream table;
  table << "<table><tr><th></th>";
  for (const std::string& name : names) table << "<th>" << name << "</th>";
  table << "</tr>\n";
  for (const System& system : kSystems) {
    if (!result.contains(system.prefix + names.front())) continue;
    table << "<tr><td>" << system.name << "</td>";
    for (const std::string& name : names) table << cell(result, system.prefix + name);
    table << "</tr>\n";
  }
  table << "</table><p class='subtitle'>With 95 % bootstrap intervals over users.</p>";
  out << panel(table.str()) << "<div class='row' style='margin-top:18px'>\n";
  for (const char* name : {"recall@10", "ndcg@10"}) {
    std::vector<PlotBar> bars;
    for (const System& system : kSystems) {
      const std::string key = std::string(system.prefix) + name;
      if (!result.contains(key)) continue;
      PlotBar bar{.name = system.name, .color = system.color, .value = result[key].get<double>()};
      bar.has_interval = result.value("intervals", json::object()).contains(key);
      if (bar.has_interval) {
        bar.low = result["intervals"][key][0].get<double>();
        bar.high = result["intervals"][key][1].get<double>();
      }
      bars.push_back(bar);
    }
    if (!bars.empty()) out << panel(svg_bars(name, bars));
  }
  out << "</div>\n";
}

void write_bands(std::ostream& out, const json& result) {
  if (!result.contains("bands")) return;
  std::ostringstream table;
  table << "<table><tr><th>target</th><th>targets</th><th>found</th><th>recall</th></tr>\n";
  for (const char* band : {"head", "torso", "tail", "unseen"}) {
    const json& values = result["bands"].value(band, json::object());
    if (values.empty()) continue;
    table << "<tr><td>" << band << "</td><td>" << text_of(values, "targets") << "</td><td>"
          << text_of(values, "hits") << "</td><td>"
          << (values["targets"].get<int64_t>() > 0
                  ? format_number(values["recall"].get<double>(), 4)
                  : "–")
          << "</td></tr>\n";
  }
  table << "</table><p class='subtitle'>Head, torso and tail items hold a third of the training "
           "events each; unseen ones none.</p>";
  out << "<h2>Recall by the target's popularity</h2>\n" << panel(table.str());
}

void write_settings(std::ostream& out, const json& result) {
  constexpr std::pair<const char*, const char*> kRows[] = {
      {"dataset", "data set"},
      {"users", "users evaluated"},
      {"items", "items, all of which compete"},
      {"split", "split"},
      {"split_rule", "cut"},
      {"split_hash", "split hash"},
      {"tie_policy", "events of equal time"},
      {"mode", "ranking"},
      {"beam_size", "beam size"},
      {"history_length", "history seen by the model (items)"},
      {"exclude_history", "history excluded"},
      {"invalid_beams", "invalid beams"},
      {"duplicate_beams", "duplicate beams"},
      {"train_steps", "training steps"},
      {"train_seconds", "training seconds"},
      {"tokens_per_second", "training tokens per second"},
      {"evaluation_seconds", "evaluation seconds"},
      {"version", "Mirabelle"}};
  std::ostringstream list;
  list << "<dl>";
  for (const auto& [key, label] : kRows) {
    if (!result.contains(key)) continue;
    list << "<dt>" << label << "</dt><dd>" << escape_html(text_of(result, key)) << "</dd>\n";
  }
  out << "<h2>How it was measured</h2>\n" << panel(list.str() + "</dl>");
}

std::string items_html(const std::vector<ReportUser::Item>& items, const char* tag,
                       bool with_scores) {
  std::ostringstream out;
  out << "<" << tag << ">";
  for (const ReportUser::Item& item : items) {
    out << (item.is_target ? "<li class='hit'>" : "<li>") << escape_html(item.title);
    if (with_scores) out << " <span class='score'>" << format_number(item.score, 2) << "</span>";
    out << (item.is_target ? " ✓</li>" : "</li>") << "\n";
  }
  out << "</" << tag << ">";
  return out.str();
}

void write_users(std::ostream& out, const std::vector<ReportUser>& users) {
  if (users.empty()) return;
  out << "<h2>Example users</h2>\n<p class='subtitle'>Drawn at random. Behind each recommendation "
         "stands its log-probability; ✓ marks a target that was found.</p>\n";
  for (const ReportUser& user : users) {
    std::ostringstream text;
    text << "<h3>User " << escape_html(user.id) << "</h3><div class='columns'><div><h4>History, "
         << "newest last</h4>" << items_html(user.history, "ul", false)
         << "<div class='target'><h4>" << (user.targets.size() == 1 ? "Target" : "Targets")
         << "</h4>" << items_html(user.targets, "ul", false)
         << "</div></div><div><h4>Recommendations</h4>"
         << items_html(user.recommendations, "ol", true) << "</div></div>";
    out << "<div class='user panel'>" << text.str() << "</div>\n";
  }
}

}  // namespace

std::string html_report(const ReportInput& input) {
  const std::string dataset = text_of(input.result, "dataset");
  std::ostringstream out;
  out << "<!DOCTYPE html>\n<html lang='en'><head><meta charset='utf-8'>\n<title>Mirabelle: "
      << escape_html(dataset) << "</title>\n<meta name='viewport' "
      << "content='width=device-width, initial-scale=1'>\n<style>" << kStyle
      << "</style></head>\n<body><main>\n<h1>" << escape_html(dataset)
      << "</h1>\n<p class='subtitle'>Semantic-ID generative retrieval, trained and evaluated by "
         "Mirabelle</p>\n";
  write_figures(out, input.result);
  write_training(out, input.metrics);
  write_tokenizer(out, input.tokenizer);
  write_bands(out, input.result);
  write_users(out, input.users);
  write_settings(out, input.result);
  out << "</main></body></html>\n";
  return out.str();
}

std::vector<json> read_metrics(const std::filesystem::path& path) {
  std::vector<json> lines;
  std::ifstream in(path);
  for (std::string line; std::getline(in, line);) {
    json values = json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (values.is_object()) lines.push_back(std::move(values));
  }
  return lines;
}

std::string item_title(const Corpus& corpus, int32_t item) {
  const std::string& title = corpus.titles().at(item);
  return title.empty() ? "item " + id_text(corpus.item_id(item)) : title;
}

std::vector<ReportUser> example_users(const Corpus& corpus, Split split,
                                      const Recommender& recommend, bool exclude_history,
                                      int64_t num_users, int64_t history_length, int64_t num_items,
                                      int64_t seed) {
  // More than are shown, for some may have no targets.
  const std::vector<int64_t> drawn = select_users(corpus, 8 * num_users, seed);
  const HistoryBlock block = read_user_histories(corpus, drawn);
  const std::vector<json> ids = read_user_ids(corpus, drawn);
  const auto item = [&](int32_t index) {
    return ReportUser::Item{item_title(corpus, index), 0, false};
  };
  std::vector<ReportUser> users;
  for (int64_t i = 0; i < block.num_users(); ++i) {
    if (static_cast<int64_t>(users.size()) == num_users) break;
    const std::vector<int32_t> targets = distinct_items(block.targets(i, split));
    if (targets.empty()) continue;
    const auto context = block.context(i, split);
    const std::vector<int32_t> excluded =
        exclude_history ? distinct_items(context) : std::vector<int32_t>{};
    const RecommendationQuery query{context, excluded};
    const RankedLists lists = recommend({&query, 1});
    ReportUser user{.id = id_text(ids[i]), .history = {}, .recommendations = {}, .targets = {}};
    for (int32_t index : context.last(std::min<size_t>(context.size(), history_length))) {
      user.history.push_back(item(index));
    }
    for (int32_t index : targets) user.targets.push_back(item(index));
    const auto list = lists.list(0);
    for (size_t rank = 0; rank < std::min<size_t>(list.size(), num_items); ++rank) {
      user.recommendations.push_back(
          {item_title(corpus, list[rank]), lists.list_scores(0)[rank],
           std::binary_search(targets.begin(), targets.end(), list[rank])});
    }
    users.push_back(std::move(user));
  }
  return users;
}

}  // namespace mirabelle
