#include <CLI/CLI.hpp>
#include <iostream>
#include <optional>

#include "mirabelle/config/command_line.h"
#include "mirabelle/core/activity.h"
#include "mirabelle/core/files.h"
#include "mirabelle/core/json.h"
#include "mirabelle/core/table.h"
#include "mirabelle/evaluation/evaluator.h"
#include "mirabelle/evaluation/html_report.h"
#include "mirabelle/tokenizer/tokenizer_report.h"
#include "trained_model.h"

namespace {

using namespace mirabelle;
using nlohmann::json;

constexpr const char* kSummary =
    "Ranks all items for every user of a split and measures the lists, beside popularity and "
    "last-item Markov counts. The configuration is the checkpoint's own; --config and --set are "
    "laid over it.";
constexpr const char* kExamples =
    "mirabelle-evaluate --set evaluation.checkpoint=run/train --report report.html\n"
    "mpirun -n 2 mirabelle-evaluate --set evaluation.checkpoint=run/train --set "
    "evaluation.split=validation --json result.json --predictions predictions.jsonl";

struct Arguments {
  std::string predictions, report;
};

void add_options(CommandLine& command_line, Arguments& to) {
  command_line.app()
      .add_option("--predictions", to.predictions,
                  "Write each user's ranked items with scores, as JSON lines")
      ->type_name("FILE");
  command_line.app()
      .add_option("--report", to.report, "Draw a page with figures, curves and example users")
      ->type_name("FILE");
}

/// What is known of the training that made the checkpoint.
json training_facts(const std::filesystem::path& checkpoint) {
  const TrainingState state = read_training_state(checkpoint);
  json facts = {
      {"checkpoint", checkpoint.string()},
      {"checkpoint_step", state.step},
      {"train_steps", state.step},
      {"train_seconds", state.seconds},
      {"tokens_per_second",
       state.step_seconds > 0 ? static_cast<double>(state.tokens) / state.step_seconds : 0}};
  // The run may have gone on after its best checkpoint.
  const std::filesystem::path summary = checkpoint.parent_path().parent_path() / "summary.json";
  if (!std::filesystem::exists(summary)) return facts;
  const json of_run = parse_json(read_text_file(summary), summary.string());
  MIRABELLE_CHECK_DATA(of_run.is_object(), summary.string(), ": not a JSON object");
  for (const char* key : {"train_steps", "train_seconds", "tokens_per_second"}) {
    if (of_run.contains(key)) facts[key] = of_run[key];
  }
  facts["training"] = of_run;
  return facts;
}

/// What anybody could reach at best, where the corpus knows the law that drew it.
json ceiling(const Corpus& corpus, const std::string& split) {
  json figures = json::object();
  if (!corpus.manifest().contains("law")) return figures;
  const std::string where = (corpus.folder() / "manifest.json").string() + ": law: " + split;
  const json law = json_field<json>(corpus.manifest()["law"], split, where);
  const json values = json_field<json>(law, "ceiling", where);
  for (const auto& [name, value] : values.items()) {
    figures["ceiling_" + name] = json_value<double>(value, where + ": ceiling: " + name);
  }
  return figures;
}

void print_figures(const json& result, const EvaluationConfig& config) {
  std::vector<std::string> header{""}, names;
  for (const char* figure : {"recall@", "ndcg@"}) {
    for (int64_t k : config.top_k) {
      names.push_back(figure + std::to_string(k));
      header.insert(header.end(), {names.back(), "95 %"});
    }
  }
  Table table(header);
  for (const auto& [prefix, label] : {std::pair<std::string, std::string>{"", "model"},
                                      {"markov_", "Markov"},
                                      {"popularity_", "popularity"},
                                      {"ceiling_", "ceiling"}}) {
    std::vector<std::string> row{label};
    bool known = false;
    for (const std::string& name : names) {
      const bool has = result.contains(prefix + name);
      known = known || has;
      row.push_back(has ? format_number(result[prefix + name].get<double>(), 4) : "-");
      const bool has_interval = result["intervals"].contains(prefix + name);
      const json& interval = has_interval ? result["intervals"][prefix + name] : json{};
      row.push_back(has_interval ? "[" + format_number(interval[0].get<double>(), 4) + ", " +
                                       format_number(interval[1].get<double>(), 4) + "]"
                                 : "-");
    }
    if (known) table.add_row(row);
  }
  table.print(std::cout);
}

void print_result(const json& result, const EvaluationConfig& config) {
  std::cout << "\n"
            << result["dataset"].get<std::string>() << ", " << config.split << " split ("
            << result["split_rule"].get<std::string>() << ", hash "
            << result["split_hash"].get<std::string>().substr(0, 12)
            << ", ties: " << result["tie_policy"].get<std::string>() << "), "
            << format_count(result["users"].get<int64_t>()) << " users, "
            << format_count(result["items"].get<int64_t>()) << " items\n\n";
  print_figures(result, config);
  if (result.contains("bands")) {
    const std::string k = std::to_string(config.top_k.back());
    Table bands({"target", "targets", "recall@" + k});
    for (int band = 0; band < kNumBands; ++band) {
      const json& values = result["bands"][to_string(static_cast<Band>(band))];
      const auto targets = values["targets"].get<int64_t>();
      bands.add_row({to_string(static_cast<Band>(band)), format_count(targets),
                     targets > 0 ? format_number(values["recall"].get<double>(), 4) : "-"});
    }
    std::cout << "\n";
    bands.print(std::cout);
  }
  const std::string coverage = "coverage@" + std::to_string(config.top_k.back());
  std::cout << "\nmode " << config.mode << ", " << config.dtype << ", beam " << config.beam_size
            << ", history " << result["history_length"] << " items, history "
            << (config.exclude_history ? "excluded" : "competes") << "; " << result["invalid_beams"]
            << " invalid and " << result["duplicate_beams"] << " duplicate beams, "
            << result["short_lists"] << " short lists; " << coverage << " "
            << format_number(result[coverage].get<double>(), 3) << "; MRR "
            << format_number(result["mrr"].get<double>(), 4) << "; "
            << format_number(result["evaluation_seconds"].get<double>(), 1) << " s, "
            << format_number(result["users_per_second"].get<double>(), 1) << " users/s\n";
}

/// By the ranks of one tensor-parallel group together.
std::vector<ReportUser> report_users(TrainedModel& model, const Config& config) {
  constexpr int64_t kUsers = 5, kHistory = 10, kItems = 10;
  return example_users(model.corpus(), parse_split(config.evaluation.split), model.recommender(),
                       config.evaluation.exclude_history, kUsers, kHistory, kItems,
                       config.evaluation.seed);
}

void write_report(const std::string& path, const json& result, const TrainedModel& model,
                  std::vector<ReportUser> users) {
  ReportInput input;
  input.result = result;
  input.metrics = read_metrics(model.folder().parent_path().parent_path() / "metrics.jsonl");
  input.tokenizer = tokenizer_report(model.tokenizer().ids, num_code_levels(model.tokenizer()), {});
  input.users = std::move(users);
  write_text_file(path, html_report(input));
}

int evaluate(int argc, char** argv, const Communicator& world) {
  Config config;
  Arguments arguments;
  CommandLine command_line("mirabelle-evaluate", kSummary, kExamples, config.sections());
  command_line.set_base([&] { take_checkpoint_config(config); });
  add_options(command_line, arguments);
  if (const auto status = command_line.parse(argc, argv, world)) return *status;
  const Watchdog watchdog(config.parallel.fault_timeout_seconds, world.rank());

  const Device device = choose_device(config.backend, world);
  TrainedModel model(config, device, world);
  const Corpus& corpus = model.corpus();
  if (world.rank() == 0) spdlog::info("backend {}, {} ranks", describe(device), world.size());
  const json known = training_facts(model.folder());
  std::optional<CountingBaselines> baselines;
  if (config.evaluation.baselines) baselines.emplace(corpus);
  std::optional<PredictionWriter> predictions;
  const ParallelContext& ranks = model.ranks();
  if (!arguments.predictions.empty() && ranks.tensor().rank() == 0) {
    predictions.emplace(arguments.predictions, corpus, PredictionWriter::Targets::kWritten,
                        ranks.data());
  }
  Progress progress("evaluate", world.rank() == 0);
  const EvaluationResult measured = evaluate_users(
      corpus, model.recommender(), config.evaluation, ranks.data(),
      baselines ? &*baselines : nullptr, predictions ? &*predictions : nullptr, &progress);
  std::vector<ReportUser> users;
  if (!arguments.report.empty() && ranks.data().rank() == 0) users = report_users(model, config);
  if (world.rank() != 0) return 0;

  json result = to_json(measured, corpus, config.evaluation, config.data.history_length);
  result.update(known);
  result.update(ceiling(corpus, config.evaluation.split));
  result["config"] = to_yaml(config);
  result["version"] = MIRABELLE_VERSION;
  result["ranks"] = world.size();
  command_line.write_result(result);
  if (!arguments.report.empty()) write_report(arguments.report, result, model, std::move(users));
  print_result(result, config.evaluation);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  return mirabelle::run_main(
      argc, argv, "mirabelle-evaluate",
      [&](const mirabelle::Communicator& world) { return evaluate(argc, argv, world); });
}
