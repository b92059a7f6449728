#include "mirabelle/tokenizer/co_occurrence.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <span>
#include <tuple>

#include "mirabelle/core/error.h"
#include "mirabelle/data/training_histories.h"
#include "mirabelle/tokenizer/canonical_sum.h"

namespace mirabelle {
namespace {

/// Inverse distances are added up in these units, in integers: in any order the same sum.
constexpr int64_t kUnit = 1 << 20;

/// How often an item met a partner.
struct Meeting {
  int32_t item, partner;
  int64_t count;
  int64_t closeness;  // the sum of kUnit / distance
};

/// Calls meet(item, partner, distance) for the meetings in a history of the items in a range.
template <typename Meet>
void for_each_meeting(std::span<const int32_t> history, int64_t window, IndexRange items,
                      const Meet& meet) {
  const auto length = static_cast<int64_t>(history.size());
  for (int64_t i = 0; i < length; ++i) {
    const int32_t item = history[i];
    if (item < items.begin || item >= items.end) continue;
    const int64_t end = std::min(length, i + window + 1);
    for (int64_t j = std::max<int64_t>(0, i - window); j < end; ++j) {
      if (history[j] != item) meet(item, history[j], std::abs(i - j));
    }
  }
}

/// Adds up meetings of the same pair, whenever they have become many.
class MeetingCounter {
 public:
  explicit MeetingCounter(size_t max_meetings) : max_meetings_(max_meetings) {}

  void add(const Meeting& meeting) {
    if (meetings_.size() >= max_meetings_) {
      combine();
      max_meetings_ = std::max(max_meetings_, 2 * meetings_.size());
    }
    meetings_.push_back(meeting);
  }
  /// By item, then by partner, each pair once.
  std::vector<Meeting> finish() {
    combine();
    return std::move(meetings_);
  }

 private:
  void combine() {
    std::sort(meetings_.begin(), meetings_.end(), [](const Meeting& a, const Meeting& b) {
      return std::tie(a.item, a.partner) < std::tie(b.item, b.partner);
    });
    size_t size = 0;
    for (const Meeting& meeting : meetings_) {
      if (size > 0 && meetings_[size - 1].item == meeting.item &&
          meetings_[size - 1].partner == meeting.partner) {
        meetings_[size - 1].count += meeting.count;
        meetings_[size - 1].closeness += meeting.closeness;
      } else {
        meetings_[size++] = meeting;
      }
    }
    meetings_.resize(size);
  }

  size_t max_meetings_;
  std::vector<Meeting> meetings_;
};

class Counting {
 public:
  Counting(const Corpus& corpus, const CoOccurrenceConfig& config, const Communicator& communicator)
      : corpus_(corpus), config_(config), communicator_(communicator), totals_(corpus.num_items()) {
    for_each_training_history(
        corpus,
        [&](std::span<const int32_t> history) {
          for_each_meeting(history, config.window, {0, corpus.num_items()},
                           [&](int32_t item, int32_t, int64_t) { ++totals_[item]; });
        },
        communicator.rank(), communicator.size());
    communicator.all_reduce(view_of(totals_), ReduceOp::kSum, Stream());
    total_ = std::accumulate(totals_.begin(), totals_.end(), int64_t{0});
  }

  CoOccurrences run(int64_t max_meetings) {
    const std::vector<int64_t> first_items = first_items_of_ranks();
    const int64_t end = first_items[communicator_.rank() + 1];
    sizes_.resize(totals_.size());
    for (int64_t begin = first_items[communicator_.rank()]; begin < end;) {
      IndexRange part{begin, begin + 1};
      int64_t meetings = totals_[begin];
      while (part.end < end && meetings + totals_[part.end] <= max_meetings) {
        meetings += totals_[part.end++];
      }
      if (meetings > 0) count_part(part, max_meetings);
      begin = part.end;
    }
    return gather(first_items);
  }

 private:
  /// [size + 1]: neighbouring items for every rank, with about as many meetings.
  std::vector<int64_t> first_items_of_ranks() const {
    std::vector<int64_t> first_items{0};
    int64_t meetings = 0, item = 0;
    for (int rank = 1; rank < communicator_.size(); ++rank) {
      const int64_t wanted = total_ / communicator_.size() * rank;
      while (item < corpus_.num_items() && meetings < wanted) meetings += totals_[item++];
      first_items.push_back(item);
    }
    first_items.push_back(corpus_.num_items());
    return first_items;
  }

  void count_part(IndexRange items, int64_t max_meetings) {
    MeetingCounter counter(max_meetings);
    for_each_training_history(corpus_, [&](std::span<const int32_t> history) {
      for_each_meeting(history, config_.window, items,
                       [&](int32_t item, int32_t partner, int64_t distance) {
                         counter.add({item, partner, 1, kUnit / distance});
                       });
    });
    const std::vector<Meeting> meetings = counter.finish();
    for (size_t begin = 0, end = 0; begin < meetings.size(); begin = end) {
      while (end < meetings.size() && meetings[end].item == meetings[begin].item) ++end;
      keep_heaviest(std::span(meetings).subspan(begin, end - begin));
    }
  }

