#include "mirabelle/tokenizer/collisions.h"

#include <cmath>
#include <limits>
#include <numeric>
#include <tuple>

#include "mirabelle/kernels/nearest_code.h"

namespace mirabelle {
namespace {

constexpr int64_t kMaxDistances = 1 << 27;  // held at a time: half a GiB

/// Items of some prefixes, prefix by prefix.
struct PrefixGroups {
  std::vector<int64_t> offsets{0};
  std::vector<int32_t> items;

  int64_t size() const { return static_cast<int64_t>(offsets.size()) - 1; }
  std::span<const int32_t> group(int64_t i) const {
    return std::span(items).subspan(offsets[i], offsets[i + 1] - offsets[i]);
  }
};

/// The prefixes of which some last code has more than max_items(number of items) items.
template <typename MaxItems>
PrefixGroups crowded_prefixes(const CodeRows& codes, int64_t codebook_size,
                              const MaxItems& max_items) {
  PrefixGroups crowded;
  std::vector<int64_t> counts(codebook_size);
  for_each_group(codes, codes.num_levels - 1, [&](std::span<const int32_t> items) {
    int64_t most = 0;
    for (const int32_t item : items) most = std::max(most, ++counts[codes.row(item).back()]);
    for (const int32_t item : items) counts[codes.row(item).back()] = 0;
    if (most <= max_items(static_cast<int64_t>(items.size()))) return;
    crowded.items.insert(crowded.items.end(), items.begin(), items.end());
    crowded.offsets.push_back(static_cast<int64_t>(crowded.items.size()));
  });
  return crowded;
}

/// Squared distances [items.size(), codebook.size].
std::vector<float> distances_to_codes(std::span<const int32_t> items, const LastLevel& last) {
  const auto& [codebook, residuals, batch_items] = last;
  const int64_t size = codebook.size, dim = codebook.dim;
  std::vector<float> distances(items.size() * size), rows;
  const std::vector<int32_t> only_row(size);  // kernels see an item as a codebook of one row
  const TensorView codes = view_of(codebook.rows.data(), {size, dim});
  std::vector<int64_t> order(items.size());
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return items[a] < items[b]; });
  for (size_t begin = 0, end = 0; begin < order.size(); begin = end) {
    const int64_t first = items[order[begin]];
    while (end < order.size() && items[order[end]] < first + batch_items) ++end;
    const int64_t num_rows = items[order[end - 1]] + 1 - first;
    rows.resize(num_rows * dim);
    residuals.read(first, first + num_rows, rows.data());
#pragma omp parallel for schedule(static)
    for (size_t i = begin; i < end; ++i) {
      const float* row = rows.data() + (items[order[i]] - first) * dim;
      code_distances(view_of(distances.data() + order[i] * size, {size}), codes, view_of(only_row),
                     view_of(row, {1, dim}), Stream());
    }
  }
  return distances;
}

/// Gives the items of every group new last codes: choose(items, distances, last_codes), the codes
/// being in the order of the items, and to be changed.
template <typename Choose>
void choose_last_codes(std::vector<int32_t>& codes, int64_t num_levels, const PrefixGroups& groups,
                       const LastLevel& last, const Communicator& communicator,
                       const Choose& choose) {
  if (groups.size() == 0) return;
  const int64_t num_items = static_cast<int64_t>(codes.size()) / num_levels;
  const int64_t size = last.codebook.size;
  const int64_t max_distances =
      std::min(kMaxDistances, groups.offsets.back() * size / communicator.size() + 1);
  std::vector<int32_t> moved(num_items);  // by how many codes
  int64_t part = 0;
  for (int64_t begin = 0, end = 0; begin < groups.size(); begin = end, ++part) {
    const int64_t first = groups.offsets[begin];
    do {
      ++end;
    } while (end < groups.size() && (groups.offsets[end + 1] - first) * size <= max_distances);
    if (part % communicator.size() != communicator.rank()) continue;
    const auto items = std::span(groups.items).subspan(first, groups.offsets[end] - first);
    const std::vector<float> distances = distances_to_codes(items, last);
#pragma omp parallel for schedule(dynamic)
    for (int64_t group = begin; group < end; ++group) {
      const std::span<const int32_t> members = groups.group(group);
      std::vector<int32_t> last_codes;
      for (const int32_t item : members) {
        last_codes.push_back(codes[(item + 1) * num_levels - 1]);
      }
      choose(members, distances.data() + (groups.offsets[group] - first) * size, last_codes);
      for (size_t i = 0; i < members.size(); ++i) {
        moved[members[i]] = last_codes[i] - codes[(members[i] + 1) * num_levels - 1];
      }
    }
  }
  communicator.all_reduce(view_of(moved), ReduceOp::kSum, Stream());
  for (int64_t item = 0; item < num_items; ++item) {
    codes[(item + 1) * num_levels - 1] += moved[item];
  }
}

