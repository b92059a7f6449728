#include "mirabelle/tokenizer/residual_kmeans.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <numeric>
#include <tuple>

#include "mirabelle/core/error.h"
#include "mirabelle/core/random.h"
#include "mirabelle/kernels/nearest_code.h"
#include "mirabelle/tokenizer/canonical_sum.h"
#include "mirabelle/tokenizer/code_assigner.h"

namespace mirabelle {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

/// Calls body(begin, end) for the batches of a range, in order.
template <typename Body>
void for_each_batch(IndexRange range, int64_t batch_items, const Body& body) {
  for (int64_t begin = range.begin; begin < range.end; begin += batch_items) {
    body(begin, std::min(begin + batch_items, range.end));
  }
}

/// Column means of (x - center)^power; power 1 or 2.
std::vector<double> column_means(const ItemRows& rows, const std::vector<double>& center, int power,
                                 int64_t batch_items, const Communicator& communicator) {
  std::vector<float> batch;
  CanonicalSum sum(communicator);
  for (int64_t chunk = sum.chunks().begin; chunk < sum.chunks().end; ++chunk) {
    std::vector<double> sums(rows.dim);
    for_each_batch(CanonicalSum::items(chunk, rows.num_items), batch_items,
                   [&](int64_t begin, int64_t end) {
                     batch.resize((end - begin) * rows.dim);
                     rows.read(begin, end, batch.data());
                     for (size_t i = 0; i < batch.size(); i += rows.dim) {
                       for (int64_t j = 0; j < rows.dim; ++j) {
                         const double difference = batch[i + j] - center[j];
                         sums[j] += power == 1 ? difference : difference * difference;
                       }
                     }
                   });
    sum.add(std::move(sums));
  }
  std::vector<double> means = sum.finish();
  for (double& mean : means) mean /= static_cast<double>(rows.num_items);
  return means;
}

// --- the start --------------------------------------------------------------------------------

/// `count` items spread over the whole: one at random from each of `count` equal ranges. Ascending.
std::vector<int64_t> draw_sample(int64_t num_items, int64_t count, int64_t seed) {
  Random random(random_key(static_cast<uint64_t>(seed), "tokenizer sample"));
  std::vector<int64_t> items(count);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t begin = num_items * i / count, end = num_items * (i + 1) / count;
    items[i] = begin + random.below(end - begin);
  }
  return items;
}

/// Rows of ascending items. Near ones are read together, with what lies between them.
std::vector<float> read_items(const ItemRows& rows, const std::vector<int64_t>& items,
                              int64_t batch_items) {
  constexpr int64_t kNear = 64;
  std::vector<float> result(items.size() * rows.dim), batch;
  for (size_t first = 0; first < items.size();) {
    size_t last = first;
    while (last + 1 < items.size() && items[last + 1] - items[last] <= kNear &&
           items[last + 1] - items[first] < batch_items) {
      ++last;
    }
    batch.resize((items[last] - items[first] + 1) * rows.dim);
    rows.read(items[first], items[last] + 1, batch.data());
    for (size_t i = first; i <= last; ++i) {
      const float* row = batch.data() + (items[i] - items[first]) * rows.dim;
      std::copy_n(row, rows.dim, result.data() + i * rows.dim);
    }
    first = last + 1;
  }
  return result;
}

