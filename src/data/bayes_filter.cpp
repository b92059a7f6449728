#include "mirabelle/data/bayes_filter.h"

#include <algorithm>
#include <numeric>

namespace mirabelle {

BayesFilter::BayesFilter(const SyntheticWorld& world)
    : world_(world),
      num_leaves_(world.num_leaves()),
      num_directions_(world.num_directions()),
      state_(num_leaves_ * num_directions_),
      moved_(state_.size()),
      leaf_seen_(num_leaves_) {
  reset();
}

void BayesFilter::reset() {
  for (int64_t leaf = 0; leaf < num_leaves_; ++leaf) {
    std::fill_n(&state_[leaf * num_directions_], num_directions_,
                world_.leaf_probability(leaf) / static_cast<double>(num_directions_));
  }
  std::fill(leaf_seen_.begin(), leaf_seen_.end(), 0.0);
  seen_ = 0;
  history_.clear();
}

/// P(item that is not in the history | leaf) of one draw.
double BayesFilter::unseen_mass(int64_t leaf) const {
  const double exploration = world_.config().exploration_probability;
  return (1 - exploration) * (1 - leaf_seen_[leaf]) + exploration * (1 - seen_);
}

void BayesFilter::observe(int32_t item) {
  const double exploration = world_.config().exploration_probability;
  const int64_t item_leaf = world_.leaf_of(item);
  double total = 0;
  for (int64_t leaf = 0; leaf < num_leaves_; ++leaf) {
    const double in_leaf = leaf == item_leaf ? world_.probability_in_leaf(item) : 0.0;
    const double likelihood =
        ((1 - exploration) * in_leaf + exploration * world_.popularity(item)) / unseen_mass(leaf);
    for (int64_t direction = 0; direction < num_directions_; ++direction) {
      total += state_[leaf * num_directions_ + direction] *= likelihood;
    }
  }
  for (double& probability : state_) probability /= total;
  history_.push_back(item);
  leaf_seen_[item_leaf] += world_.probability_in_leaf(item);
  seen_ += world_.popularity(item);
  turn();
  move();
}

void BayesFilter::turn() {
  const double turn = world_.config().turn_probability;
  for (int64_t leaf = 0; leaf < num_leaves_; ++leaf) {
    const auto directions = std::span(state_).subspan(leaf * num_directions_, num_directions_);
    const double mean = std::accumulate(directions.begin(), directions.end(), 0.0) /
                        static_cast<double>(num_directions_);
    for (double& probability : directions) probability = (1 - turn) * probability + turn * mean;
  }
}

void BayesFilter::move() {
  const double stay = world_.config().stay_probability, jump = world_.config().jump_probability;
  std::vector<double> anywhere(num_directions_);  // P(direction)
  for (int64_t leaf = 0; leaf < num_leaves_; ++leaf) {
    for (int64_t direction = 0; direction < num_directions_; ++direction) {
      anywhere[direction] += state_[leaf * num_directions_ + direction];
    }
  }
  for (int64_t leaf = 0; leaf < num_leaves_; ++leaf) {
    for (int64_t direction = 0; direction < num_directions_; ++direction) {
      // Who comes from the neighbour in the opposite direction, 2 x level + 1 instead of 2 x level.
      const int64_t origin = world_.neighbour(leaf, direction ^ 1);
      moved_[leaf * num_directions_ + direction] =
          stay * state_[leaf * num_directions_ + direction] +
          jump * world_.leaf_probability(leaf) * anywhere[direction] +
          (1 - stay - jump) * state_[origin * num_directions_ + direction];
    }
  }
  state_.swap(moved_);
}

void BayesFilter::predict(std::span<double> out) const {
  const double exploration = world_.config().exploration_probability;
  double explored = 0;  // P(exploration), up to the popularity of unseen items
  for (int64_t leaf = 0; leaf < num_leaves_; ++leaf) {
    const auto directions = std::span(state_).subspan(leaf * num_directions_, num_directions_);
    const double weight =
        std::accumulate(directions.begin(), directions.end(), 0.0) / unseen_mass(leaf);
    explored += exploration * weight;
    for (int32_t item : world_.items_of(leaf)) {
      out[item] = (1 - exploration) * weight * world_.probability_in_leaf(item);
    }
  }
  for (size_t item = 0; item < out.size(); ++item) {
    out[item] += explored * world_.popularity(static_cast<int64_t>(item));
  }
  for (int32_t item : history_) out[item] = 0;
}

}  // namespace mirabelle