/// Sinkhorn's iterations between n items and codes of limited capacity. prices [size] (of at least
/// 0, in the unit of the distances) is where they start and end; plan [n, size] becomes the
/// logarithms of the transport plan.
void improve_plan(std::vector<double>& plan, std::vector<double>& prices, const float* distances,
                  int64_t n, int64_t capacity, double epsilon) {
  constexpr int64_t kMaxIterations = 100;
  constexpr double kTolerance = 1e-2;  // of price / epsilon
  const auto size = static_cast<int64_t>(prices.size());
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < size; ++j) {
      plan[i * size + j] = -(distances[i * size + j] + prices[j]) / epsilon;
    }
  }
  std::vector<double> highest(size), sums(size);
  double change = kTolerance;
  for (int64_t iteration = 0; iteration < kMaxIterations && change >= kTolerance; ++iteration) {
    std::fill(highest.begin(), highest.end(), -std::numeric_limits<double>::infinity());
    std::fill(sums.begin(), sums.end(), 0.0);
    for (int64_t i = 0; i < n; ++i) {  // the row of an item sums up to 1
      double* row = plan.data() + i * size;
      const double most = *std::max_element(row, row + size);
      double sum = 0;
      for (int64_t j = 0; j < size; ++j) sum += std::exp(row[j] - most);
      const double log_sum = most + std::log(sum);
      for (int64_t j = 0; j < size; ++j) {
        row[j] -= log_sum;
        highest[j] = std::max(highest[j], row[j]);
      }
    }
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = 0; j < size; ++j) sums[j] += std::exp(plan[i * size + j] - highest[j]);
    }
    // The column of a code sums up to its capacity at most; a code with room to spare costs
    // nothing.
    change = 0;
    for (int64_t j = 0; j < size; ++j) {
      const double excess = highest[j] + std::log(sums[j] / static_cast<double>(capacity));
      const double step = std::max(excess, -prices[j] / epsilon);
      prices[j] = std::max(0.0, prices[j] + step * epsilon);
      change = std::max(change, std::abs(step));
      for (int64_t i = 0; i < n; ++i) plan[i * size + j] -= step;
    }
  }
}

/// Prices found at a high temperature start the next lower one, which alone would take very long.
std::vector<double> transport_plan(const float* distances, int64_t n, int64_t size,
                                   int64_t capacity, double temperature) {
  const double mean =
      std::accumulate(distances, distances + n * size, 0.0) / static_cast<double>(n * size);
  const double unit = mean > 0 ? mean : 1;
  std::vector<double> plan(n * size), prices(size);
  for (double higher = 1; higher > temperature; higher /= 2) {
    improve_plan(plan, prices, distances, n, capacity, higher * unit);
  }
  improve_plan(plan, prices, distances, n, capacity, temperature * unit);
  return plan;
}

}  // namespace

bool is_collision_rule(const std::string& name) {
  return name == "disambiguation_code" || name == "nearest_free" || name == "balanced" ||
         name == "shared" || name == "item_code";
}

ItemRows residuals_before_last(const ItemRows& rows, const std::vector<Codebook>& codebooks,
                               const std::vector<int32_t>& codes) {
  const auto read = [&](int64_t begin, int64_t end, float* out) {
    const int64_t n = end - begin, num_levels = static_cast<int64_t>(codebooks.size());
    rows.read(begin, end, out);
    std::vector<int32_t> level_codes(n);
    for (int64_t level = 0; level + 1 < num_levels; ++level) {
      for (int64_t i = 0; i < n; ++i) level_codes[i] = codes[(begin + i) * num_levels + level];
      const Codebook& codebook = codebooks[level];
      subtract_code(view_of(out, {n, rows.dim}), view_of(level_codes),
                    view_of(codebook.rows.data(), {codebook.size, codebook.dim}), Stream());
    }
  };
  return {rows.num_items, rows.dim, read};
}

