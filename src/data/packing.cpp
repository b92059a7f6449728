#include "mirabelle/data/packing.h"

#include <algorithm>
#include <functional>
#include <numeric>
#include <queue>
#include <utility>

#include "mirabelle/core/error.h"

namespace mirabelle {
namespace {

/// Sequences beyond a group's own that may fill its gaps. Without them groups of one or two parts
/// are emptier than by first fit; more change nothing.
constexpr size_t kFillers = 256;

/// Parts that first fit fills at a time. Enough that short sequences find the gaps of long ones.
constexpr size_t kOpenParts = 16;

int64_t ceil_divide(int64_t a, int64_t b) { return (a + b - 1) / b; }

void check_lengths(std::span<const int64_t> lengths, int64_t part_budget) {
  for (const int64_t length : lengths) {
    MIRABELLE_CHECK(0 < length && length <= part_budget, "a sequence of length ", length,
                    " does not go into parts of 1 to ", part_budget);
  }
}

/// Parts that are being filled together. Placing costs O(log parts) on average over sequences that
/// come longest first: only a part that took one changes its place among the full ones.
class PartGroup {
 public:
  PartGroup(int64_t num_parts, int64_t part_budget)
      : parts_(num_parts), room_(num_parts, part_budget), squares_(num_parts) {
    for (int64_t part = 0; part < num_parts; ++part) open_.push({0, part});
  }

  /// Into the part with the least sum of squares that has room; false if none has.
  bool place(int64_t sequence, int64_t length) {
    for (; !full_.empty() && full_.top().first >= length; full_.pop()) {
      const int64_t part = full_.top().second;
      open_.push({squares_[part], part});
    }
    for (; !open_.empty() && room_[open_.top().second] < length; open_.pop()) {
      const int64_t part = open_.top().second;
      full_.push({room_[part], part});
    }
    if (open_.empty()) return false;
    const int64_t part = open_.top().second;
    open_.pop();
    parts_[part].push_back(sequence);
    room_[part] -= length;
    squares_[part] += length * length;
    open_.push({squares_[part], part});
    return true;
  }

  /// In an order in which neighbours differ: ranks that take neighbouring parts have equal work.
  std::vector<std::vector<int64_t>> take_parts() {
    std::vector<int64_t> heaviest_first(parts_.size());
    std::iota(heaviest_first.begin(), heaviest_first.end(), 0);
    std::stable_sort(heaviest_first.begin(), heaviest_first.end(),
                     [&](int64_t a, int64_t b) { return squares_[a] > squares_[b]; });
    std::vector<std::vector<int64_t>> parts;
    for (const int64_t part : halves_alike(heaviest_first))
      parts.push_back(std::move(parts_[part]));
    return parts;
  }

 private:
  /// Deals `sorted` out to two halves in turns (first, second, second, first, ...), and each half
  /// in itself likewise.
  static std::vector<int64_t> halves_alike(const std::vector<int64_t>& sorted) {
    if (sorted.size() < 2) return sorted;
    std::vector<int64_t> halves[2];
    for (size_t i = 0; i < sorted.size(); ++i) halves[(i + 1) / 2 % 2].push_back(sorted[i]);
    std::vector<int64_t> order = halves_alike(halves[0]);
    const std::vector<int64_t> second = halves_alike(halves[1]);
    order.insert(order.end(), second.begin(), second.end());
    return order;
  }

  using Entry = std::pair<int64_t, int64_t>;  // its key, a part
  std::vector<std::vector<int64_t>> parts_;
  std::vector<int64_t> room_, squares_;
  std::priority_queue<Entry, std::vector<Entry>, std::greater<>> open_;  // least squares first
  std::priority_queue<Entry> full_;  // had no room for some sequence; most room first
};

class Packer {
 public:
  Packer(std::span<const int64_t> lengths, int64_t part_budget, int64_t parts_per_group)
      : lengths_(lengths),
        part_budget_(part_budget),
        parts_per_group_(parts_per_group),
        is_placed_(lengths.size()) {}

  std::vector<std::vector<int64_t>> pack() {
    std::vector<std::vector<int64_t>> parts;
    while (reach(0)) {
      for (auto& part : next_group().take_parts()) parts.push_back(std::move(part));
      std::erase_if(waiting_, [&](int64_t sequence) { return is_placed_[sequence]; });
    }
    return parts;
  }

