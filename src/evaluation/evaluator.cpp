#include "mirabelle/evaluation/evaluator.h"

#include <algorithm>
#include <chrono>

#include "mirabelle/core/error.h"
#include "mirabelle/evaluation/user_histories.h"

namespace mirabelle {
namespace {

/// Sums over this rank's users while the evaluation runs.
struct Tally {
  FigureTable model, popularity, markov;
  std::array<int64_t, 2 * kNumBands> bands{};  // targets, then hits
  int64_t users_without_targets = 0, targets = 0, unreachable_targets = 0, short_lists = 0;
  int64_t num_invalid = 0, num_duplicates = 0;
  std::vector<uint8_t> covered;  // [num_items]
};

/// One block of users: what the recommender is asked, and who asks.
struct Block {
  HistoryBlock histories;
  std::vector<int64_t> rows;   // of `histories`: the users with targets
  std::vector<int64_t> users;  // their global indices
  std::vector<std::vector<int32_t>> targets, excluded;
  std::vector<RecommendationQuery> queries;
};

Block read_block(const Corpus& corpus, std::span<const int64_t> users, Split split,
                 bool exclude_history) {
  Block block;
  block.histories = read_user_histories(corpus, users);
  for (size_t row = 0; row < users.size(); ++row) {
    std::vector<int32_t> targets = distinct_items(block.histories.targets(row, split));
    if (targets.empty()) continue;
    block.rows.push_back(static_cast<int64_t>(row));
    block.users.push_back(users[row]);
    block.targets.push_back(std::move(targets));
    block.excluded.push_back(exclude_history ? distinct_items(block.histories.context(row, split))
                                             : std::vector<int32_t>{});
  }
  for (size_t i = 0; i < block.rows.size(); ++i) {
    block.queries.push_back({block.histories.context(block.rows[i], split), block.excluded[i]});
  }
  return block;
}

/// The figures of user `i` of a block, for the model and the baselines.
void add_user(Tally& tally, const Block& block, size_t i, std::span<const int32_t> list,
              const EvaluationConfig& config, const CountingBaselines* baselines,
              std::span<const Band> bands) {
  const std::vector<int32_t>& targets = block.targets[i];
  const std::vector<int32_t>& excluded = block.excluded[i];
  const int64_t max_k = config.top_k.back();
  const std::vector<double> ranks = target_ranks(list, targets);
  tally.model.add(block.users[i], user_figures(ranks, config.top_k, config.beam_size));
  tally.targets += static_cast<int64_t>(targets.size());
  tally.short_lists += static_cast<int64_t>(list.size()) < max_k;
  for (int32_t item : list.first(std::min<size_t>(list.size(), max_k))) tally.covered[item] = 1;
  for (size_t t = 0; t < targets.size(); ++t) {
    tally.unreachable_targets += std::binary_search(excluded.begin(), excluded.end(), targets[t]);
    if (!baselines) continue;
    const int band = static_cast<int>(bands[targets[t]]);
    ++tally.bands[band];
    tally.bands[kNumBands + band] += ranks[t] <= static_cast<double>(max_k);
  }
  if (!baselines) return;
  const std::span<const int32_t> history = block.queries[i].history;
  tally.popularity.add(block.users[i], user_figures(baselines->popularity_ranks(targets, excluded),
                                                    config.top_k, config.beam_size));
  tally.markov.add(block.users[i],
                   user_figures(baselines->markov_ranks(history.empty() ? -1 : history.back(),
                                                        targets, excluded),
                                config.top_k, config.beam_size));
}

/// Adds the ranks' counts up.
void reduce(EvaluationResult& result, Tally& tally, const Communicator& communicator) {
  std::vector<int64_t> sums(tally.bands.begin(), tally.bands.end());
  sums.insert(sums.end(), {static_cast<int64_t>(tally.model.users.size()),
                           tally.users_without_targets, tally.targets, tally.unreachable_targets,
                           tally.short_lists, tally.num_invalid, tally.num_duplicates});
  communicator.all_reduce(view_of(sums.data(), {static_cast<int64_t>(sums.size())}), ReduceOp::kSum,
                          Stream());
  for (int band = 0; band < kNumBands; ++band) {
    result.bands[band] = {sums[band], sums[kNumBands + band]};
  }
  const int64_t* rest = sums.data() + tally.bands.size();
  result.users = rest[0];
  result.users_without_targets = rest[1];
  result.targets = rest[2];
  result.unreachable_targets = rest[3];
  result.short_lists = rest[4];
  result.num_invalid = rest[5];
  result.num_duplicates = rest[6];
  communicator.all_reduce(
      view_of(tally.covered.data(), {static_cast<int64_t>(tally.covered.size())}), ReduceOp::kMax,
      Stream());
  result.covered_items = std::count(tally.covered.begin(), tally.covered.end(), 1);
  communicator.all_reduce(view_of(&result.seconds, {1}), ReduceOp::kMax, Stream());
}

/// Asks whether to stop, as often on every rank as the one with the most blocks of users does,
/// until the answer is yes.
class StopQuestion {
 public:
  StopQuestion(const std::function<bool()>& stop, int64_t num_users, int64_t block_users,
               int64_t num_ranks)
      : stop_(stop) {
    const int64_t users_of_round = block_users * num_ranks;
    if (stop) rounds_left_ = (num_users + users_of_round - 1) / users_of_round;
  }
  bool ask() {
    if (!stops_ && rounds_left_ > 0) {
      --rounds_left_;
      stops_ = stop_();
    }
    return stops_;
  }
  bool ask_the_rest() {
    while (!stops_ && rounds_left_ > 0) ask();
    return stops_;
  }

