#include <CLI/CLI.hpp>
#include <iostream>
#include <memory>

#include "mirabelle/config/command_line.h"
#include "mirabelle/core/error.h"
#include "mirabelle/core/progress.h"
#include "mirabelle/core/table.h"
#include "mirabelle/data/corpus_stats.h"
#include "mirabelle/data/dataset_folder.h"
#include "mirabelle/data/event_log.h"
#include "mirabelle/data/synthetic_corpus.h"
#include "mirabelle/data/verify.h"

namespace mirabelle {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr char kExamples[] =
    "mirabelle-data import beauty --output beauty/corpus\n"
    "mirabelle-data import --events ratings.csv --user-column userId --item-column movieId "
    "--time-column timestamp --output movies/corpus\n"
    "mirabelle-data synth --output world/corpus --set synthetic.num_users=50000\n"
    "mirabelle-data stats beauty/corpus\n"
    "mirabelle-data verify beauty/corpus";

constexpr char kImportHelp[] =
    "Turns a dataset folder, or with --events a raw event log, into a corpus.\n\n"
    "A dataset folder holds sequences.txt (a line per user: USER ITEM ITEM ..., oldest first, "
    "items "
    "numbered from 1) and, optionally, items.jsonl (a JSON object per item: \"item\", \"title\", "
    "...), timestamps.txt and other files of the shape of sequences.txt, and features/NAME.npy "
    "([num_items + 1, dim], row 0 zeros).\n\n"
    "An event log is a CSV or TSV file with a header and one event per line, in any order, of any "
    "size. The corpus then has its users in ascending order of their IDs.";

constexpr char kSynthHelp[] =
    "Draws a world with a known law into a corpus, and computes the best figures that anybody can "
    "reach on it. Its parameters are the configuration section `synthetic` (--print-config).";

struct ImportArguments {
  std::string folder, output, valid_from, test_from;
  EventLogSource log;
  std::vector<std::string> features;
  std::string delimiter = "auto";
  int64_t memory_mib = 1024;
  CorpusOptions options;
};

void add_import_options(CLI::App& command, ImportArguments& to) {
  command.add_option("FOLDER", to.folder, "The dataset folder");
  command.add_option("--output", to.output, "The corpus folder to write; replaces a former one")
      ->required();
  command.add_option("--name", to.options.dataset,
                     "Name of the data set (default: that of the folder or file)");
  command
      .add_option("--split", to.options.split,
                  "leave_one_out: the last event tests, the one before it validates. time: events "
                  "from --test-from on test, earlier ones from --valid-from on validate")
      ->capture_default_str();
  command.add_option("--valid-from", to.valid_from, "Seconds since 1970, or a date: 2018-06-01");
  command.add_option("--test-from", to.test_from, "Seconds since 1970, or a date: 2018-09-01");
  command
      .add_option("--tie-policy", to.options.tie_policy,
                  "Order of a user's events of the same time: file (as they come) or shuffle")
      ->capture_default_str();
  command.add_option("--seed", to.options.tie_seed, "Of --tie-policy shuffle")
      ->capture_default_str();
  command.add_option("--users-per-shard", to.options.users_per_shard, "Users in one file")
      ->capture_default_str();
  const std::string group = "Event log";
  auto& log = to.log;
  command.add_option("--events", log.events, "The event log")->group(group);
  command.add_option("--user-column", log.user_column, "Name of the column of user IDs")
      ->group(group);
  command.add_option("--item-column", log.item_column, "Name of the column of item IDs")
      ->group(group);
  command
      .add_option("--time-column", log.time_column,
                  "Name of the column of times: seconds since 1970 or ISO 8601 dates")
      ->group(group);
  command.add_option("--delimiter", to.delimiter, "auto, tab, comma, semicolon or one character")
      ->capture_default_str()
      ->group(group);
  command.add_option("--items", log.items, "items.jsonl: what is known about the items")
      ->group(group);
  command
      .add_option("--features", to.features,
                  "NAME=FILE.npy, may be repeated; row i is of line i of --items, row 0 zeros")
      ->take_all()
      ->expected(1)
      ->allow_extra_args(false)
      ->group(group);
  command
      .add_option("--min-user-events", log.min_user_events,
                  "Drop users with fewer events, and so on until nothing changes (k-core)")
      ->capture_default_str()
      ->group(group);
  command.add_option("--min-item-events", log.min_item_events, "Drop items with fewer events")
      ->capture_default_str()
      ->group(group);
  command
      .add_option("--memory-mib", to.memory_mib,
                  "Memory for sorting; larger logs are sorted on disk, beside the output")
      ->capture_default_str()
      ->group(group);
}

int64_t parse_moment(const std::string& text, const char* option) {
  double seconds = 0;
  MIRABELLE_CHECK_USAGE(parse_time(text, seconds), option, " is \"", text,
                        "\", wanted seconds since 1970 or a date such as 2018-06-01");
  return static_cast<int64_t>(seconds);
}

char parse_delimiter(const std::string& text) {
  if (text == "auto") return 0;
  if (text == "tab" || text == "\\t") return '\t';
  if (text == "comma") return ',';
  if (text == "semicolon") return ';';
  MIRABELLE_CHECK_USAGE(text.size() == 1 && text != "\"", "--delimiter is \"", text,
                        "\", wanted auto, tab, comma, semicolon or one character");
  return text.front();
}

/// Completes what the command line gave as text.
void resolve(ImportArguments& arguments) {
  const bool is_log = !arguments.log.events.empty();
  MIRABELLE_CHECK_USAGE(is_log != !arguments.folder.empty(),
                        "import wants either a dataset folder or --events FILE");
  const bool has_log_options =
      !arguments.features.empty() || !arguments.log.items.empty() ||
      !arguments.log.user_column.empty() || !arguments.log.item_column.empty() ||
      !arguments.log.time_column.empty() || arguments.log.min_user_events != 1 ||
      arguments.log.min_item_events != 1;
  MIRABELLE_CHECK_USAGE(is_log || !has_log_options,
                        "options of the group \"Event log\" want --events FILE");
  CorpusOptions& options = arguments.options;
  if (options.dataset.empty()) {
    const fs::path source =
        fs::absolute(is_log ? arguments.log.events : fs::path(arguments.folder)).lexically_normal();
    options.dataset = (source.has_filename() ? source : source.parent_path()).stem().string();
  }
  const bool is_time = options.split == "time";
  MIRABELLE_CHECK_USAGE(
      is_time == !arguments.test_from.empty() && is_time == !arguments.valid_from.empty(),
      "--valid-from and --test-from belong to --split time, and it wants both");
  if (is_time) {
    options.valid_from = parse_moment(arguments.valid_from, "--valid-from");
    options.test_from = parse_moment(arguments.test_from, "--test-from");
  }
  arguments.log.delimiter = parse_delimiter(arguments.delimiter);
  MIRABELLE_CHECK_USAGE(1 <= arguments.memory_mib && arguments.memory_mib < (1 << 24),
                        "--memory-mib is ", arguments.memory_mib, ", wanted at least 1");
  arguments.log.memory_bytes = arguments.memory_mib << 20;
  for (const std::string& feature : arguments.features) {
    const size_t equals = feature.find('=');
    MIRABELLE_CHECK_USAGE(equals != std::string::npos && equals > 0, "--features is \"", feature,
                          "\", wanted NAME=FILE.npy");
    arguments.log.features.emplace_back(feature.substr(0, equals), feature.substr(equals + 1));
  }
}

void print_columns(const EventLogSummary& summary) {
  const auto print = [](const char* what, const std::vector<std::string>& names) {
    if (names.empty()) return;
    std::cout << what;
    for (const std::string& name : names) std::cout << ' ' << name;
    std::cout << '\n';
  };
  print("event columns kept:", summary.kept_columns);
  print("columns dropped, since they do not hold numbers:", summary.dropped_columns);
}

/// The part of a work that is done, in a form that Progress can take the rate of.
void show_fraction(Progress& progress, double fraction) {
  progress.update(static_cast<int64_t>(fraction * 1000), 1000);
}

json import(ImportArguments& arguments) {
  resolve(arguments);
  const fs::path output = arguments.output;
  json result;
  {
    Progress progress("import");
    arguments.options.progress = [&](int64_t events, double fraction) {
      const double total = fraction > 0 ? static_cast<double>(events) / fraction : 0;
      progress.update(events, std::max(events, static_cast<int64_t>(total)), "events");
    };
    if (arguments.log.events.empty()) {
      import_dataset_folder(arguments.folder, output, arguments.options);
    } else {
      arguments.options.progress = [&](int64_t, double fraction) {
        show_fraction(progress, fraction);
      };
      const EventLogSummary summary = import_event_log(arguments.log, output, arguments.options);
      progress.clear();
      print_columns(summary);
      result["events_read"] = summary.events_read;
      result["dropped_columns"] = summary.dropped_columns;
      result["sorted_runs"] = summary.num_runs;
    }
  }
  const Corpus corpus(output);
  std::cout << corpus.dataset() << ": " << format_count(corpus.num_users()) << " users, "
            << format_count(corpus.num_items()) << " items, " << format_count(corpus.num_events())
            << " events in " << corpus.num_shards()
            << (corpus.num_shards() == 1 ? " shard" : " shards") << "\nsplit "
            << corpus.split_name() << ", hash " << corpus.split_hash() << "\nwritten to "
            << output.string() << '\n';
  result.update(json{{"corpus", output.string()},
                     {"dataset", corpus.dataset()},
                     {"users", corpus.num_users()},
                     {"items", corpus.num_items()},
                     {"events", corpus.num_events()},
                     {"split", corpus.split_name()},
                     {"split_hash", corpus.split_hash()}});
  return result;
}

json synth(const SyntheticWorldConfig& config, const std::string& output) {
  Progress progress("synth");
  const SyntheticWorldReport report = write_synthetic_corpus(
      output, config, [&](double fraction) { show_fraction(progress, fraction); });
  progress.clear();
  std::cout << to_table(report) << "\nwritten to " << output << '\n';
  return Corpus(output).manifest();
}

std::string text_of(const json& value) {
  if (value.is_null()) return "-";
  if (value.is_number_integer()) return format_count(value);
  if (value.is_number()) return format_number(value, 3);
  return value.is_string() ? value.get<std::string>() : value.dump();
}

std::string list(const json& object, const std::vector<std::string>& keys) {
  std::string text;
  for (const std::string& key : keys) {
    text += (text.empty() ? "" : ", ") + key + " " + text_of(object[key]);
  }
  return text;
}

std::string date_of(const json& seconds) {
  if (seconds.is_null()) return "-";
  const std::chrono::sys_seconds moment{std::chrono::seconds(seconds.get<int64_t>())};
  const std::chrono::year_month_day day{std::chrono::floor<std::chrono::days>(moment)};
  char text[32];
  std::snprintf(text, sizeof text, "%04d-%02u-%02u", static_cast<int>(day.year()),
                static_cast<unsigned>(day.month()), static_cast<unsigned>(day.day()));
  return text;
}

std::string moments_of(const json& split) {
  if (!split.contains("test_from")) return "";
  return ", validation from " + date_of(split["valid_from"]) + ", test from " +
         date_of(split["test_from"]);
}

void add_packing_options(CLI::App& command, PackingOptions& to) {
  const CLI::Range positive(int64_t{1}, int64_t{1} << 30, "POSITIVE");
  const auto add = [&](const char* name, int64_t& value, const char* help) {
    command.add_option(name, value, help)
        ->capture_default_str()
        ->check(positive)
        ->group("Packing of the training histories");
  };
  add("--part-tokens", to.part_tokens, "Tokens in a part: training.micro_batch_tokens");
  add("--parts-per-step", to.parts_per_step,
      "Parts of an optimizer step: training.global_batch_tokens / micro_batch_tokens");
  add("--levels", to.num_levels, "Tokens per item: the length of its semantic ID");
  add("--max-sequence-tokens", to.max_sequence_tokens,
      "Longer histories are cut: training.max_sequence_tokens");
}

std::string packing_of(const json& figures) {
  return "fill " + format_number(100 * figures["fill"].get<double>(), 2) +
         " %, the largest part of a step has " + format_number(figures["imbalance"], 3) +
         " times the mean part's attention work";
}

json stats(const std::string& folder, const PackingOptions& packing) {
  const Corpus corpus(folder);
  const json stats = corpus_stats(corpus, packing);
  Table table({"corpus", stats["dataset"]});
  const auto row = [&](const char* name, const std::string& text) { table.add_row({name, text}); };
  for (const char* key : {"users", "items", "events", "shards", "bytes"})
    row(key, text_of(stats[key]));
  if (!stats["history_length"].is_null()) {
    row("history length",
        list(stats["history_length"], {"min", "p10", "median", "p90", "p99", "max", "mean"}));
  }
  row("repeated events", text_of(stats["repeated_events"]));
  row("split", text_of(stats["split"]["name"]) + moments_of(stats["split"]));
  row("split hash", text_of(stats["split_hash"]));
  row("tie policy", text_of(stats["tie_policy"]["name"]));
  row("training events", text_of(stats["train_events"]));
  row("validation targets", text_of(stats["validation_targets"]) +
                                ", of items unseen in training " +
                                text_of(stats["unseen_validation_targets"]));
  row("test targets", text_of(stats["test_targets"]) + ", of items unseen in training " +
                          text_of(stats["unseen_test_targets"]));
  row("items without events", text_of(stats["items_without_events"]));
  if (!stats["popularity"].is_null()) {
    const auto percent = [&](const char* key) {
      return format_number(100 * stats["popularity"][key].get<double>(), 1) + " %";
    };
    row("popularity", "top 1 % of items " + percent("top_1_percent") + " of events, top 10 % " +
                          percent("top_10_percent") + ", Gini " +
                          format_number(stats["popularity"]["gini"], 3));
  }
  if (!stats["timestamps"].is_null()) {
    row("times", date_of(stats["timestamps"]["first"]) + " to " +
                     date_of(stats["timestamps"]["last"]) + ", unknown " +
                     text_of(stats["timestamps"]["unknown"]));
  }
  for (const auto& [name, range] : stats["columns"].items()) {
    row(("column " + name).c_str(), list(range, {"min", "max", "mean", "missing"}));
  }
  for (const json& feature : stats["features"]) {
    row(("feature " + feature["name"].get<std::string>()).c_str(), list(feature, {"dim"}));
  }
  if (const json& packed = stats["packing"]; !packed.is_null()) {
    row("training sequences", text_of(packed["sequences"]) + " in parts of " +
                                  text_of(packed["part_tokens"]) + " tokens, " +
                                  text_of(packed["parts_per_step"]) + " per step");
    row("packed first fit", packing_of(packed["first_fit"]));
    row("packed balanced", packing_of(packed["balanced"]));
  }
  table.print(std::cout);
  return stats;
}

/// Prints every problem. The exit status is that of the ErrorKind for bad data, if there is one.
std::pair<json, int> verify(const std::string& folder) {
  std::vector<std::string> problems;
  {
    Progress progress("verify");
    problems = verify_corpus(folder, [&](double fraction) { show_fraction(progress, fraction); });
  }
  for (const std::string& problem : problems) std::cerr << "mirabelle-data: " << problem << '\n';
  const json result = {{"corpus", folder}, {"whole", problems.empty()}, {"problems", problems}};
  if (!problems.empty()) return {result, static_cast<int>(ErrorKind::kData)};
  const Corpus corpus(folder);
  std::cout << folder << ": whole; " << format_count(corpus.num_users()) << " users, "
            << format_count(corpus.num_items()) << " items, " << format_count(corpus.num_events())
            << " events, split hash " << corpus.split_hash() << '\n';
  return {result, 0};
}

int run(int argc, char** argv, const Communicator& self) {
  SyntheticWorldConfig world;
  CommandLine command_line(
      "mirabelle-data", "Makes corpora out of data sets and event logs, describes and checks them.",
      kExamples, {config_section("synthetic", world)});
  CLI::App& app = command_line.app();
  ImportArguments arguments;
  std::string folder, output;
  CLI::App& import_command = *app.add_subcommand("import", kImportHelp);
  add_import_options(import_command, arguments);
  CLI::App& synth_command = *app.add_subcommand("synth", kSynthHelp);
  synth_command.add_option("--output", output, "The corpus folder to write; replaces a former one");
  CLI::App& stats_command = *app.add_subcommand("stats", "Describes a corpus.");
  stats_command.add_option("CORPUS", folder, "The corpus folder")->required();
  PackingOptions packing;
  add_packing_options(stats_command, packing);
  CLI::App& verify_command = *app.add_subcommand(
      "verify",
      "Checks a corpus, down to every dataset; prints every problem, and exits 3 if there is one.");
  verify_command.add_option("CORPUS", folder, "The corpus folder")->required();
  app.require_subcommand(0, 1);
  if (const auto status = command_line.parse(argc, argv, self)) return *status;
  MIRABELLE_CHECK_USAGE(!app.get_subcommands().empty(),
                        "wanted import, synth, stats or verify (see mirabelle-data --help)");

  int exit_status = 0;
  json result;
  if (import_command.parsed()) {
    result = import(arguments);
  } else if (synth_command.parsed()) {
    MIRABELLE_CHECK_USAGE(!output.empty(), "synth wants --output FOLDER");
    result = synth(world, output);
  } else if (stats_command.parsed()) {
    result = stats(folder, packing);
  } else {
    std::tie(result, exit_status) = verify(folder);
  }
  command_line.write_result(result);
  return exit_status;
}

}  // namespace
}  // namespace mirabelle

int main(int argc, char** argv) {
  return mirabelle::run_serial_main("mirabelle-data", [&](const mirabelle::Communicator& self) {
    return mirabelle::run(argc, argv, self);
  });
}