/// k-means++ (Arthur & Vassilvitskii 2007): each further row is drawn with a probability in
/// proportion to its squared distance from the nearest row so far. Ends early when no row has any.
Codebook draw_far_apart(const std::vector<float>& sample, int64_t dim, int64_t size,
                        Random& random) {
  const int64_t n = static_cast<int64_t>(sample.size()) / dim;
  const std::vector<int32_t> zeros(n);
  std::vector<float> distance(n, std::numeric_limits<float>::max()), to_chosen(n);
  Codebook codebook{0, dim, {}};
  int64_t chosen = random.below(n);
  while (true) {
    const float* row = sample.data() + chosen * dim;
    codebook.rows.insert(codebook.rows.end(), row, row + dim);
    ++codebook.size;
    code_distances(view_of(to_chosen), view_of(sample.data(), {n, dim}), view_of(zeros),
                   view_of(row, {1, dim}), Stream());
    double total = 0;
    for (int64_t i = 0; i < n; ++i) {
      distance[i] = std::min(distance[i], to_chosen[i]);
      total += distance[i];
    }
    if (codebook.size == size || total == 0) return codebook;
    double left = random.uniform() * total;
    for (int64_t i = 0; i < n; ++i) {
      if (distance[i] == 0) continue;
      chosen = i;  // rounding may leave a little at the end; then the last one stays chosen
      left -= distance[i];
      if (left < 0) break;
    }
  }
}

Codebook draw_at_random(const std::vector<float>& sample, int64_t dim, int64_t size,
                        Random& random) {
  const int64_t n = static_cast<int64_t>(sample.size()) / dim;
  std::vector<int64_t> order(n);
  std::iota(order.begin(), order.end(), 0);
  random.shuffle(order);
  Codebook codebook{std::min(size, n), dim, {}};
  for (int64_t i = 0; i < codebook.size; ++i) {
    const float* row = sample.data() + order[i] * dim;
    codebook.rows.insert(codebook.rows.end(), row, row + dim);
  }
  return codebook;
}

void broadcast_codebook(Codebook& codebook, const Communicator& communicator) {
  const Stream stream;
  communicator.broadcast(view_of(&codebook.size, {1}), 0, stream);
  codebook.rows.resize(codebook.size * codebook.dim);
  communicator.broadcast(view_of(codebook.rows.data(), {codebook.size, codebook.dim}), 0, stream);
}

// --- Lloyd's iterations -----------------------------------------------------------------------

/// Items that their code represents badly.
struct FarItem {
  double distance = -1;
  int64_t item = -1;
};
bool farther(const FarItem& a, const FarItem& b) {
  return std::tuple(-a.distance, a.item) < std::tuple(-b.distance, b.item);
}

/// The `capacity` farthest of many.
class FarthestItems {
 public:
  explicit FarthestItems(int64_t capacity) : capacity_(capacity) {}
  void add(const FarItem& candidate) {
    if (candidate.distance <= 0) return;
    if (static_cast<int64_t>(heap_.size()) == capacity_) {
      if (!farther(candidate, heap_.front())) return;
      std::pop_heap(heap_.begin(), heap_.end(), farther);
      heap_.pop_back();
    }
    heap_.push_back(candidate);
    std::push_heap(heap_.begin(), heap_.end(), farther);  // the least far one in front
  }
  /// Of all ranks together, farthest first. Collective.
  std::vector<FarItem> gather(const Communicator& communicator) const {
    const Stream stream;
    std::vector<FarItem> mine = heap_;
    mine.resize(capacity_);
    std::vector<double> distances(capacity_), all_distances(capacity_ * communicator.size());
    std::vector<int64_t> items(capacity_), all_items(capacity_ * communicator.size());
    for (int64_t i = 0; i < capacity_; ++i) {
      distances[i] = mine[i].distance;
      items[i] = mine[i].item;
    }
    const int64_t total = static_cast<int64_t>(all_items.size());
    communicator.all_gather(view_of(all_distances.data(), {total}),
                            view_of(distances.data(), {capacity_}), stream);
    communicator.all_gather(view_of(all_items.data(), {total}), view_of(items.data(), {capacity_}),
                            stream);
    std::vector<FarItem> all;
    for (int64_t i = 0; i < total; ++i) {
      if (all_items[i] >= 0) all.push_back({all_distances[i], all_items[i]});
    }
    std::sort(all.begin(), all.end(), farther);
    if (static_cast<int64_t>(all.size()) > capacity_) all.resize(capacity_);
    return all;
  }

 private:
  int64_t capacity_;
  std::vector<FarItem> heap_;
};