 private:
  const std::function<bool()>& stop_;
  int64_t rounds_left_ = 0;
  bool stops_ = false;
};

}  // namespace

const Figure& EvaluationResult::figure(const SystemFigures& system, const std::string& name) const {
  const auto place = std::find(names.begin(), names.end(), name);
  MIRABELLE_CHECK(place != names.end() && system.size() == names.size(), "no figure '", name,
                  "' was measured");
  return system[place - names.begin()];
}

EvaluationResult evaluate_users(const Corpus& corpus, const Recommender& recommend,
                                const EvaluationConfig& config, const Communicator& communicator,
                                const CountingBaselines* baselines, PredictionWriter* predictions,
                                Progress* progress, const std::function<bool()>& stop) {
  config.check();
  const auto start = std::chrono::steady_clock::now();
  EvaluationResult result;
  result.split = parse_split(config.split);
  result.names = figure_names(config.top_k);
  Tally tally;
  tally.model.num_figures = tally.popularity.num_figures = tally.markov.num_figures =
      static_cast<int64_t>(result.names.size());
  tally.covered.resize(corpus.num_items());
  const std::vector<Band> bands =
      baselines ? popularity_bands(baselines->popularity()) : std::vector<Band>{};
  const std::vector<int64_t> users = select_users(corpus, config.max_users, config.seed);
  const auto num_users = static_cast<int64_t>(users.size());
  StopQuestion question(stop, num_users, config.batch_users, communicator.size());

  for_each_block_of_rank(
      num_users, config.batch_users, communicator.rank(), communicator.size(),
      [&](int64_t begin, int64_t end) {
        if (question.ask()) return;
        const Block block = read_block(corpus, std::span(users).subspan(begin, end - begin),
                                       result.split, config.exclude_history);
        const RankedLists lists = recommend(block.queries);
        MIRABELLE_CHECK(lists.num_users() == static_cast<int64_t>(block.queries.size()),
                        "asked for ", block.queries.size(), " lists, got ", lists.num_users());
        for (size_t i = 0; i < block.queries.size(); ++i) {
          add_user(tally, block, i, lists.list(i), config, baselines, bands);
        }
        tally.users_without_targets += end - begin - static_cast<int64_t>(block.queries.size());
        tally.num_invalid += lists.num_invalid;
        tally.num_duplicates += lists.num_duplicates;
        if (predictions) {
          const std::vector<nlohmann::json> ids = read_user_ids(corpus, block.users);
          for (size_t i = 0; i < ids.size(); ++i) {
            predictions->add(block.users[i], ids[i], block.targets[i], lists.list(i),
                             lists.list_scores(i));
          }
        }
        if (progress) progress->update(end, num_users);
      });
  if (progress) progress->clear();
  result.was_stopped = question.ask_the_rest();
  if (result.was_stopped) return result;
  if (predictions) predictions->finish();
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  reduce(result, tally, communicator);
  const auto figures = [&](const FigureTable& table) {
    return summarise(table, config.bootstrap_samples, config.seed, communicator);
  };
  result.model = figures(tally.model);
  if (baselines) {
    result.popularity = figures(tally.popularity);
    result.markov = figures(tally.markov);
    result.model_minus_markov = summarise_difference(
        tally.model, tally.markov, config.bootstrap_samples, config.seed, communicator);
  }
  return result;
}

nlohmann::json to_json(const EvaluationResult& result, const Corpus& corpus,
                       const EvaluationConfig& config, int64_t history_length) {
  nlohmann::json out = {
      {"dataset", corpus.dataset()},
      {"split", config.split},
      {"split_rule", corpus.split_name()},
      {"split_hash", corpus.split_hash()},
      {"tie_policy", corpus.tie_policy()},
      {"users", result.users},
      {"users_without_targets", result.users_without_targets},
      {"users_in_corpus", corpus.num_users()},
      {"items", corpus.num_items()},
      {"targets", result.targets},
      {"unreachable_targets", result.unreachable_targets},
      {"mode", config.mode},
      {"dtype", config.dtype},
      {"beam_size", config.beam_size},
      {"history_length", history_length},
      {"exclude_history", config.exclude_history},
      {"invalid_beams", result.num_invalid},
      {"duplicate_beams", result.num_duplicates},
      {"short_lists", result.short_lists},
      {"evaluation_seconds", result.seconds},
      {"users_per_second",
       result.seconds > 0 ? static_cast<double>(result.users) / result.seconds : 0}};
  out["coverage@" + std::to_string(config.top_k.back())] =
      corpus.num_items() == 0
          ? 0
          : static_cast<double>(result.covered_items) / static_cast<double>(corpus.num_items());
  out["intervals"] = nlohmann::json::object();
  const auto add = [&](const std::string& prefix, const SystemFigures& system) {
    for (size_t f = 0; f < system.size(); ++f) {
      out[prefix + result.names[f]] = system[f].mean;
      out["intervals"][prefix + result.names[f]] = {system[f].low, system[f].high};
    }
  };
  add("", result.model);
  add("popularity_", result.popularity);
  add("markov_", result.markov);
  add("model_minus_markov_", result.model_minus_markov);
  if (!result.popularity.empty()) {
    for (int band = 0; band < kNumBands; ++band) {
      const BandRecall& recall = result.bands[band];
      out["bands"][to_string(static_cast<Band>(band))] = {
          {"targets", recall.targets}, {"hits", recall.hits}, {"recall", recall.recall()}};
    }
  }
  return out;
}

}  // namespace mirabelle
