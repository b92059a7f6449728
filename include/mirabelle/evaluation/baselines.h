#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "mirabelle/data/corpus.h"

namespace mirabelle {

/// The two models that count: what any trained model must be compared with. All counts are of
/// training parts only, whatever the split that is evaluated.
///
///   popularity   an item's score is how often it occurs
///   Markov       how often it follows the last item of the history immediately; items with the
///   same
///                count (0 above all) by popularity
class CountingBaselines {
 public:
  /// Reads the training parts of all histories, block by block; keeps one entry per distinct pair
  /// of neighbouring items.
  explicit CountingBaselines(const Corpus& corpus);
  /// From training histories that are at hand.
  CountingBaselines(int64_t num_items, std::span<const std::vector<int32_t>> training_histories);

  /// [num_items]
  const std::vector<int64_t>& popularity() const { return popularity_; }

  /// The rank of each target among all items but `excluded` (ascending, distinct); equal scores
  /// share their mean rank. A target that is excluded has the rank kNotRanked.
  std::vector<double> popularity_ranks(std::span<const int32_t> targets,
                                       std::span<const int32_t> excluded) const;
  /// The same for the Markov scores after `last_item`; -1 (no history) means popularity alone.
  std::vector<double> markov_ranks(int32_t last_item, std::span<const int32_t> targets,
                                   std::span<const int32_t> excluded) const;

 private:
  struct Successor {
    int32_t item;
    int64_t count;
  };
  void add_history(std::span<const int32_t> items);
  void finish();
  double popularity_rank(int32_t target, std::span<const int32_t> excluded) const;
  double markov_rank(std::span<const Successor> row, int32_t target,
                     std::span<const int32_t> excluded) const;

  std::vector<int64_t> popularity_;
  std::vector<int64_t> ascending_;     // popularity_, sorted
  std::vector<uint64_t> pairs_;        // item << 32 | next item, until finish()
  std::vector<int64_t> row_begin_;     // [num_items + 1], into successors_
  std::vector<Successor> successors_;  // by item, then by next item
};

}  // namespace mirabelle
