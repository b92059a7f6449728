#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "mirabelle/data/synthetic_world.h"

namespace mirabelle {

/// The best recommender that a synthetic world allows: the exact distribution of the next item
/// given the history, by the forward algorithm of the hidden Markov model over (leaf, direction).
/// Items do not repeat, so an event's likelihood in a state is the item's probability there over
/// the probability of all items that were not in the history yet. Refers to the world.
class BayesFilter {
 public:
  explicit BayesFilter(const SyntheticWorld& world);

  /// Back to the empty history.
  void reset();
  /// Appends an item that is not in the history yet.
  void observe(int32_t item);
  /// P(next item | history), 0 for items of the history; out [num_items].
  void predict(std::span<double> out) const;

 private:
  double unseen_mass(int64_t leaf) const;
  void turn();
  void move();

  const SyntheticWorld& world_;
  int64_t num_leaves_, num_directions_;
  std::vector<double> state_;      // [num_leaves, num_directions] P(state at the next event)
  std::vector<double> moved_;      // the same shape, scratch
  std::vector<double> leaf_seen_;  // [num_leaves] P(item of the history | leaf, no exploration)
  double seen_ = 0;                // P(item of the history | exploration)
  std::vector<int32_t> history_;
};

}  // namespace mirabelle
