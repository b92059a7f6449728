#include "mirabelle/data/corpus_stats.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <limits>
#include <map>
#include <numeric>

#include "mirabelle/core/error.h"
#include "mirabelle/core/random.h"
#include "mirabelle/data/packing.h"

namespace mirabelle {
namespace {

using nlohmann::json;

constexpr int64_t kUsersAtOnce = 16384;

/// About as many as BatchLoader packs at a time.
constexpr size_t kSequencesPerBlock = 65536;

/// The smallest, largest and mean of numbers that come one by one; none of them: null.
struct Range {
  double min = std::numeric_limits<double>::infinity(), max = -min, sum = 0;
  int64_t count = 0, missing = 0;

  void add(double value) {
    if (std::isnan(value)) {
      ++missing;
      return;
    }
    min = std::min(min, value);
    max = std::max(max, value);
    sum += value;
    ++count;
  }
  json to_json() const {
    if (count == 0)
      return {{"min", nullptr}, {"max", nullptr}, {"mean", nullptr}, {"missing", missing}};
    return {{"min", min},
            {"max", max},
            {"mean", sum / static_cast<double>(count)},
            {"missing", missing}};
  }
};

/// Events per item, as a whole and by the part of the history they are in.
struct ItemCounts {
  std::vector<int64_t> events, train, validation, test;
  explicit ItemCounts(int64_t num_items)
      : events(num_items), train(num_items), validation(num_items), test(num_items) {}
};

int64_t sum(const std::vector<int64_t>& counts) {
  return std::accumulate(counts.begin(), counts.end(), int64_t{0});
}

/// How many of the targets are of items that no training part holds.
int64_t unseen(const std::vector<int64_t>& targets, const std::vector<int64_t>& train) {
  int64_t total = 0;
  for (size_t item = 0; item < train.size(); ++item) total += train[item] == 0 ? targets[item] : 0;
  return total;
}

/// The value that a part `p` of all numbers does not exceed, from how often each value occurs.
int64_t quantile(const std::map<int64_t, int64_t>& histogram, int64_t total, double p) {
  const auto rank = std::max<int64_t>(1, std::llround(std::ceil(p * static_cast<double>(total))));
  int64_t passed = 0;
  for (const auto& [value, count] : histogram) {
    passed += count;
    if (passed >= rank) return value;
  }
  return 0;
}

json length_summary(const std::map<int64_t, int64_t>& histogram, int64_t users, int64_t events) {
  if (users == 0) return nullptr;
  return {{"min", histogram.begin()->first},
          {"p10", quantile(histogram, users, 0.1)},
          {"median", quantile(histogram, users, 0.5)},
          {"p90", quantile(histogram, users, 0.9)},
          {"p99", quantile(histogram, users, 0.99)},
          {"max", histogram.rbegin()->first},
          {"mean", static_cast<double>(events) / static_cast<double>(users)}};
}

json popularity_summary(std::vector<int64_t> counts) {
  std::sort(counts.begin(), counts.end(), std::greater<>());
  const double total = static_cast<double>(sum(counts));
  const double n = static_cast<double>(counts.size());
  const auto share_of_top = [&](double part) {
    const auto top = static_cast<int64_t>(std::ceil(part * n));
    return static_cast<double>(std::accumulate(counts.begin(), counts.begin() + top, int64_t{0})) /
           total;
  };
  if (total == 0) return nullptr;
  // Gini = sum over items, ascending, of (2 rank - n - 1) count / (n total).
  double weighted = 0;
  for (size_t i = 0; i < counts.size(); ++i) {
    const double rank = n - static_cast<double>(i);
    weighted += (2 * rank - n - 1) * static_cast<double>(counts[i]);
  }
  return {{"top_1_percent", share_of_top(0.01)},
          {"top_10_percent", share_of_top(0.1)},
          {"gini", weighted / (n * total)}};
}

int64_t repeats(std::span<const int32_t> history, std::vector<int32_t>& scratch) {
  scratch.assign(history.begin(), history.end());
  std::sort(scratch.begin(), scratch.end());
  return scratch.end() - std::unique(scratch.begin(), scratch.end());
}

/// What one way of packing makes of block after block.
struct PackingFigures {
  int64_t parts = 0, groups = 0;
  double sum_of_imbalances = 0;

  void add(const std::vector<std::vector<int64_t>>& packed, std::span<const int64_t> lengths,
           int64_t parts_per_group) {
    const auto num_parts = static_cast<int64_t>(packed.size());
    const int64_t num_groups = (num_parts + parts_per_group - 1) / parts_per_group;
    parts += num_parts;
    groups += num_groups;
    sum_of_imbalances +=
        static_cast<double>(num_groups) * imbalance(packed, lengths, parts_per_group);
  }
  json to_json(int64_t events, int64_t part_events) const {
    return {{"parts", parts},
            {"fill", static_cast<double>(events) / static_cast<double>(parts * part_events)},
            {"imbalance", sum_of_imbalances / static_cast<double>(groups)}};
  }
};

/// Packs the training histories as BatchLoader does, and by first fit.
class PackingTrial {
 public:
  explicit PackingTrial(const PackingOptions& options)
      : options_(options),
        part_events_(options.part_tokens / options.num_levels),
        max_events_(options.max_sequence_tokens / options.num_levels) {}

