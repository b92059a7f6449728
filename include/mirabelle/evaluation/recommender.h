#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

namespace mirabelle {

/// What is known of one user.
struct RecommendationQuery {
  std::span<const int32_t> history;   ///< items that the model sees, oldest first; may be empty
  std::span<const int32_t> excluded;  ///< items that may not be recommended; ascending, distinct
};

/// Items of several users, best first. Equal scores are in the order of their semantic IDs, so that
/// items that share one follow each other: by priority, with the ID's score.
struct RankedLists {
  std::vector<int64_t> offsets = {0};  ///< [num_users + 1]
  std::vector<int32_t> items;
  std::vector<double> scores;  ///< log-probabilities of the items' semantic IDs
  int64_t num_invalid = 0;     ///< IDs that no item has, or excluded items only; dropped
  int64_t num_duplicates = 0;  ///< IDs that were in the same list before; dropped

  int64_t num_users() const { return static_cast<int64_t>(offsets.size()) - 1; }
  std::span<const int32_t> list(int64_t user) const {
    return std::span(items).subspan(offsets[user], offsets[user + 1] - offsets[user]);
  }
  std::span<const double> list_scores(int64_t user) const {
    return std::span(scores).subspan(offsets[user], offsets[user + 1] - offsets[user]);
  }
};

/// Anything that ranks items for a batch of users.
using Recommender = std::function<RankedLists(std::span<const RecommendationQuery>)>;

}  // namespace mirabelle
