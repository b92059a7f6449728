#include "mirabelle/evaluation/metrics.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>

#include "mirabelle/core/error.h"
#include "mirabelle/core/random.h"

namespace mirabelle {
namespace {

constexpr double kFixedPoint = 68719476736.0;  // 2^36
constexpr int64_t kMaxUsers = int64_t{1} << 26;

/// P(Poisson(1) <= n) * 2^32, rounded; beyond 11 nothing is left of 2^32.
const std::array<uint64_t, 12>& poisson_thresholds() {
  static const std::array<uint64_t, 12> thresholds = [] {
    std::array<uint64_t, 12> result{};
    double probability = std::exp(-1.0), sum = 0;
    for (size_t n = 0; n < result.size(); ++n) {
      sum += probability;
      result[n] = static_cast<uint64_t>(std::llround(std::min(sum, 1.0) * 4294967296.0));
      probability /= static_cast<double>(n + 1);
    }
    return result;
  }();
  return thresholds;
}

int64_t poisson(uint32_t bits) {
  int64_t count = 0;
  for (uint64_t threshold : poisson_thresholds()) {
    if (bits < threshold) break;
    ++count;
  }
  return count;
}

/// sums [num_samples, num_figures + 1]: of the values and of the weights, of this rank's users.
/// Sample 0 is the population itself, sample s > 0 a resampling.
std::vector<int64_t> weighted_sums(const FigureTable& table, int64_t num_samples, int64_t seed) {
  const int64_t width = table.num_figures + 1;
  const int64_t num_users = static_cast<int64_t>(table.users.size());
  std::vector<int64_t> fixed(table.values.size());
  std::transform(table.values.begin(), table.values.end(), fixed.begin(),
                 [](double value) { return std::llround(value * kFixedPoint); });
  std::vector<int64_t> sums((num_samples + 1) * width);
  const auto add = [&](int64_t sample, int64_t user, int64_t weight) {
    int64_t* sum = sums.data() + sample * width;
    for (int64_t f = 0; f < table.num_figures; ++f) {
      sum[f] += weight * fixed[user * table.num_figures + f];
    }
    sum[table.num_figures] += weight;
  };
  for (int64_t user = 0; user < num_users; ++user) add(0, user, 1);

  const uint64_t key = random_key(static_cast<uint64_t>(seed), "bootstrap");
  const int64_t num_draws = (num_samples + 3) / 4;  // one Philox call serves four samples
#pragma omp parallel for schedule(static)
  for (int64_t draw = 0; draw < num_draws; ++draw) {
    for (int64_t user = 0; user < num_users; ++user) {
      const auto index = static_cast<uint64_t>(table.users[user]);
      const PhiloxCounter bits =
          philox(key, {static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32),
                       static_cast<uint32_t>(draw), 0});
      for (int64_t s = 4 * draw; s < std::min(4 * draw + 4, num_samples); ++s) {
        const int64_t weight = poisson(bits[s % 4]);
        if (weight > 0) add(s + 1, user, weight);
      }
    }
  }
  return sums;
}

/// The value below which the fraction `quantile` of the ascending values lies, interpolated.
double quantile_of(const std::vector<double>& ascending, double quantile) {
  const double position = quantile * static_cast<double>(ascending.size() - 1);
  const auto below = static_cast<size_t>(position);
  const size_t above = std::min(below + 1, ascending.size() - 1);
  return std::lerp(ascending[below], ascending[above], position - static_cast<double>(below));
}

}  // namespace

std::vector<double> target_ranks(std::span<const int32_t> ranked_items,
                                 std::span<const int32_t> targets) {
  std::vector<double> ranks;
  for (int32_t target : targets) {
    const auto place = std::find(ranked_items.begin(), ranked_items.end(), target);
    ranks.push_back(place == ranked_items.end()
                        ? kNotRanked
                        : 1 + static_cast<double>(place - ranked_items.begin()));
  }
  return ranks;
}

std::vector<std::string> figure_names(std::span<const int64_t> top_k) {
  std::vector<std::string> names;
  for (int64_t k : top_k) {
    for (const char* name : {"recall@", "hit_rate@", "ndcg@"}) {
      names.push_back(name + std::to_string(k));
    }
  }
  names.push_back("mrr");
  return names;
}

