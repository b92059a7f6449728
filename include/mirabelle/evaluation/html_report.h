#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "mirabelle/data/corpus.h"
#include "mirabelle/evaluation/recommender.h"

namespace mirabelle {

/// One user to look at.
struct ReportUser {
  struct Item {
    std::string title;  ///< the item's ID where no title is known
    double score = 0;   ///< log-probability, of recommendations
    bool is_target = false;
  };
  std::string id;
  std::vector<Item> history;          ///< newest last
  std::vector<Item> recommendations;  ///< best first
  std::vector<Item> targets;
};

/// What the report shows. Anything may be missing (null or empty); its part is then left out.
struct ReportInput {
  nlohmann::json result;                ///< to_json(EvaluationResult), and what training took
  std::vector<nlohmann::json> metrics;  ///< the lines of metrics.jsonl
  nlohmann::json tokenizer;             ///< tokenizer_report()
  std::vector<ReportUser> users;
};

/// A self-contained page: inline SVG and CSS, no scripts, nothing loaded from elsewhere.
std::string html_report(const ReportInput& input);

/// The lines of a metrics.jsonl; a last line that was cut off is left out, a missing file is empty.
std::vector<nlohmann::json> read_metrics(const std::filesystem::path& path);

/// The first `num_users` users (ascending global indices) with targets in the split, their newest
/// `history_length` items and their `num_items` best recommendations.
std::vector<ReportUser> example_users(const Corpus& corpus, Split split,
                                      const Recommender& recommend, bool exclude_history,
                                      int64_t num_users, int64_t history_length, int64_t num_items,
                                      int64_t seed);

/// An item's title, or its ID if it has none.
std::string item_title(const Corpus& corpus, int32_t item);

}  // namespace mirabelle