/// What one pass over all items finds out about a codebook.
struct Assignment {
  std::vector<double> sums;    // [size, dim] of the residuals nearest to each row
  std::vector<double> counts;  // [size]
  double error = 0;            // mean squared distance
  FarthestItems farthest;
};

class Fit {
 public:
  Fit(const ItemRows& rows, const TokenizerConfig& config, Device device,
      const Communicator& communicator,
      const std::function<void(const KMeansProgress&)>& on_progress)
      : rows_(rows),
        config_(config),
        communicator_(communicator),
        on_progress_(on_progress),
        most_codes_(*std::max_element(config.levels.begin(), config.levels.end())),
        assigner_(rows, result_, largest_batch(rows, config), most_codes_,
                  static_cast<int64_t>(config.levels.size()), device) {
    const IndexRange chunks = CanonicalSum(communicator).chunks();
    for (int64_t chunk = chunks.begin; chunk < chunks.end; ++chunk) {
      for_each_batch(CanonicalSum::items(chunk, rows.num_items), config.batch_items,
                     [&](int64_t begin, int64_t end) {
                       batches_.push_back({begin, end});
                     });
    }
    if (communicator.rank() > 0) return;
    const int64_t count =
        std::min(rows.num_items, std::max(config.initialization_sample, most_codes_));
    sample_items_ = draw_sample(rows.num_items, count, config.seed);
    sample_ = read_items(rows, sample_items_, config.batch_items);
  }

  ResidualKMeans run() {
    const std::vector<double> squares =
        column_means(rows_, std::vector<double>(rows_.dim), 2, config_.batch_items, communicator_);
    result_.errors.push_back(std::accumulate(squares.begin(), squares.end(), 0.0));
    for (int64_t level = 0; level < static_cast<int64_t>(config_.levels.size()); ++level) {
      fit_level(level);
    }
    return std::move(result_);
  }

 private:
  int64_t level() const { return static_cast<int64_t>(result_.codebooks.size()); }

  void fit_level(int64_t level) {
    Codebook codebook = start(config_.levels[level]);
    double error_before = kInfinity;
    for (int64_t iteration = 0; iteration < config_.iterations; ++iteration) {
      const auto start_time = std::chrono::steady_clock::now();
      const Assignment assignment = assign(codebook);
      bool reseeded = false;
      Codebook updated = update(codebook, assignment, reseeded);
      const double change =
          error_before == kInfinity ? 1 : (error_before - assignment.error) / error_before;
      const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start_time;
      if (on_progress_) {
        on_progress_({level, static_cast<int64_t>(config_.levels.size()), iteration,
                      config_.iterations, assignment.error, change,
                      static_cast<double>(rows_.num_items) / seconds.count()});
      }
      const bool unchanged = updated.rows == codebook.rows;
      codebook = std::move(updated);
      error_before = assignment.error;
      if (unchanged || error_before == 0 || (!reseeded && change <= config_.tolerance)) break;
    }
    finish_level(std::move(codebook));
  }

  /// Drawn on rank 0, so that even ranks on different machines start from the same bits.
  Codebook start(int64_t size) {
    Codebook codebook{0, rows_.dim, {}};
    if (communicator_.rank() == 0) {
      Random random(random_key(static_cast<uint64_t>(config_.seed), "tokenizer start", {level()}));
      codebook = config_.initialization == "kmeans++"
                     ? draw_far_apart(sample_, rows_.dim, size, random)
                     : draw_at_random(sample_, rows_.dim, size, random);
    }
    broadcast_codebook(codebook, communicator_);
    return codebook;
  }

