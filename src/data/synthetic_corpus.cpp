#include "mirabelle/data/synthetic_corpus.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <sstream>
#include <string>
#include <unordered_map>
#include <vector>

#include "mirabelle/core/config_fields.h"
#include "mirabelle/core/table.h"
#include "mirabelle/data/bayes_filter.h"
#include "mirabelle/data/corpus_writer.h"

namespace mirabelle {
namespace {

using nlohmann::json;

/// Users that are drawn, by all threads together, before they are used in order.
constexpr int64_t kBlockUsers = 2048;

/// Every field of a configuration, by name.
class JsonFields : public ConfigFields {
 public:
  json values;
  void field(const char* name, bool& value, const char*) override { keep(name, value); }
  void field(const char* name, int64_t& value, const char*) override { keep(name, value); }
  void field(const char* name, double& value, const char*) override { keep(name, value); }
  void field(const char* name, std::string& value, const char*) override { keep(name, value); }
  void field(const char* name, std::vector<int64_t>& value, const char*) override {
    keep(name, value);
  }
  void field(const char* name, std::vector<double>& value, const char*) override {
    keep(name, value);
  }
  void field(const char* name, std::vector<std::string>& value, const char*) override {
    keep(name, value);
  }

 private:
  void keep(const char* name, const json& value) { values[name] = value; }
};

/// Events of a history that train; the next one is the validation target, the last the test target.
int64_t train_length(const SyntheticWorld::User& user) {
  return static_cast<int64_t>(user.items.size()) - 2;
}

/// What counting learns from the training parts.
class TrainingCounts {
 public:
  explicit TrainingCounts(int64_t num_items) : count_(num_items), successors_(num_items) {}

  void add(const SyntheticWorld::User& user) {
    for (int64_t event = 0; event < train_length(user); ++event) {
      ++count_[user.items[event]];
      if (event > 0) ++successors_[user.items[event - 1]][user.items[event]];
    }
  }
  void score_popularity(std::vector<double>& scores) const { scores = count_; }
  /// Any successor of `last` comes before any other item; popularity breaks ties.
  void score_markov(int32_t last, std::vector<double>& scores) const {
    scores = count_;
    const double above_all = 1 + *std::max_element(count_.begin(), count_.end());
    for (const auto& [item, count] : successors_[last]) scores[item] += above_all * count;
  }