 private:
  PartGroup next_group() {
    size_t taken = 0;
    int64_t total = 0;
    while (reach(taken) && total + lengths_[waiting_[taken]] <= parts_per_group_ * part_budget_) {
      total += lengths_[waiting_[taken++]];
    }
    if (!reach(taken)) return last_group(total);
    PartGroup group(parts_per_group_, part_budget_);
    deal(group, 0, taken);
    size_t end = taken;
    while (end < taken + kFillers && reach(end)) ++end;
    deal(group, taken, end);
    return group;
  }

  /// All that is waiting, in as few parts as hold it; or a full group, if some of it does not fit.
  PartGroup last_group(int64_t total) {
    int64_t num_parts = 0;
    for (int64_t left = total;;) {
      num_parts = std::min(parts_per_group_, num_parts + ceil_divide(left, part_budget_));
      PartGroup group(num_parts, part_budget_);
      left = deal(group, 0, waiting_.size());
      if (left == 0 || num_parts == parts_per_group_) return group;
    }
  }

  /// Deals out the waiting sequences [begin, end), and returns the length of what found no room.
  int64_t deal(PartGroup& group, size_t begin, size_t end) {
    std::vector<int64_t> longest_first(waiting_.begin() + begin, waiting_.begin() + end);
    std::stable_sort(longest_first.begin(), longest_first.end(),
                     [&](int64_t a, int64_t b) { return lengths_[a] > lengths_[b]; });
    int64_t left = 0;
    for (const int64_t sequence : longest_first) {
      is_placed_[sequence] = group.place(sequence, lengths_[sequence]);
      if (!is_placed_[sequence]) left += lengths_[sequence];
    }
    return left;
  }

  /// Whether there is a waiting_[position]; reads the next sequence if that is the one.
  bool reach(size_t position) {
    if (position == waiting_.size() && next_ < static_cast<int64_t>(lengths_.size())) {
      waiting_.push_back(next_++);
    }
    return position < waiting_.size();
  }

  std::span<const int64_t> lengths_;
  int64_t part_budget_, parts_per_group_;
  int64_t next_ = 0;              // the first sequence that was not looked at yet
  std::vector<int64_t> waiting_;  // earlier ones that are in no part, in their order
  std::vector<bool> is_placed_;
};

}  // namespace

std::vector<std::vector<int64_t>> pack_parts(std::span<const int64_t> lengths, int64_t part_budget,
                                             int64_t parts_per_group) {
  MIRABELLE_CHECK(parts_per_group > 0, "wanted a positive number of parts per group, got ",
                  parts_per_group);
  check_lengths(lengths, part_budget);
  return Packer(lengths, part_budget, parts_per_group).pack();
}

std::vector<std::vector<int64_t>> pack_first_fit(std::span<const int64_t> lengths,
                                                 int64_t part_budget) {
  check_lengths(lengths, part_budget);
  struct OpenPart {
    std::vector<int64_t> sequences;
    int64_t room;
  };
  std::vector<std::vector<int64_t>> parts;
  std::vector<OpenPart> open;
  for (size_t sequence = 0; sequence < lengths.size(); ++sequence) {
    const int64_t length = lengths[sequence];
    auto part = std::find_if(open.begin(), open.end(),
                             [&](const OpenPart& candidate) { return candidate.room >= length; });
    if (part == open.end()) {
      if (open.size() == kOpenParts) {
        parts.push_back(std::move(open.front().sequences));
        open.erase(open.begin());
      }
      part = open.insert(open.end(), {{}, part_budget});
    }
    part->sequences.push_back(static_cast<int64_t>(sequence));
    part->room -= length;
    if (part->room == 0) {
      parts.push_back(std::move(part->sequences));
      open.erase(part);
    }
  }
  for (OpenPart& part : open) parts.push_back(std::move(part.sequences));
  return parts;
}

double imbalance(std::span<const std::vector<int64_t>> parts, std::span<const int64_t> lengths,
                 int64_t parts_per_group) {
  double sum_of_ratios = 0;
  int64_t num_groups = 0;
  for (; !parts.empty(); ++num_groups) {
    const auto group = parts.first(std::min(parts.size(), static_cast<size_t>(parts_per_group)));
    double largest = 0, sum = 0;
    for (const std::vector<int64_t>& part : group) {
      double squares = 0;
      for (const int64_t sequence : part) {
        squares += static_cast<double>(lengths[sequence] * lengths[sequence]);
      }
      largest = std::max(largest, squares);
      sum += squares;
    }
    sum_of_ratios += largest * static_cast<double>(group.size()) / sum;
    parts = parts.subspan(group.size());
  }
  return num_groups == 0 ? 1 : sum_of_ratios / static_cast<double>(num_groups);
}

}  // namespace mirabelle
