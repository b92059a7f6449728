#include "mirabelle/evaluation/baselines.h"

#include <algorithm>

#include "mirabelle/core/error.h"
#include "mirabelle/data/training_histories.h"
#include "mirabelle/evaluation/metrics.h"

namespace mirabelle {
namespace {

bool contains(std::span<const int32_t> ascending, int32_t item) {
  return std::binary_search(ascending.begin(), ascending.end(), item);
}

}  // namespace

CountingBaselines::CountingBaselines(const Corpus& corpus) : popularity_(corpus.num_items()) {
  for_each_training_history(corpus, [&](std::span<const int32_t> items) { add_history(items); });
  finish();
}

CountingBaselines::CountingBaselines(int64_t num_items,
                                     std::span<const std::vector<int32_t>> training_histories)
    : popularity_(num_items) {
  for (const std::vector<int32_t>& history : training_histories) add_history(history);
  finish();
}

void CountingBaselines::add_history(std::span<const int32_t> items) {
  for (size_t i = 0; i < items.size(); ++i) {
    MIRABELLE_CHECK(items[i] >= 0 && items[i] < static_cast<int64_t>(popularity_.size()),
                    "a training history has item ", items[i], " of ", popularity_.size());
    ++popularity_[items[i]];
    if (i > 0) {
      pairs_.push_back(static_cast<uint64_t>(items[i - 1]) << 32 | static_cast<uint64_t>(items[i]));
    }
  }
}

void CountingBaselines::finish() {
  ascending_ = popularity_;
  std::sort(ascending_.begin(), ascending_.end());
  std::sort(pairs_.begin(), pairs_.end());
  row_begin_.assign(popularity_.size() + 1, 0);
  for (size_t i = 0; i < pairs_.size();) {
    const size_t begin = i;
    while (i < pairs_.size() && pairs_[i] == pairs_[begin]) ++i;
    successors_.push_back(
        {static_cast<int32_t>(pairs_[begin] & 0xFFFFFFFF), static_cast<int64_t>(i - begin)});
    ++row_begin_[(pairs_[begin] >> 32) + 1];
  }
  for (size_t item = 0; item + 1 < row_begin_.size(); ++item)
    row_begin_[item + 1] += row_begin_[item];
  pairs_ = {};
}

double CountingBaselines::popularity_rank(int32_t target, std::span<const int32_t> excluded) const {
  if (contains(excluded, target)) return kNotRanked;
  const int64_t count = popularity_[target];
  const auto [equal_begin, equal_end] =
      std::equal_range(ascending_.begin(), ascending_.end(), count);
  int64_t num_better = ascending_.end() - equal_end;
  int64_t num_equal = equal_end - equal_begin - 1;
  for (int32_t item : excluded) {
    num_better -= popularity_[item] > count;
    num_equal -= popularity_[item] == count;
  }
  return shared_rank(num_better, num_equal);
}

double CountingBaselines::markov_rank(std::span<const Successor> row, int32_t target,
                                      std::span<const int32_t> excluded) const {
  const auto place =
      std::lower_bound(row.begin(), row.end(), target,
                       [](const Successor& s, int32_t item) { return s.item < item; });
  if (contains(excluded, target)) return kNotRanked;
  const int64_t popularity = popularity_[target];
  if (place == row.end() || place->item != target) {
    // By popularity among the items that never follow; those that do are all better.
    double rank = popularity_rank(target, excluded);
    for (const Successor& successor : row) {
      if (contains(excluded, successor.item)) continue;
      if (popularity_[successor.item] < popularity) rank += 1;
      if (popularity_[successor.item] == popularity)
        rank += 0.5;  // one equal fewer, one better more
    }
    return rank;
  }
  int64_t num_better = 0, num_equal = -1;  // the target itself is in the row
  for (const Successor& successor : row) {
    if (contains(excluded, successor.item)) continue;
    const auto score = std::pair(successor.count, popularity_[successor.item]);
    num_better += score > std::pair(place->count, popularity);
    num_equal += score == std::pair(place->count, popularity);
  }
  return shared_rank(num_better, num_equal);
}

std::vector<double> CountingBaselines::popularity_ranks(std::span<const int32_t> targets,
                                                        std::span<const int32_t> excluded) const {
  std::vector<double> ranks;
  for (int32_t target : targets) ranks.push_back(popularity_rank(target, excluded));
  return ranks;
}

std::vector<double> CountingBaselines::markov_ranks(int32_t last_item,
                                                    std::span<const int32_t> targets,
                                                    std::span<const int32_t> excluded) const {
  std::span<const Successor> row;
  if (last_item >= 0) {
    row = std::span(successors_)
              .subspan(row_begin_[last_item], row_begin_[last_item + 1] - row_begin_[last_item]);
  }
  std::vector<double> ranks;
  for (int32_t target : targets) ranks.push_back(markov_rank(row, target, excluded));
  return ranks;
}

}  // namespace mirabelle
