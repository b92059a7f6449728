#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "mirabelle/core/config_fields.h"

namespace mirabelle {

struct SyntheticWorldConfig {
  int64_t num_users = 20000;
  int64_t num_items = 5120;
  int64_t seed = 1;
  int64_t min_events = 14;
  int64_t max_events = 34;
  std::vector<int64_t> branching = {16, 16};
  double item_exponent = 0.9;
  double cluster_exponent = 0.5;
  double turn_probability = 0.05;
  double stay_probability = 0.3;
  double jump_probability = 0.05;
  double exploration_probability = 0.1;
  int64_t content_dim = 64;
  int64_t style_dim = 32;
  double item_noise = 0.3;

  void visit(ConfigFields& fields);
  /// Throws a kUsage Error that names the field.
  void check() const;
};

/// A world whose law is known, so that a trained model can be judged against the best that anybody
/// could do (data/bayes_filter.h).
///
/// Items sit in the leaf clusters of a hierarchy of `branching` children per node. The popularity
/// of the leaves, and of the items within each, follows Zipf laws. A user is in one leaf and drifts
/// in one direction, both hidden and at first drawn by popularity and uniformly. Before each later
/// event the user
///   1. with turn_probability draws a new direction, uniformly;
///   2. stays in the leaf with stay_probability, jumps with jump_probability to a leaf drawn by
///      popularity, and otherwise moves to the leaf's neighbour in that direction. On every level
///      of the hierarchy, siblings form a ring that is walked forward (direction 2 x level) or
///      backward (2 x level + 1).
/// The event's item is drawn with exploration_probability from the whole catalogue by popularity,
/// otherwise from the leaf, and drawn again, that choice included, while the history holds it.
///
/// One event tells the leaf at best; only several together tell the direction, and what was mere
/// exploration. That is what a sequence model can learn and counts of item pairs cannot.
///
/// Everything is a pure function of (seed, user) or (seed, item): user 7 is the same whatever
/// num_users is.
class SyntheticWorld {
 public:
  /// Checks the configuration.
  explicit SyntheticWorld(const SyntheticWorldConfig& config);

  const SyntheticWorldConfig& config() const { return config_; }
  int64_t num_leaves() const { return static_cast<int64_t>(leaf_probability_.size()); }
  int64_t num_directions() const { return 2 * static_cast<int64_t>(config_.branching.size()); }

  double leaf_probability(int64_t leaf) const { return leaf_probability_[leaf]; }
  int64_t neighbour(int64_t leaf, int64_t direction) const {
    return neighbours_[leaf * num_directions() + direction];
  }
  int64_t leaf_of(int64_t item) const { return leaf_of_[item]; }
  /// The items of a leaf, the most popular first.
  std::span<const int32_t> items_of(int64_t leaf) const {
    return std::span(leaf_items_).subspan(leaf_begin_[leaf], leaf_size(leaf));
  }
  /// P(item | its leaf, no exploration) in an empty history.
  double probability_in_leaf(int64_t item) const { return probability_in_leaf_[item]; }
  /// P(item | exploration) in an empty history.
  double popularity(int64_t item) const {
    return leaf_probability_[leaf_of_[item]] * probability_in_leaf_[item];
  }

  struct User {
    std::vector<int32_t> items;       ///< all distinct
    std::vector<int64_t> timestamps;  ///< seconds since 1970, increasing
    std::vector<int32_t> leaves;      ///< the hidden path: where the user was at each event
    std::vector<int32_t> directions;  ///< and whither the user drifted
  };
  User draw_user(int64_t user) const;

  /// E.g. "cluster 3.1.4 item 17": the path through the hierarchy and the rank in the leaf, from 1.
  std::string title(int64_t item) const;

  /// The feature sources, "content" and "style", with their widths.
  struct FeatureSource {
    std::string name;
    int64_t dim;
  };
  std::vector<FeatureSource> feature_sources() const;
  /// Features of items [begin, end): the sum of a random centre for each cluster that holds the
  /// item, plus noise. Most of the noise lies in a few dimensions, as attributes do that items of
  /// all clusters share (white noise in so many dimensions no quantizer could tell apart).
  /// Returns [end - begin, source.dim].
  std::vector<float> draw_features(const FeatureSource& source, int64_t begin, int64_t end) const;

 private:
  int64_t leaf_size(int64_t leaf) const { return leaf_begin_[leaf + 1] - leaf_begin_[leaf]; }
  int64_t draw_leaf(double u) const;
  int32_t draw_from_leaf(int64_t leaf, double u) const;

  SyntheticWorldConfig config_;
  std::vector<double> leaf_probability_, leaf_cumulative_;  // [num_leaves]
  std::vector<int32_t> neighbours_;                         // [num_leaves, num_directions]
  std::vector<int64_t> leaf_begin_;                         // [num_leaves + 1], into leaf_items_
  std::vector<int32_t> leaf_items_;          // [num_items], by leaf, then by popularity
  std::vector<double> cumulative_in_leaf_;   // [num_items], in the order of leaf_items_
  std::vector<int32_t> leaf_of_;             // [num_items]
  std::vector<int32_t> rank_in_leaf_;        // [num_items]
  std::vector<double> probability_in_leaf_;  // [num_items]
};

}  // namespace mirabelle