  /// Of one item's meetings.
  void keep_heaviest(std::span<const Meeting> meetings) {
    std::vector<std::pair<float, int32_t>> partners;  // minus the weight: in the order of the list
    for (const Meeting& meeting : meetings) {
      const float weight = weight_of(meeting);
      if (meeting.count >= config_.min_count && weight > 0) {
        partners.emplace_back(-weight, meeting.partner);
      }
    }
    const auto size = std::min<int64_t>(partners.size(), config_.max_partners);
    std::partial_sort(partners.begin(), partners.begin() + size, partners.end());
    for (const auto& [minus_weight, partner] : std::span(partners).first(size)) {
      partners_.push_back(partner);
      weights_.push_back(-minus_weight);
    }
    sizes_[meetings.front().item] = size;
  }

  float weight_of(const Meeting& meeting) const {
    if (config_.weighting == "uniform") return static_cast<float>(meeting.count);
    if (config_.weighting == "inverse_distance") {
      return static_cast<float>(static_cast<double>(meeting.closeness) / kUnit);
    }
    const double by_chance = static_cast<double>(totals_[meeting.item]) *
                             static_cast<double>(totals_[meeting.partner]) /
                             static_cast<double>(total_);
    return static_cast<float>(std::log(static_cast<double>(meeting.count) / by_chance));
  }

  /// The ranks' lists, one after the other.
  CoOccurrences gather(const std::vector<int64_t>& first_items) {
    const Stream stream;
    communicator_.all_reduce(view_of(sizes_), ReduceOp::kSum, stream);
    CoOccurrences all;
    all.offsets.push_back(0);
    for (const int64_t size : sizes_) all.offsets.push_back(all.offsets.back() + size);
    all.partners.resize(all.offsets.back());
    all.weights.resize(all.offsets.back());
    for (int rank = 0; rank < communicator_.size(); ++rank) {
      const int64_t begin = all.offsets[first_items[rank]];
      const int64_t size = all.offsets[first_items[rank + 1]] - begin;
      if (size == 0) continue;
      if (rank == communicator_.rank()) {
        std::copy(partners_.begin(), partners_.end(), all.partners.begin() + begin);
        std::copy(weights_.begin(), weights_.end(), all.weights.begin() + begin);
      }
      communicator_.broadcast(view_of(all.partners.data() + begin, {size}), rank, stream);
      communicator_.broadcast(view_of(all.weights.data() + begin, {size}), rank, stream);
    }
    return all;
  }

  const Corpus& corpus_;
  const CoOccurrenceConfig& config_;
  const Communicator& communicator_;
  std::vector<int64_t> totals_;  // [num_items] meetings of each item
  int64_t total_ = 0;            // of all

  // This rank's lists.
  std::vector<int64_t> sizes_;  // [num_items], 0 for others' items
  std::vector<int32_t> partners_;
  std::vector<float> weights_;
};

}  // namespace

int32_t CoOccurrences::draw(int64_t item, double uniform) const {
  const int64_t begin = offsets[item], end = offsets[item + 1];
  if (begin == end) return -1;
  double rest = uniform * std::accumulate(weights.begin() + begin, weights.begin() + end, 0.0);
  int64_t i = begin;
  while (i + 1 < end && rest >= weights[i]) rest -= weights[i++];
  return partners[i];
}

void CoOccurrenceConfig::visit(ConfigFields& fields) {
  fields.field("window", window, "items of one user meet if they are at most so many events apart");
  fields.field("weighting", weighting,
               "weight of a pair: 'uniform' (how often they meet), 'inverse_distance', or 'pmi' "
               "(pointwise mutual information, where it is positive)");
  fields.field("max_partners", max_partners, "heaviest partners that an item keeps");
  fields.field("min_count", min_count, "pairs that meet less often do not count");
}

void CoOccurrenceConfig::check() const {
  MIRABELLE_CHECK_USAGE(window > 0 && window <= kUnit, "co_occurrence.window must be from 1 to ",
                        kUnit, ", not ", window);
  MIRABELLE_CHECK_USAGE(
      weighting == "uniform" || weighting == "inverse_distance" || weighting == "pmi",
      "co_occurrence.weighting must be 'uniform', 'inverse_distance' or 'pmi', not '", weighting,
      "'");
  MIRABELLE_CHECK_USAGE(max_partners > 0, "co_occurrence.max_partners must be positive, not ",
                        max_partners);
  MIRABELLE_CHECK_USAGE(min_count > 0, "co_occurrence.min_count must be positive, not ", min_count);
}

CoOccurrences count_co_occurrences(const Corpus& corpus, const CoOccurrenceConfig& config,
                                   const Communicator& communicator, int64_t max_meetings) {
  return Counting(corpus, config, communicator).run(max_meetings);
}

}  // namespace mirabelle