  Assignment assign(const Codebook& codebook) {
    const int64_t size = codebook.size, dim = codebook.dim;
    Assignment assignment{{}, {}, 0, FarthestItems(config_.levels[level()])};
    CanonicalSum sum(communicator_);
    assigner_.start_pass(codebook, batches_);
    for (int64_t chunk = sum.chunks().begin; chunk < sum.chunks().end; ++chunk) {
      std::vector<double> values(size * dim + size + 1);  // sums, counts, squared distances
      std::vector<int64_t> counts(size);
      assigner_.start_sums(values.data(), counts.data());
      for_each_batch(CanonicalSum::items(chunk, rows_.num_items), config_.batch_items,
                     [&](int64_t begin, int64_t end) {
                       const AssignedBatch batch = assigner_.next();
                       for (int64_t i = begin; i < end; ++i) {
                         const double distance = batch.distances[i - begin];
                         values.back() += distance;
                         assignment.farthest.add({distance, i});
                       }
                     });
      assigner_.finish_sums();
      std::copy(counts.begin(), counts.end(), values.begin() + size * dim);
      sum.add(std::move(values));
    }
    const std::vector<double> total = sum.finish();
    assignment.sums.assign(total.begin(), total.begin() + size * dim);
    assignment.counts.assign(total.begin() + size * dim, total.end() - 1);
    assignment.error = total.back() / static_cast<double>(rows_.num_items);
    return assignment;
  }

  /// Means of the assigned residuals; codes without any, and rows that the start did not find, go
  /// to far items.
  Codebook update(const Codebook& codebook, const Assignment& assignment, bool& reseeded) {
    const int64_t dim = codebook.dim, size = config_.levels[level()];
    const int64_t num_empty =
        size - codebook.size + std::count(assignment.counts.begin(), assignment.counts.end(), 0.0);
    std::vector<float> spare;  // rows for empty codes
    bool none_is_far = false;
    if (num_empty > 0) spare = far_rows(assignment, num_empty, none_is_far);
    reseeded = !spare.empty();

    Codebook updated{0, dim, {}};
    int64_t used_spare = 0;
    const int64_t num_spare = static_cast<int64_t>(spare.size()) / dim;
    const auto append = [&](const float* row) {
      updated.rows.insert(updated.rows.end(), row, row + dim);
      ++updated.size;
    };
    std::vector<float> mean(dim);
    for (int64_t code = 0; code < size; ++code) {
      if (code < codebook.size && assignment.counts[code] > 0) {
        for (int64_t j = 0; j < dim; ++j) {
          mean[j] = static_cast<float>(assignment.sums[code * dim + j] / assignment.counts[code]);
        }
        append(mean.data());
      } else if (used_spare < num_spare) {
        append(spare.data() + used_spare++ * dim);
      } else if (code < codebook.size && !none_is_far) {
        append(codebook.rows.data() + code * dim);  // stays; another iteration may find it items
      }
    }
    return updated;
  }

  /// The residuals of up to `count` different far items. Every item lies on its code if
  /// `none_is_far`: then there are no more different residuals than codes in use.
  std::vector<float> far_rows(const Assignment& assignment, int64_t count, bool& none_is_far) {
    const std::vector<FarItem> far = assignment.farthest.gather(communicator_);
    none_is_far = far.empty();
    std::vector<float> found;
    for (const FarItem& candidate : far) {
      const int64_t num_found = static_cast<int64_t>(found.size()) / rows_.dim;
      if (num_found == count) break;
      const std::vector<float> row = assigner_.residual_of(candidate.item);
      bool is_new = true;
      for (int64_t i = 0; is_new && i < num_found; ++i) {
        is_new = !std::equal(row.begin(), row.end(), found.data() + i * rows_.dim);
      }
      if (is_new) found.insert(found.end(), row.begin(), row.end());
    }
    return found;
  }