  void add_history(int64_t length) {
    for (; length > 0; length -= max_events_) lengths_.push_back(std::min(length, max_events_));
    if (lengths_.size() >= kSequencesPerBlock) pack_block();
  }
  json finish() {
    pack_block();
    if (sequences_ == 0) return nullptr;
    return {{"part_tokens", options_.part_tokens},
            {"parts_per_step", options_.parts_per_step},
            {"num_levels", options_.num_levels},
            {"max_sequence_tokens", options_.max_sequence_tokens},
            {"sequences", sequences_},
            {"first_fit", first_fit_.to_json(events_, part_events_)},
            {"balanced", balanced_.to_json(events_, part_events_)}};
  }

 private:
  void pack_block() {
    Random(random_key(0, "sequences", {sequences_})).shuffle(lengths_);
    const int64_t group = options_.parts_per_step;
    first_fit_.add(pack_first_fit(lengths_, part_events_), lengths_, group);
    balanced_.add(pack_parts(lengths_, part_events_, group), lengths_, group);
    sequences_ += static_cast<int64_t>(lengths_.size());
    events_ += sum(lengths_);
    lengths_.clear();
  }

  PackingOptions options_;
  int64_t part_events_, max_events_;
  std::vector<int64_t> lengths_;  // in events, of the block
  int64_t sequences_ = 0, events_ = 0;
  PackingFigures first_fit_, balanced_;
};

void check(const PackingOptions& options) {
  MIRABELLE_CHECK_USAGE(options.num_levels > 0, "wanted one or more tokens per item, got ",
                        options.num_levels);
  MIRABELLE_CHECK_USAGE(options.parts_per_step > 0, "wanted one or more parts per step, got ",
                        options.parts_per_step);
  MIRABELLE_CHECK_USAGE(options.max_sequence_tokens >= options.num_levels, "a sequence of ",
                        options.max_sequence_tokens, " tokens does not hold one item of ",
                        options.num_levels);
  MIRABELLE_CHECK_USAGE(options.part_tokens >= options.max_sequence_tokens, "a part of ",
                        options.part_tokens, " tokens does not hold a sequence of ",
                        options.max_sequence_tokens);
}

int64_t folder_bytes(const json& manifest) {
  int64_t bytes = manifest["catalogue"]["bytes"];
  if (!manifest["feature_file"].is_null())
    bytes += manifest["feature_file"]["bytes"].get<int64_t>();
  for (const json& shard : manifest["shards"]) bytes += shard["bytes"].get<int64_t>();
  return bytes;
}

}  // namespace

json corpus_stats(const Corpus& corpus, const PackingOptions& packing) {
  check(packing);
  PackingTrial packing_trial(packing);
  ItemCounts counts(corpus.num_items());
  std::map<int64_t, int64_t> lengths;
  std::map<std::string, Range> columns;
  Range times;
  int64_t repeated = 0;
  std::vector<int32_t> scratch;
  const auto count = [](std::vector<int64_t>& into, std::span<const int32_t> items) {
    for (const int32_t item : items) ++into[item];
  };
  for (int64_t shard = 0; shard < corpus.num_shards(); ++shard) {
    const int64_t users = corpus.shard_users(shard);
    for (int64_t begin = 0; begin < users; begin += kUsersAtOnce) {
      const int64_t end = std::min(begin + kUsersAtOnce, users);
      const HistoryBlock block = corpus.read_histories(shard, begin, end, true);
      count(counts.events, block.items);
      for (int64_t user = 0; user < block.num_users(); ++user) {
        ++lengths[static_cast<int64_t>(block.history(user).size())];
        count(counts.train, block.training_part(user));
        packing_trial.add_history(block.train_length[user]);
        count(counts.validation, block.targets(user, Split::kValidation));
        count(counts.test, block.targets(user, Split::kTest));
        repeated += repeats(block.history(user), scratch);
      }
      for (const int64_t time : block.timestamps) {
        times.add(time < 0 ? std::nan("") : static_cast<double>(time));
      }
      for (const std::string& name : corpus.event_columns()) {
        for (const float value : corpus.read_event_column(name, shard, begin, end)) {
          columns[name].add(value);
        }
      }
    }
  }
  const json& manifest = corpus.manifest();
  json stats = {
      {"dataset", corpus.dataset()},
      {"split", manifest["split"]},
      {"split_hash", corpus.split_hash()},
      {"tie_policy", manifest["tie_policy"]},
      {"users", corpus.num_users()},
      {"items", corpus.num_items()},
      {"events", corpus.num_events()},
      {"shards", corpus.num_shards()},
      {"bytes", folder_bytes(manifest)},
      {"history_length", length_summary(lengths, corpus.num_users(), corpus.num_events())},
      {"repeated_events", repeated},
      {"train_events", sum(counts.train)},
      {"validation_targets", sum(counts.validation)},
      {"test_targets", sum(counts.test)},
      {"unseen_validation_targets", unseen(counts.validation, counts.train)},
      {"unseen_test_targets", unseen(counts.test, counts.train)},
      {"items_without_events", std::count(counts.events.begin(), counts.events.end(), 0)},
      {"items_without_training", std::count(counts.train.begin(), counts.train.end(), 0)},
      {"popularity", popularity_summary(counts.events)},
      {"features", manifest["features"]},
      {"packing", packing_trial.finish()},
      {"timestamps", nullptr},
      {"columns", json::object()}};
  if (corpus.has_timestamps()) {
    stats["timestamps"] = {{"first", nullptr}, {"last", nullptr}, {"unknown", times.missing}};
    if (times.count > 0) {
      stats["timestamps"]["first"] = static_cast<int64_t>(times.min);
      stats["timestamps"]["last"] = static_cast<int64_t>(times.max);
    }
  }
  for (const auto& [name, range] : columns) stats["columns"][name] = range.to_json();
  return stats;
}

}  // namespace mirabelle
