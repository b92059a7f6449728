#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "mirabelle/comm/communicator.h"
#include "mirabelle/core/progress.h"
#include "mirabelle/data/corpus.h"
#include "mirabelle/evaluation/baselines.h"
#include "mirabelle/evaluation/evaluation_config.h"
#include "mirabelle/evaluation/metrics.h"
#include "mirabelle/evaluation/predictions.h"
#include "mirabelle/evaluation/recommender.h"

namespace mirabelle {

/// The figures of one way to rank items, in the order of EvaluationResult::names.
using SystemFigures = std::vector<Figure>;

struct BandRecall {
  int64_t targets = 0;
  int64_t hits = 0;  ///< among the first K, for the largest K
  double recall() const {
    return targets == 0 ? 0 : static_cast<double>(hits) / static_cast<double>(targets);
  }
};

/// What was measured, and all that one must know to compare it.
struct EvaluationResult {
  Split split = Split::kTest;
  std::vector<std::string> names;
  SystemFigures model;
  SystemFigures popularity, markov, model_minus_markov;  ///< empty without baselines
  std::array<BandRecall, kNumBands> bands{};             ///< by Band; 0 without baselines

  int64_t users = 0;  ///< with targets: those that were evaluated
  int64_t users_without_targets = 0;
  int64_t targets = 0;              ///< distinct per user
  int64_t unreachable_targets = 0;  ///< in the history while exclude_history: always missed
  int64_t short_lists = 0;          ///< lists of fewer than K items, for the largest K
  int64_t num_invalid = 0, num_duplicates = 0;  ///< RankedLists
  int64_t covered_items = 0;  ///< distinct items among all users' first K, largest K
  double seconds = 0;         ///< wall time of the slowest rank
  bool was_stopped = false;   ///< then nothing is measured

  /// The figure of that name ("recall@10"); throws if there is none.
  const Figure& figure(const SystemFigures& system, const std::string& name) const;
};

/// Ranks items for the users of a split and measures the lists. A user's query is the whole history
/// before the targets; the recommender sees what it wants of it. With exclude_history all of these
/// items are excluded, also those older than the recommender looks. Runs on `communicator`: every
/// rank recommends for its users, and the result is the same on all ranks and for any number of
/// them. `baselines`, `predictions` and `progress` may be null; without baselines (validation
/// during training) nothing but the model's figures is measured. `stop`, which may be empty, is
/// asked before every block of users, by all ranks equally often, and must say the same to all: if
/// true the evaluation is given up.
EvaluationResult evaluate_users(const Corpus& corpus, const Recommender& recommend,
                                const EvaluationConfig& config, const Communicator& communicator,
                                const CountingBaselines* baselines = nullptr,
                                PredictionWriter* predictions = nullptr,
                                Progress* progress = nullptr,
                                const std::function<bool()>& stop = {});

/// The result for machines. Flat keys: dataset, split, split_rule, split_hash, tie_policy, users,
/// items, every figure of the model by name, popularity_NAME and markov_NAME, the settings of the
/// evaluation; "intervals" has [low, high] by the same keys, "bands" the recall by popularity.
nlohmann::json to_json(const EvaluationResult& result, const Corpus& corpus,
                       const EvaluationConfig& config, int64_t history_length);

}  // namespace mirabelle