  /// Gives every item its code and passes on what is left over.
  void finish_level(Codebook codebook) {
    std::vector<int32_t> codes(rows_.num_items);
    CanonicalSum sum(communicator_);
    assigner_.start_pass(codebook, batches_);
    for (int64_t chunk = sum.chunks().begin; chunk < sum.chunks().end; ++chunk) {
      double squares = 0;
      for_each_batch(CanonicalSum::items(chunk, rows_.num_items), config_.batch_items,
                     [&](int64_t begin, int64_t end) {
                       const AssignedBatch batch = assigner_.next();
                       std::copy_n(batch.codes, end - begin, codes.data() + begin);
                       for (int64_t i = 0; i < end - begin; ++i) squares += batch.distances[i];
                     });
      sum.add({squares});
    }
    result_.errors.push_back(sum.finish()[0] / static_cast<double>(rows_.num_items));

    // Every item's code is set on one rank and 0 on the others.
    communicator_.all_reduce(view_of(codes), ReduceOp::kSum, Stream());
    const int64_t num_sampled = static_cast<int64_t>(sample_items_.size());
    std::vector<int32_t> sample_codes;
    for (const int64_t item : sample_items_) sample_codes.push_back(codes[item]);
    subtract_code(view_of(sample_.data(), {num_sampled, rows_.dim}), view_of(sample_codes),
                  view_of(codebook.rows.data(), {codebook.size, codebook.dim}), Stream());
    result_.codes.push_back(std::move(codes));
    result_.codebooks.push_back(std::move(codebook));
  }

  /// A batch is part of a chunk.
  static int64_t largest_batch(const ItemRows& rows, const TokenizerConfig& config) {
    const int64_t chunk = (rows.num_items - 1) / CanonicalSum::kNumChunks + 1;
    return std::min(config.batch_items, chunk);
  }

  const ItemRows& rows_;
  const TokenizerConfig& config_;
  const Communicator& communicator_;
  const std::function<void(const KMeansProgress&)>& on_progress_;
  const int64_t most_codes_;
  ResidualKMeans result_;
  CodeAssigner assigner_;
  std::vector<IndexRange> batches_;    // of this rank
  std::vector<int64_t> sample_items_;  // only on rank 0
  std::vector<float> sample_;          // their residuals
};

}  // namespace

FeatureNormalization fit_normalization(const std::vector<FeatureSource>& sources,
                                       const ItemRows& rows, bool per_source, int64_t batch_items,
                                       const Communicator& communicator) {
  MIRABELLE_CHECK_DATA(rows.num_items > 0, "there are no items to make semantic IDs for");
  FeatureNormalization normalization{sources, {}, {}};
  MIRABELLE_CHECK(normalization.feature_dim() == rows.dim, "the sources have ",
                  normalization.feature_dim(), " features, the rows ", rows.dim);
  // Means are taken relative to the first item: a column of one value then has deviation 0 exactly.
  std::vector<float> first(rows.dim);
  rows.read(0, 1, first.data());
  normalization.means.assign(first.begin(), first.end());
  const std::vector<double> shift =
      column_means(rows, normalization.means, 1, batch_items, communicator);
  for (int64_t j = 0; j < rows.dim; ++j) normalization.means[j] += shift[j];
  normalization.deviations = column_means(rows, normalization.means, 2, batch_items, communicator);

  double* column = normalization.deviations.data();
  for (const FeatureSource& source : sources) {
    const double variance = std::accumulate(column, column + source.dim, 0.0);
    MIRABELLE_CHECK_DATA(std::isfinite(variance), "feature source ", source.name,
                         " holds numbers that are not finite (see mirabelle-data verify)");
    const double common = std::sqrt(variance / static_cast<double>(source.dim));
    for (int64_t j = 0; j < source.dim; ++j, ++column) {
      *column = per_source ? common : std::sqrt(*column);
    }
  }
  return normalization;
}

ResidualKMeans residual_kmeans(const ItemRows& rows, const TokenizerConfig& config, Device device,
                               const Communicator& communicator,
                               const std::function<void(const KMeansProgress&)>& on_progress) {
  MIRABELLE_CHECK_DATA(rows.num_items > 0, "there are no items to make semantic IDs for");
  return Fit(rows, config, device, communicator, on_progress).run();
}

}  // namespace mirabelle