void move_to_nearest_free(std::vector<int32_t>& codes, int64_t num_levels,
                          const std::vector<bool>& fixed, const LastLevel& last,
                          const Communicator& communicator) {
  const int64_t size = last.codebook.size;
  const PrefixGroups groups =
      crowded_prefixes({codes, num_levels}, size, [](int64_t) { return int64_t{1}; });
  choose_last_codes(
      codes, num_levels, groups, last, communicator,
      [&](std::span<const int32_t> items, const float* distances, std::vector<int32_t>& chosen) {
        const auto may_move = [&](int64_t i) { return fixed.empty() || !fixed[items[i]]; };
        std::vector<std::tuple<bool, float, int64_t>> claims;
        for (int64_t i = 0; i < static_cast<int64_t>(items.size()); ++i) {
          claims.emplace_back(may_move(i), distances[i * size + chosen[i]], i);
        }
        std::sort(claims.begin(), claims.end());
        std::vector<bool> taken(size);
        std::vector<int64_t> homeless;
        for (const auto& [movable, distance, i] : claims) {
          if (movable && taken[chosen[i]]) homeless.push_back(i);
          taken[chosen[i]] = true;
        }
        for (const int64_t i : homeless) {
          int64_t nearest = -1;
          for (int64_t code = 0; code < size; ++code) {
            const bool nearer =
                nearest < 0 || distances[i * size + code] < distances[i * size + nearest];
            if (!taken[code] && nearer) nearest = code;
          }
          if (nearest < 0) break;
          taken[nearest] = true;
          chosen[i] = static_cast<int32_t>(nearest);
        }
      });
}

void balance_last_level(std::vector<int32_t>& codes, int64_t num_levels, double temperature,
                        const LastLevel& last, const Communicator& communicator) {
  const int64_t size = last.codebook.size;
  const auto capacity_for = [&](int64_t n) { return (n + size - 1) / size; };
  const PrefixGroups groups = crowded_prefixes({codes, num_levels}, size, capacity_for);
  choose_last_codes(
      codes, num_levels, groups, last, communicator,
      [&](std::span<const int32_t> items, const float* distances, std::vector<int32_t>& chosen) {
        const auto n = static_cast<int64_t>(items.size());
        const std::vector<double> plan =
            transport_plan(distances, n, size, capacity_for(n), temperature);
        std::vector<int64_t> pairs(plan.size());
        std::iota(pairs.begin(), pairs.end(), 0);
        std::stable_sort(pairs.begin(), pairs.end(),
                         [&](int64_t a, int64_t b) { return plan[a] > plan[b]; });
        std::vector<int64_t> room(size, capacity_for(n));
        std::fill(chosen.begin(), chosen.end(), -1);
        for (const int64_t pair : pairs) {
          const int64_t i = pair / size, code = pair % size;
          if (chosen[i] >= 0 || room[code] == 0) continue;
          chosen[i] = static_cast<int32_t>(code);
          --room[code];
        }
      });
}

void number_items(std::vector<int32_t>& numbers, const CodeRows& codes) {
  for_each_group(codes, codes.num_levels, [&](std::span<const int32_t> items) {
    int32_t next = 0;
    for (const int32_t item : items) next = std::max(next, numbers[item] + 1);
    for (const int32_t item : items) {
      if (numbers[item] < 0) numbers[item] = next++;
    }
  });
}

std::vector<int32_t> append_level(const CodeRows& codes, const std::vector<int32_t>& numbers) {
  std::vector<int32_t> result;
  result.reserve(codes.codes.size() + numbers.size());
  for (int64_t item = 0; item < codes.num_items(); ++item) {
    const auto row = codes.row(item);
    result.insert(result.end(), row.begin(), row.end());
    result.push_back(numbers[item]);
  }
  return result;
}

int64_t disambiguation_level_size(int64_t largest_group) {
  return std::max<int64_t>(8, (2 * largest_group + 7) / 8 * 8);
}

std::vector<int32_t> priorities_of(const CodeRows& codes, const std::vector<int64_t>& popularity) {
  std::vector<int32_t> priorities(codes.num_items()), by_popularity;
  for_each_group(codes, codes.num_levels, [&](std::span<const int32_t> items) {
    by_popularity.assign(items.begin(), items.end());
    std::stable_sort(by_popularity.begin(), by_popularity.end(),
                     [&](int32_t a, int32_t b) { return popularity[a] > popularity[b]; });
    for (size_t i = 0; i < items.size(); ++i) {
      priorities[by_popularity[i]] = static_cast<int32_t>(i);
    }
  });
  return priorities;
}

}  // namespace mirabelle
