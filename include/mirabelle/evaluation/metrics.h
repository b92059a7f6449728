#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "mirabelle/comm/communicator.h"

namespace mirabelle {

/// The rank of a target that is not in the list.
inline constexpr double kNotRanked = 1e18;

/// The rank of each target in a list that is sorted best first: 1 is the best, kNotRanked is
/// absent. The list's own order breaks all ties.
std::vector<double> target_ranks(std::span<const int32_t> ranked_items,
                                 std::span<const int32_t> targets);

/// The rank of an item with `num_better` items above it and `num_equal` others of the same score:
/// equal scores share their mean rank, which may be a half.
inline double shared_rank(int64_t num_better, int64_t num_equal) {
  return 1 + static_cast<double>(num_better) + static_cast<double>(num_equal) / 2;
}

/// The names of a user's figures for list lengths K = 5, 10: recall@5, hit_rate@5, ndcg@5,
/// recall@10, hit_rate@10, ndcg@10, mrr.
std::vector<std::string> figure_names(std::span<const int64_t> top_k);

/// One user's figures, in the order of figure_names, from the ranks of all of the user's targets.
/// A target is in the first K if its rank is below K + 1, so that a shared rank of 10.5 counts: its
/// position, counted from 0, is below 10.
///
///   recall@K    = targets in the first K / targets
///   hit_rate@K  = 1 if any target is in the first K
///   ndcg@K      = sum over targets in the first K of 1 / log2(1 + rank)
///                 / sum over r = 1 .. min(K, targets) of 1 / log2(1 + r)
///   mrr         = 1 / best rank, 0 if no target is in the first `list_length`
///
/// All are 0 without targets; such users should not be counted.
std::vector<double> user_figures(std::span<const double> ranks, std::span<const int64_t> top_k,
                                 int64_t list_length);

/// The figures of many users.
struct FigureTable {
  int64_t num_figures = 0;
  std::vector<int64_t> users;  ///< global indices, any order
  std::vector<double> values;  ///< [users.size(), num_figures], each in [0, 1]

  void add(int64_t user, std::span<const double> figures);
};

/// A mean over users, and the interval that holds the mean of 95 % of the resampled populations.
struct Figure {
  double mean = 0;
  double low = 0;
  double high = 0;
};

/// The mean of every figure over the users of all ranks, with percentile intervals by a Poisson
/// bootstrap (Chamandy et al. 2012, "Estimating uncertainty for massive data streams"): in sample s
/// user u counts Poisson(1) times, drawn from (seed, u, s). Two tables of the same users are so
/// resampled alike. Values are added as multiples of 2^-36 in integers, so the result does not
/// depend on the order or on which rank holds which user. With 0 samples the interval is the mean.
/// Runs on `communicator`; the result is the same on every rank. Throws above 2^26 users.
std::vector<Figure> summarise(const FigureTable& table, int64_t num_samples, int64_t seed,
                              const Communicator& communicator);

/// Like summarise, of the differences `a - b`: the tables list the same users in the same order.
std::vector<Figure> summarise_difference(const FigureTable& a, const FigureTable& b,
                                         int64_t num_samples, int64_t seed,
                                         const Communicator& communicator);

/// Popularity bands by counts in the training parts. Items are taken from the most frequent; an
/// item is in the head while all items counted more often hold less than a third of the training
/// events, in the torso up to two thirds, else in the tail; so equal counts are never parted. Items
/// without a training event are unseen.
enum class Band : uint8_t { kHead, kTorso, kTail, kUnseen };
inline constexpr int kNumBands = 4;
const char* to_string(Band band);
std::vector<Band> popularity_bands(std::span<const int64_t> training_counts);

}  // namespace mirabelle
