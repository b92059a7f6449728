#include "mirabelle/tokenizer/tokenizer_report.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>

#include "mirabelle/core/error.h"
#include "mirabelle/core/progress.h"
#include "mirabelle/core/table.h"
#include "mirabelle/tokenizer/code_quality.h"

namespace mirabelle {
namespace {

/// In bits.
double entropy_of(const std::vector<int64_t>& counts) {
  const double total =
      static_cast<double>(std::accumulate(counts.begin(), counts.end(), int64_t{0}));
  double entropy = 0;
  for (const int64_t count : counts) {
    if (count == 0) continue;
    const double share = static_cast<double>(count) / total;
    entropy -= share * std::log2(share);
  }
  return entropy;
}

nlohmann::json level_report(const SemanticIds& ids, int64_t level) {
  std::vector<int64_t> counts(ids.level_size(level));
  for (int64_t item = 0; item < ids.num_items(); ++item) ++counts[ids.codes(item)[level]];
  const double bits = entropy_of(counts);
  const double most_bits = std::log2(static_cast<double>(counts.size()));
  return {{"size", counts.size()},
          {"used", counts.size() - std::count(counts.begin(), counts.end(), 0)},
          {"entropy_bits", bits},
          {"entropy", counts.size() == 1 ? 1.0 : bits / most_bits},
          {"counts", counts}};
}

/// How many IDs stand for 1, 2, ... items, by the first `num_code_levels` codes.
std::map<int64_t, int64_t> collision_histogram(const SemanticIds& ids, int64_t num_code_levels) {
  std::map<int64_t, int64_t> histogram;
  for_each_group(ids.all_codes(), num_code_levels, [&](std::span<const int32_t> items) {
    ++histogram[static_cast<int64_t>(items.size())];
  });
  return histogram;
}

std::string percent(double share) { return format_number(100 * share, 1) + " %"; }

void print_levels(const nlohmann::json& report, std::ostream& out) {
  Table table({"level", "codes", "used", "entropy (bits)", "of the most", "relative error"});
  for (size_t level = 0; level < report.at("levels").size(); ++level) {
    const nlohmann::json& values = report["levels"][level];
    table.add_row({std::to_string(level), format_count(values.at("size").get<int64_t>()),
                   format_count(values.at("used").get<int64_t>()),
                   format_number(values.at("entropy_bits").get<double>(), 3),
                   percent(values.at("entropy").get<double>()),
                   values.contains("relative_error")
                       ? format_number(values["relative_error"].get<double>(), 4)
                       : "-"});
  }
  table.print(out);
}

void print_prefix_recall(const nlohmann::json& recall, std::ostream& out) {
  out << "\nOf an item's partners (items that " << format_count(recall.at("items").get<int64_t>())
      << " items are met with most) ranking by shared codes finds "
      << percent(recall.at("recall@10").get<double>()) << " among the first 10.\n\n";
  Table table({"first codes shared", "by partners", "by random pairs"});
  for (size_t level = 0; level < recall.at("partners_share").size(); ++level) {
    table.add_row(
        {std::to_string(level + 1), percent(recall["partners_share"][level].get<double>()),
         format_number(100 * recall.at("random_pairs_share")[level].get<double>(), 4) + " %"});
  }
  table.print(out);
}

void print_collisions(const nlohmann::json& report, std::ostream& out) {
  constexpr size_t kRows = 12;
  const nlohmann::json& collisions = report.at("collisions");
  Table table({"items that share their codes", "groups", "items"});
  for (size_t i = 0; i < collisions.size(); ++i) {
    if (collisions.size() > kRows && i + 3 == kRows) i = collisions.size() - 2;  // the largest two
    const auto items = collisions[i].at("items").get<int64_t>();
    const auto ids = collisions[i].at("ids").get<int64_t>();
    table.add_row({format_count(items), format_count(ids), format_count(items * ids)});
  }
  table.print(out);
  if (collisions.size() > kRows) out << "(of " << collisions.size() << " group sizes)\n";
}

}  // namespace

nlohmann::json tokenizer_report(const SemanticIds& ids, int64_t num_code_levels,
                                const std::vector<double>& errors) {
  MIRABELLE_CHECK(errors.empty() || static_cast<int64_t>(errors.size()) == num_code_levels + 1,
                  errors.size(), " errors for ", num_code_levels, " levels");
  nlohmann::json report{{"num_items", ids.num_items()},
                        {"levels", nlohmann::json::array()},
                        {"collisions", nlohmann::json::array()}};
  for (int64_t level = 0; level < num_code_levels; ++level) {
    nlohmann::json values = level_report(ids, level);
    // Features that do not vary at all are represented without error.
    if (!errors.empty()) {
      values["relative_error"] = errors[0] > 0 ? errors[level + 1] / errors[0] : 0.0;
    }
    report["levels"].push_back(std::move(values));
  }
  int64_t num_different = 0, largest = 0;
  const auto histogram = collision_histogram(ids, num_code_levels);
  for (const auto& [items, count] : histogram) {
    report["collisions"].push_back({{"items", items}, {"ids", count}});
    num_different += count;
    largest = items;
  }
  const double num_items = static_cast<double>(std::max<int64_t>(1, ids.num_items()));
  const int64_t num_unique = histogram.contains(1) ? histogram.at(1) : 0;
  report["unique_items"] = static_cast<double>(num_unique) / num_items;
  report["distinct_codes"] = static_cast<double>(num_different) / num_items;
  if (num_code_levels < ids.num_levels()) {
    report["disambiguation"] = {{"size", ids.level_size(num_code_levels)}, {"largest", largest}};
  } else if (largest > 1) {
    report["shared"] = {{"ids", num_different - num_unique},
                        {"items", ids.num_items() - num_unique},
                        {"largest", largest}};
  }
  report["vocab_size"] = ids.vocab_size();
  report["padded_vocab_size"] = ids.padded_vocab_size();
  return report;
}

void add_prefix_recall(nlohmann::json& report, const SemanticIds& ids, int64_t num_code_levels,
                       const CoOccurrences& pairs) {
  const PrefixRecall recall = prefix_recall(ids, num_code_levels, pairs);
  if (recall.num_items == 0) return;
  report["prefix_recall"] = {{"items", recall.num_items},
                             {"recall@10", recall.recall_at_10},
                             {"partners_share", recall.partners_share},
                             {"random_pairs_share", recall.random_pairs_share}};
}

void print_tokenizer_report(const nlohmann::json& report, std::ostream& out) {
  out << format_count(report.at("num_items").get<int64_t>()) << " items, "
      << format_count(report.at("vocab_size").get<int64_t>()) << " tokens\n\n";
  print_levels(report, out);
  if (report.contains("prefix_recall")) print_prefix_recall(report["prefix_recall"], out);
  if (report.value("moved_items", 0) > 0) {
    out << '\n'
        << format_count(report["moved_items"].get<int64_t>())
        << " items have another last code than the nearest; "
        << percent(report.value("unique_nearest", 0.0))
        << " of all have nearest codes of their own.\n";
  }
  const bool is_numbered = report.contains("disambiguation");
  if (!is_numbered && !report.contains("shared")) return;
  const bool has_item_codes = report.value("collision_rule", "") == "item_code";
  out << '\n'
      << percent(report.at("unique_items").get<double>()) << " of the items have codes of their own"
      << (has_item_codes ? " before the last level; "
          : is_numbered  ? " before the disambiguation code; "
                         : "; ")
      << percent(report.at("distinct_codes").get<double>()) << " different codes per item\n\n";
  print_collisions(report, out);
  if (has_item_codes) {
    out << "\nThe last level has a code for every item.\n";
  } else if (is_numbered) {
    out << "\nThe disambiguation code has " << report["disambiguation"].at("size")
        << " values; the largest group takes " << report["disambiguation"].at("largest") << ".\n";
  } else {
    out << '\n'
        << format_count(report["shared"].at("items").get<int64_t>()) << " items share "
        << format_count(report["shared"].at("ids").get<int64_t>()) << " semantic IDs, at most "
        << report["shared"].at("largest") << " one.\n";
  }
}

}  // namespace mirabelle
