#include <CLI/CLI.hpp>
#include <algorithm>
#include <iostream>

#include "mirabelle/config/command_line.h"
#include "mirabelle/core/activity.h"
#include "mirabelle/core/progress.h"
#include "mirabelle/core/table.h"
#include "mirabelle/evaluation/html_report.h"
#include "mirabelle/evaluation/predictions.h"
#include "mirabelle/evaluation/user_histories.h"
#include "recommend_lines.h"
#include "trained_model.h"

namespace {

using namespace mirabelle;
using nlohmann::json;

constexpr int64_t kShownUsers = 3;

constexpr const char* kSummary =
    "Recommends the next items of users, after their whole histories: of users of the corpus, or "
    "of "
    "JSON lines on standard input. The configuration is the checkpoint's own; --config and --set "
    "are "
    "laid over it. With --output an interrupted run goes on where it was when it is started again.";
constexpr const char* kExamples =
    "mirabelle-recommend --set evaluation.checkpoint=run/train --user 17 --user 23\n"
    "mpirun -n 2 mirabelle-recommend --set evaluation.checkpoint=run/train --output top10.jsonl\n"
    "mirabelle-recommend --set evaluation.checkpoint=run/train --stdin < users.jsonl > top10.jsonl";

struct Arguments {
  std::vector<std::string> users;
  std::string output;
  int64_t count = 10;
  bool reads_stdin = false;
};

void add_options(CommandLine& command_line, Arguments& to) {
  CLI::App& app = command_line.app();
  app.add_option("--user", to.users,
                 "A user by the ID of the data set; may be repeated. Without it all users")
      ->type_name("ID")
      ->take_all()
      ->expected(1)
      ->allow_extra_args(false);
  app.add_flag(
         "--stdin", to.reads_stdin,
         "Read users from standard input, JSON lines {\"user\": anything, \"items\": [ID, ...]} "
         "with histories of the catalogue's items, oldest first; without --output the answers "
         "go to standard output, in the same order")
      ->excludes("--user");
  app.add_option("--count", to.count, "Items for each user")->capture_default_str();
  app.add_option("--output", to.output,
                 "Write JSON lines {\"user\", \"items\", \"scores\"}, ordered by user")
      ->type_name("FILE");
}

/// The whole histories of some users, as queries.
struct Queries {
  Queries(const Corpus& corpus, std::span<const int64_t> users, bool exclude_history)
      : histories(read_user_histories(corpus, users)), ids(read_user_ids(corpus, users)) {
    for (int64_t i = 0; i < histories.num_users(); ++i) {
      excluded.push_back(exclude_history ? distinct_items(histories.history(i))
                                         : std::vector<int32_t>{});
    }
    for (int64_t i = 0; i < histories.num_users(); ++i) {
      queries.push_back({histories.history(i), excluded[i]});
    }
  }
  HistoryBlock histories;
  std::vector<json> ids;
  std::vector<std::vector<int32_t>> excluded;
  std::vector<RecommendationQuery> queries;
};

void print_users(const Corpus& corpus, const Queries& asked, const RankedLists& lists,
                 int64_t count) {
  for (int64_t i = 0; i < lists.num_users(); ++i) {
    const auto history = asked.histories.history(i);
    std::cout << "\nUser " << id_text(asked.ids[i]) << ", after " << history.size() << " items"
              << (history.empty() ? "" : ", last: " + item_title(corpus, history.back())) << "\n";
    Table table({"", "item", "title", "log-probability"});
    const auto items = lists.list(i);
    for (size_t rank = 0; rank < std::min<size_t>(items.size(), count); ++rank) {
      table.add_row({std::to_string(rank + 1), id_text(corpus.item_id(items[rank])),
                     item_title(corpus, items[rank]),
                     format_number(lists.list_scores(i)[rank], 3)});
    }
    table.print(std::cout);
  }
}

/// What the lines of an output follow from, whatever the layout.
std::string describe_run(const Config& config, const Arguments& arguments,
                         const TrainedModel& model, const std::vector<int64_t>& users) {
  Config described = config;
  described.backend = {};
  described.parallel = {};
  json named = json::array();
  for (const std::string& user : arguments.users) named.push_back(user);
  return json{{"checkpoint", model.folder().string()},
              {"step", read_training_state(model.folder()).step},
              {"config", to_yaml(described)},
              {"count", arguments.count},
              {"users", users.size()},
              {"named", named}}
      .dump();
}

/// Of the corpus: those that are named or all, ascending.
std::vector<int64_t> chosen_users(const Corpus& corpus, const Arguments& arguments,
                                  const EvaluationConfig& evaluation) {
  std::vector<int64_t> users = arguments.users.empty()
                                   ? select_users(corpus, evaluation.max_users, evaluation.seed)
                                   : find_users(corpus, arguments.users);
  std::sort(users.begin(), users.end());
  users.erase(std::unique(users.begin(), users.end()), users.end());
  return users;
}

/// Every data-parallel rank ranks the items of its blocks of users; the ranks of a tensor-parallel
/// group do so together. Collective.
void write_users(TrainedModel& model, const Config& config, const Arguments& arguments,
                 std::vector<int64_t> users, const Communicator& world) {
  const EvaluationConfig& evaluation = config.evaluation;
  const ParallelContext& ranks = model.ranks();
  const auto num_users = static_cast<int64_t>(users.size());
  const std::vector<int64_t> done =
      recover_predictions(arguments.output, describe_run(config, arguments, model, users), world);
  std::erase_if(users, [&](int64_t user) { return std::ranges::binary_search(done, user); });
  if (!done.empty() && world.rank() == 0) {
    spdlog::info("{} of {} users were done before", done.size(), num_users);
  }
  std::optional<PredictionWriter> writer;
  if (ranks.tensor().rank() == 0) {
    writer.emplace(arguments.output, model.corpus(), PredictionWriter::Targets::kUnknown,
                   ranks.data(), /*resumable=*/true);
  }
  const Recommender recommender = model.recommender();
  Progress progress("recommend", world.rank() == 0);
  const auto num_left = static_cast<int64_t>(users.size());
  for_each_block_of_rank(num_left, evaluation.batch_users, ranks.data().rank(), ranks.data().size(),
                         [&](int64_t begin, int64_t end) {
                           const auto block = std::span(users).subspan(begin, end - begin);
                           const Queries asked(model.corpus(), block, evaluation.exclude_history);
                           const RankedLists lists = recommender(asked.queries);
                           for (int64_t i = 0; writer && i < end - begin; ++i) {
                             const size_t size =
                                 std::min<size_t>(lists.list(i).size(), arguments.count);
                             writer->add(block[i], asked.ids[i], {}, lists.list(i).first(size),
                                         lists.list_scores(i).first(size));
                           }
                           progress.update(num_users - num_left + end, num_users);
                         });
  if (writer) writer->finish();
}

/// Of the corpus, on the terminal: all users that were named, else a few.
void show_users(TrainedModel& model, const Config& config, const Arguments& arguments,
                const std::vector<int64_t>& users, const Communicator& world) {
  if (model.ranks().data().rank() != 0) return;
  const auto num_users = static_cast<int64_t>(users.size());
  const int64_t num_shown = arguments.users.empty() ? std::min(kShownUsers, num_users) : num_users;
  const Queries asked(model.corpus(), std::span(users).first(num_shown),
                      config.evaluation.exclude_history);
  const RankedLists lists = model.recommender()(asked.queries);
  if (world.rank() == 0) print_users(model.corpus(), asked, lists, arguments.count);
}

int recommend(int argc, char** argv, const Communicator& world) {
  Config config;
  Arguments arguments;
  CommandLine command_line("mirabelle-recommend", kSummary, kExamples, config.sections());
  command_line.set_base([&] { take_checkpoint_config(config); });
  add_options(command_line, arguments);
  if (const auto status = command_line.parse(argc, argv, world)) return *status;
  const Watchdog watchdog(config.parallel.fault_timeout_seconds, world.rank());
  const EvaluationConfig& evaluation = config.evaluation;
  MIRABELLE_CHECK_USAGE(arguments.count > 0 && arguments.count <= evaluation.beam_size, "--count ",
                        arguments.count, " must be between 1 and ", "evaluation.beam_size, ",
                        evaluation.beam_size);

  const Device device = choose_device(config.backend, world);
  TrainedModel model(config, device, world);
  int64_t num_users = 0;
  if (arguments.reads_stdin) {
    num_users = recommend_lines(model, config, {std::cin, arguments.output, arguments.count});
  } else {
    const std::vector<int64_t> users = chosen_users(model.corpus(), arguments, evaluation);
    num_users = static_cast<int64_t>(users.size());
    if (!arguments.output.empty()) write_users(model, config, arguments, users, world);
    show_users(model, config, arguments, users, world);
  }
  if (world.rank() != 0) return 0;
  command_line.write_result({{"users", num_users},
                             {"items", model.corpus().num_items()},
                             {"count", arguments.count},
                             {"output", arguments.output},
                             {"checkpoint", model.folder().string()},
                             {"config", to_yaml(config)},
                             {"version", MIRABELLE_VERSION}});
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  return mirabelle::run_main(
      argc, argv, "mirabelle-recommend",
      [&](const mirabelle::Communicator& world) { return recommend(argc, argv, world); });
}