std::vector<double> user_figures(std::span<const double> ranks, std::span<const int64_t> top_k,
                                 int64_t list_length) {
  std::vector<double> figures;
  for (int64_t k : top_k) {
    double hits = 0, gain = 0, ideal_gain = 0;
    for (double rank : ranks) {
      if (rank >= static_cast<double>(k + 1)) continue;
      hits += 1;
      gain += 1 / std::log2(1 + rank);
    }
    const int64_t num_ideal = std::min<int64_t>(k, static_cast<int64_t>(ranks.size()));
    for (int64_t r = 1; r <= num_ideal; ++r)
      ideal_gain += 1 / std::log2(1.0 + static_cast<double>(r));
    figures.push_back(ranks.empty() ? 0 : hits / static_cast<double>(ranks.size()));
    figures.push_back(hits > 0 ? 1 : 0);
    // Clamped, for more than K targets may share a rank that is among the first K.
    figures.push_back(ideal_gain > 0 ? std::min(1.0, gain / ideal_gain) : 0);
  }
  const double best = ranks.empty() ? kNotRanked : *std::min_element(ranks.begin(), ranks.end());
  figures.push_back(best < static_cast<double>(list_length + 1) ? 1 / best : 0);
  return figures;
}

void FigureTable::add(int64_t user, std::span<const double> figures) {
  MIRABELLE_CHECK(static_cast<int64_t>(figures.size()) == num_figures, "a table of ", num_figures,
                  " figures got a row of ", figures.size());
  users.push_back(user);
  values.insert(values.end(), figures.begin(), figures.end());
}

std::vector<Figure> summarise(const FigureTable& table, int64_t num_samples, int64_t seed,
                              const Communicator& communicator) {
  const int64_t width = table.num_figures + 1;
  std::vector<int64_t> sums = weighted_sums(table, num_samples, seed);
  communicator.all_reduce(view_of(sums.data(), {num_samples + 1, width}), ReduceOp::kSum, Stream());
  const int64_t num_users = sums[table.num_figures];
  MIRABELLE_CHECK(num_users <= kMaxUsers, "at most ", kMaxUsers, " users can be summed, not ",
                  num_users, "; set evaluation.max_users");
  std::vector<Figure> figures(table.num_figures);
  if (num_users == 0) return figures;
  const auto mean = [&](int64_t sample, int64_t f) {
    const int64_t* sum = sums.data() + sample * width;
    return static_cast<double>(sum[f]) / kFixedPoint / static_cast<double>(sum[table.num_figures]);
  };
  for (int64_t f = 0; f < table.num_figures; ++f) {
    std::vector<double> means;
    for (int64_t sample = 1; sample <= num_samples; ++sample) {
      if (sums[sample * width + table.num_figures] > 0) means.push_back(mean(sample, f));
    }
    std::sort(means.begin(), means.end());
    figures[f].mean = mean(0, f);
    figures[f].low = means.empty() ? figures[f].mean : quantile_of(means, 0.025);
    figures[f].high = means.empty() ? figures[f].mean : quantile_of(means, 0.975);
  }
  return figures;
}

std::vector<Figure> summarise_difference(const FigureTable& a, const FigureTable& b,
                                         int64_t num_samples, int64_t seed,
                                         const Communicator& communicator) {
  MIRABELLE_CHECK(a.users == b.users && a.num_figures == b.num_figures,
                  "the difference of figures wants the same users in both tables");
  FigureTable difference = a;
  for (size_t i = 0; i < difference.values.size(); ++i) difference.values[i] -= b.values[i];
  return summarise(difference, num_samples, seed, communicator);
}

const char* to_string(Band band) {
  switch (band) {
    case Band::kHead:
      return "head";
    case Band::kTorso:
      return "torso";
    case Band::kTail:
      return "tail";
    case Band::kUnseen:
      return "unseen";
  }
  return "unknown";
}

std::vector<Band> popularity_bands(std::span<const int64_t> training_counts) {
  std::vector<int64_t> order(training_counts.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return training_counts[a] > training_counts[b]; });
  const int64_t total = std::accumulate(training_counts.begin(), training_counts.end(), int64_t{0});
  std::vector<Band> bands(training_counts.size());
  int64_t more_frequent = 0;  // events of all items counted more often than the current one
  for (size_t i = 0; i < order.size();) {
    const int64_t count = training_counts[order[i]];
    const Band band = count == 0                      ? Band::kUnseen
                      : 3 * more_frequent < total     ? Band::kHead
                      : 3 * more_frequent < 2 * total ? Band::kTorso
                                                      : Band::kTail;
    for (; i < order.size() && training_counts[order[i]] == count; ++i) {
      bands[order[i]] = band;
      more_frequent += count;
    }
  }
  return bands;
}

}  // namespace mirabelle