 private:
  std::vector<double> count_;
  std::vector<std::unordered_map<int32_t, int32_t>> successors_;
};

/// Better items, ties counting half: the mean rank of all items that share the target's score.
double mean_rank(const std::vector<double>& scores, int32_t target) {
  int64_t better = 0, equal = 0;
  for (double score : scores) {
    better += score > scores[target];
    equal += score == scores[target];
  }
  return static_cast<double>(better) + 0.5 * static_cast<double>(equal - 1);
}

/// Adds a target at this rank to the sums.
void add_target(RankingFigures& sums, double rank) {
  const double gain = 1 / std::log2(rank + 2);
  if (rank < 5) {
    sums.recall_5 += 1;
    sums.ndcg_5 += gain;
  }
  if (rank < 10) {
    sums.recall_10 += 1;
    sums.ndcg_10 += gain;
  }
}

void divide(RankingFigures& sums, int64_t num_users) {
  for (double* sum : {&sums.recall_5, &sums.recall_10, &sums.ndcg_5, &sums.ndcg_10}) {
    *sum /= static_cast<double>(std::max<int64_t>(num_users, 1));
  }
}

/// The target ranks of one user: validation, then test.
struct UserRanks {
  std::array<double, 2> ceiling, markov, popularity;
};

UserRanks rank_targets(const SyntheticWorld::User& user, const TrainingCounts& counts,
                       BayesFilter& filter, std::vector<double>& scores) {
  UserRanks ranks;
  filter.reset();
  int64_t observed = 0;
  for (int split = 0; split < 2; ++split) {
    const int64_t context = train_length(user) + split;
    const int32_t target = user.items[context];
    const auto rank_of_target = [&] {
      for (int64_t event = 0; event < context; ++event) scores[user.items[event]] = -1;
      return mean_rank(scores, target);
    };
    for (; observed < context; ++observed) filter.observe(user.items[observed]);
    filter.predict(scores);
    ranks.ceiling[split] = rank_of_target();
    counts.score_markov(user.items[context - 1], scores);
    ranks.markov[split] = rank_of_target();
    counts.score_popularity(scores);
    ranks.popularity[split] = rank_of_target();
  }
  return ranks;
}

std::vector<SyntheticWorld::User> draw_users(const SyntheticWorld& world, int64_t begin,
                                             int64_t end) {
  std::vector<SyntheticWorld::User> users(end - begin);
#pragma omp parallel for schedule(dynamic, 64)
  for (int64_t i = 0; i < end - begin; ++i) users[i] = world.draw_user(begin + i);
  return users;
}

SyntheticWorldReport judge(const SyntheticWorld& world, const TrainingCounts& counts,
                           const std::function<void(double)>& progress) {
  const int64_t num_users = world.config().num_users;
  SyntheticWorldReport report;
  std::vector<UserRanks> ranks;
  for (int64_t begin = 0; begin < num_users; begin += kBlockUsers) {
    const int64_t end = std::min(begin + kBlockUsers, num_users);
    const std::vector<SyntheticWorld::User> users = draw_users(world, begin, end);
    ranks.resize(users.size());
#pragma omp parallel
    {
      BayesFilter filter(world);
      std::vector<double> scores(world.config().num_items);
#pragma omp for schedule(dynamic, 16)
      for (size_t i = 0; i < users.size(); ++i) {
        ranks[i] = rank_targets(users[i], counts, filter, scores);
      }
    }
    for (const UserRanks& user : ranks) {  // in order, so that the sums do not depend on threads
      for (int split = 0; split < 2; ++split) {
        WorldFigures& figures = split == 0 ? report.validation : report.test;
        add_target(figures.ceiling, user.ceiling[split]);
        add_target(figures.markov, user.markov[split]);
        add_target(figures.popularity, user.popularity[split]);
      }
    }
    if (progress) progress(static_cast<double>(end) / static_cast<double>(num_users));
  }
  for (WorldFigures* figures : {&report.validation, &report.test}) {
    for (auto* sums : {&figures->ceiling, &figures->markov, &figures->popularity}) {
      divide(*sums, num_users);
    }
  }
  return report;
}

void add_items(const SyntheticWorld& world, CorpusWriter& writer) {
  const int64_t num_items = world.config().num_items;
  for (int64_t item = 0; item < num_items; ++item) {
    const std::string title = world.title(item);
    writer.add_item(std::to_string(item + 1), title, json{{"title", title}}.dump());
  }
  constexpr int64_t kBlockItems = 4096;
  for (const auto& source : world.feature_sources()) {
    writer.add_feature(source.name, source.dim);
    for (int64_t begin = 0; begin < num_items; begin += kBlockItems) {
      const int64_t end = std::min(begin + kBlockItems, num_items);
      const std::vector<float> rows = world.draw_features(source, begin, end);
      writer.add_feature_rows(source.name, rows.data(), end - begin);
    }
  }
}

/// Writes all users and counts their training parts.
TrainingCounts add_users(const SyntheticWorld& world, CorpusWriter& writer) {
  const int64_t num_users = world.config().num_users;
  TrainingCounts counts(world.config().num_items);
  for (int64_t begin = 0; begin < num_users; begin += kBlockUsers) {
    int64_t user = begin;
    for (const auto& drawn : draw_users(world, begin, std::min(begin + kBlockUsers, num_users))) {
      writer.add_user({std::to_string(++user), drawn.items, drawn.timestamps, {}, {}});
      counts.add(drawn);
    }
  }
  return counts;
}

json to_json(const RankingFigures& figures) {
  return {{"recall@5", figures.recall_5},
          {"recall@10", figures.recall_10},
          {"ndcg@5", figures.ndcg_5},
          {"ndcg@10", figures.ndcg_10}};
}

json to_json(const WorldFigures& figures) {
  return {{"ceiling", to_json(figures.ceiling)},
          {"markov", to_json(figures.markov)},
          {"popularity", to_json(figures.popularity)}};
}

}  // namespace

SyntheticWorldReport write_synthetic_corpus(const std::filesystem::path& folder,
                                            const SyntheticWorldConfig& config,
                                            const std::function<void(double)>& progress) {
  const SyntheticWorld world(config);
  CorpusOptions options;
  options.dataset = "synthetic";
  CorpusWriter writer(folder, options, true, {});
  add_items(world, writer);
  const TrainingCounts counts = add_users(world, writer);
  const SyntheticWorldReport report = judge(world, counts, progress);
  JsonFields parameters;
  SyntheticWorldConfig(config).visit(parameters);
  writer.add_to_manifest("law", {{"parameters", parameters.values},
                                 {"validation", to_json(report.validation)},
                                 {"test", to_json(report.test)}});
  writer.finish();
  return report;
}

std::string to_table(const SyntheticWorldReport& report) {
  Table table({"split", "recommender", "recall@5", "recall@10", "ndcg@5", "ndcg@10",
               "recall@10 of the ceiling"});
  for (Split split : {Split::kValidation, Split::kTest}) {
    const WorldFigures& figures = report.of(split);
    const double ceiling = figures.ceiling.recall_10;
    const auto add_row = [&](const char* name, const RankingFigures& row) {
      table.add_row({to_string(split), name, format_number(row.recall_5, 4),
                     format_number(row.recall_10, 4), format_number(row.ndcg_5, 4),
                     format_number(row.ndcg_10, 4),
                     ceiling > 0 ? format_number(100 * row.recall_10 / ceiling, 1) + " %" : "-"});
    };
    add_row("exact filter (ceiling)", figures.ceiling);
    add_row("Markov", figures.markov);
    add_row("popularity", figures.popularity);
  }
  std::ostringstream text;
  table.print(text);
  return text.str();
}

}  // namespace mirabelle
