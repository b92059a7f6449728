#include "mirabelle/data/synthetic_world.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <unordered_map>

#include "mirabelle/core/error.h"
#include "mirabelle/core/random.h"

namespace mirabelle {
namespace {

/// Attributes per feature source that items differ in within a cluster.
constexpr int64_t kNoiseRank = 3;
/// White noise on top, relative to that.
constexpr double kWhiteNoise = 0.1;

constexpr int64_t kFirstTime = 1577836800;  // 2020-01-01 00:00 UTC
constexpr int64_t kSecondsPerDay = 86400;

/// Probabilities of ranks 0 .. n - 1, proportional to 1 / (rank + 1)^exponent.
std::vector<double> zipf(int64_t n, double exponent) {
  std::vector<double> probabilities(n);
  for (int64_t rank = 0; rank < n; ++rank) {
    probabilities[rank] = std::pow(static_cast<double>(rank + 1), -exponent);
  }
  const double total = std::accumulate(probabilities.begin(), probabilities.end(), 0.0);
  for (double& probability : probabilities) probability /= total;
  return probabilities;
}

std::vector<int32_t> random_order(int64_t n, uint64_t key) {
  std::vector<int32_t> order(n);
  std::iota(order.begin(), order.end(), 0);
  Random(key).shuffle(order);
  return order;
}

/// The index into whose share of [0, 1) u falls. The last share takes what rounding left over.
int64_t pick(std::span<const double> cumulative, double u) {
  const auto found = std::upper_bound(cumulative.begin(), cumulative.end() - 1, u);
  return found - cumulative.begin();
}

/// The leaf one step along the ring of siblings on `level`.
int64_t step(const std::vector<int64_t>& branching, int64_t leaf, size_t level, bool forward) {
  const int64_t leaves_below = std::accumulate(branching.begin() + level + 1, branching.end(),
                                               int64_t{1}, std::multiplies<>());
  const int64_t ring = branching[level];
  const int64_t position = leaf / leaves_below % ring;
  const int64_t next = (position + (forward ? 1 : ring - 1)) % ring;
  return leaf + (next - position) * leaves_below;
}

void check_probability(double probability, const char* name) {
  MIRABELLE_CHECK_USAGE(probability >= 0 && probability <= 1, "synthetic.", name,
                        " must lie in [0, 1], not ", probability);
}

}  // namespace

void SyntheticWorldConfig::visit(ConfigFields& fields) {
  fields.field("num_users", num_users, "users to draw");
  fields.field("num_items", num_items, "items of the catalogue");
  fields.field("seed", seed, "another seed draws another world and other users");
  fields.field("min_events", min_events, "shortest history");
  fields.field("max_events", max_events, "longest history; lengths are uniform between");
  fields.field("branching", branching, "children per node on each level of the cluster hierarchy");
  fields.field("item_exponent", item_exponent, "Zipf exponent of the items within a leaf cluster");
  fields.field("cluster_exponent", cluster_exponent, "Zipf exponent of the leaf clusters");
  fields.field("turn_probability", turn_probability,
               "that a user draws a new direction before an event");
  fields.field("stay_probability", stay_probability, "that a user stays in the leaf cluster");
  fields.field("jump_probability", jump_probability,
               "that a user jumps to a leaf drawn by popularity; otherwise to the neighbour in the "
               "user's direction");
  fields.field("exploration_probability", exploration_probability,
               "that an event is drawn from the whole catalogue by popularity");
  fields.field("content_dim", content_dim, "width of the feature source 'content'");
  fields.field("style_dim", style_dim, "width of the feature source 'style'");
  fields.field("item_noise", item_noise,
               "how far the features of items of one leaf differ, relative to the centres");
}

void SyntheticWorldConfig::check() const {
  MIRABELLE_CHECK_USAGE(num_users >= 0, "synthetic.num_users must not be negative, it is ",
                        num_users);
  MIRABELLE_CHECK_USAGE(num_items > 0 && num_items <= INT32_MAX,
                        "synthetic.num_items must lie in [1, 2^31), it is ", num_items);
  MIRABELLE_CHECK_USAGE(min_events >= 3,
                        "synthetic.min_events must be at least 3, to train, validate ",
                        "and test on; it is ", min_events);
  MIRABELLE_CHECK_USAGE(max_events >= min_events, "synthetic.max_events is ", max_events,
                        ", below synthetic.min_events ", min_events);
  MIRABELLE_CHECK_USAGE(!branching.empty(), "synthetic.branching must name at least one level");
  int64_t num_leaves = 1;
  for (int64_t children : branching) {
    MIRABELLE_CHECK_USAGE(children > 0, "synthetic.branching must be positive, it has ", children);
    MIRABELLE_CHECK_USAGE(children <= num_items / num_leaves,
                          "synthetic.branching makes more leaf clusters than synthetic.num_items ",
                          num_items);
    num_leaves *= children;
  }
  // Items do not repeat, so rare ones must be found in a reasonable number of draws.
  MIRABELLE_CHECK_USAGE(item_exponent >= 0 && item_exponent <= 2,
                        "synthetic.item_exponent must lie in [0, 2], it is ", item_exponent);
  MIRABELLE_CHECK_USAGE(cluster_exponent >= 0 && cluster_exponent <= 2,
                        "synthetic.cluster_exponent must lie in [0, 2], it is ", cluster_exponent);
  check_probability(turn_probability, "turn_probability");
  check_probability(stay_probability, "stay_probability");
  check_probability(jump_probability, "jump_probability");
  MIRABELLE_CHECK_USAGE(stay_probability + jump_probability <= 1,
                        "synthetic.stay_probability and synthetic.jump_probability add up to ",
                        stay_probability + jump_probability, ", more than 1");
  check_probability(exploration_probability, "exploration_probability");
  const int64_t to_draw_from =
      exploration_probability >= 0.01 ? num_items / 2 : num_items / num_leaves;
  MIRABELLE_CHECK_USAGE(
      max_events <= to_draw_from, "synthetic.max_events is ", max_events,
      ", but no item repeats and there are only ", to_draw_from,
      exploration_probability >= 0.01
          ? " items in half the catalogue"
          : " items in a leaf and synthetic.exploration_probability is below 0.01");
  MIRABELLE_CHECK_USAGE(content_dim > 0, "synthetic.content_dim must be positive, it is ",
                        content_dim);
  MIRABELLE_CHECK_USAGE(style_dim > 0, "synthetic.style_dim must be positive, it is ", style_dim);
  MIRABELLE_CHECK_USAGE(std::isfinite(item_noise) && item_noise >= 0,
                        "synthetic.item_noise must not be negative, it is ", item_noise);
}

SyntheticWorld::SyntheticWorld(const SyntheticWorldConfig& config) : config_(config) {
  config_.check();
  const std::vector<int64_t>& branching = config_.branching;
  const int64_t num_leaves =
      std::accumulate(branching.begin(), branching.end(), int64_t{1}, std::multiplies<>());

  leaf_probability_.resize(num_leaves);
  const std::vector<double> by_rank = zipf(num_leaves, config_.cluster_exponent);
  const auto ranking = random_order(num_leaves, random_key(config_.seed, "synthetic leaf ranks"));
  for (int64_t rank = 0; rank < num_leaves; ++rank) {
    leaf_probability_[ranking[rank]] = by_rank[rank];
  }
  leaf_cumulative_.resize(num_leaves);
  std::partial_sum(leaf_probability_.begin(), leaf_probability_.end(), leaf_cumulative_.begin());
  for (int64_t leaf = 0; leaf < num_leaves; ++leaf) {
    for (size_t level = 0; level < branching.size(); ++level) {
      neighbours_.push_back(static_cast<int32_t>(step(branching, leaf, level, true)));
      neighbours_.push_back(static_cast<int32_t>(step(branching, leaf, level, false)));
    }
  }

  leaf_items_ = random_order(config_.num_items, random_key(config_.seed, "synthetic items"));
  for (int64_t leaf = 0; leaf <= num_leaves; ++leaf) {
    leaf_begin_.push_back(config_.num_items * leaf / num_leaves);
  }
  cumulative_in_leaf_.resize(config_.num_items);
  leaf_of_.resize(config_.num_items);
  rank_in_leaf_.resize(config_.num_items);
  probability_in_leaf_.resize(config_.num_items);
  for (int64_t leaf = 0; leaf < num_leaves; ++leaf) {
    const std::vector<double> probabilities = zipf(leaf_size(leaf), config_.item_exponent);
    std::partial_sum(probabilities.begin(), probabilities.end(),
                     cumulative_in_leaf_.begin() + leaf_begin_[leaf]);
    for (int64_t rank = 0; rank < leaf_size(leaf); ++rank) {
      const int32_t item = items_of(leaf)[rank];
      leaf_of_[item] = static_cast<int32_t>(leaf);
      rank_in_leaf_[item] = static_cast<int32_t>(rank);
      probability_in_leaf_[item] = probabilities[rank];
    }
  }
}

int64_t SyntheticWorld::draw_leaf(double u) const { return pick(leaf_cumulative_, u); }

int32_t SyntheticWorld::draw_from_leaf(int64_t leaf, double u) const {
  const auto cumulative =
      std::span(cumulative_in_leaf_).subspan(leaf_begin_[leaf], leaf_size(leaf));
  return leaf_items_[leaf_begin_[leaf] + pick(cumulative, u)];
}

SyntheticWorld::User SyntheticWorld::draw_user(int64_t user) const {
  Random random(random_key(config_.seed, "synthetic user", {user}));
  const int64_t num_events =
      config_.min_events + random.below(config_.max_events - config_.min_events + 1);
  int64_t leaf = draw_leaf(random.uniform());
  int64_t direction = random.below(num_directions());
  int64_t time = kFirstTime + random.below(2 * 365 * kSecondsPerDay);
  User result;
  for (int64_t event = 0; event < num_events; ++event) {
    if (event > 0) {
      if (random.uniform() < config_.turn_probability) direction = random.below(num_directions());
      const double u = random.uniform();
      if (u < config_.jump_probability) {
        leaf = draw_leaf(random.uniform());
      } else if (u >= config_.jump_probability + config_.stay_probability) {
        leaf = neighbour(leaf, direction);
      }
      time += 1 + static_cast<int64_t>(-std::log1p(-random.uniform()) * kSecondsPerDay);
    }
    int32_t item;
    do {
      const bool explores = random.uniform() < config_.exploration_probability;
      item = draw_from_leaf(explores ? draw_leaf(random.uniform()) : leaf, random.uniform());
    } while (std::find(result.items.begin(), result.items.end(), item) != result.items.end());
    result.items.push_back(item);
    result.timestamps.push_back(time);
    result.leaves.push_back(static_cast<int32_t>(leaf));
    result.directions.push_back(static_cast<int32_t>(direction));
  }
  return result;
}

std::string SyntheticWorld::title(int64_t item) const {
  std::string path;
  int64_t node = leaf_of_[item];
  for (auto children = config_.branching.rbegin(); children != config_.branching.rend();
       ++children) {
    path = std::to_string(node % *children + 1) + (path.empty() ? "" : ".") + path;
    node /= *children;
  }
  return "cluster " + path + " item " + std::to_string(rank_in_leaf_[item] + 1);
}

std::vector<SyntheticWorld::FeatureSource> SyntheticWorld::feature_sources() const {
  return {{"content", config_.content_dim}, {"style", config_.style_dim}};
}

std::vector<float> SyntheticWorld::draw_features(const FeatureSource& source, int64_t begin,
                                                 int64_t end) const {
  const int64_t num_levels = static_cast<int64_t>(config_.branching.size());
  const auto key = [&](const char* purpose, std::initializer_list<int64_t> indices) {
    return random_key(config_.seed, "synthetic " + source.name + purpose, indices);
  };
  std::vector<float> features((end - begin) * source.dim);
  std::vector<double> row(source.dim);
  const auto add_noise = [&](uint64_t vector, double scale) {
    for (int64_t i = 0; i < source.dim; ++i) row[i] += scale * random_normal(vector, i);
  };
  std::unordered_map<uint64_t, std::vector<double>> drawn;  // what many items have in common
  const auto add = [&](uint64_t vector, double scale) {
    std::vector<double>& values = drawn[vector];
    for (int64_t i = static_cast<int64_t>(values.size()); i < source.dim; ++i) {
      values.push_back(random_normal(vector, i));
    }
    for (int64_t i = 0; i < source.dim; ++i) row[i] += scale * values[i];
  };
  for (int64_t item = begin; item < end; ++item) {
    std::fill(row.begin(), row.end(), 0.0);
    int64_t node = leaf_of_[item];
    for (int64_t level = num_levels - 1; level >= 0; --level) {
      add(key(" centre", {level, node}), 1.0);
      node /= config_.branching[level];
    }
    for (int64_t k = 0; k < kNoiseRank; ++k) {
      const double attribute = random_normal(key(" attributes", {item}), k);
      add(key(" attribute direction", {k}), config_.item_noise * attribute);
    }
    add_noise(key(" white noise", {item}), config_.item_noise * kWhiteNoise);
    std::copy(row.begin(), row.end(), features.begin() + (item - begin) * source.dim);
  }
  return features;
}

}  // namespace mirabelle
