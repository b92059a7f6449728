#include <omp.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <iostream>

#include "mirabelle/config/command_line.h"
#include "mirabelle/config/config.h"
#include "mirabelle/config/preflight.h"
#include "mirabelle/core/error.h"
#include "mirabelle/core/files.h"
#include "mirabelle/core/json.h"
#include "mirabelle/core/logging.h"
#include "mirabelle/core/progress.h"
#include "mirabelle/core/table.h"
#include "mirabelle/tokenizer/code_quality.h"
#include "mirabelle/tokenizer/tokenizer_assigner.h"
#include "mirabelle/tokenizer/tokenizer_builder.h"
#include "mirabelle/tokenizer/tokenizer_report.h"

namespace mirabelle {
namespace {

/// How fast the items went by; in the result for machines.
struct Throughput {
  double seconds = 0;  ///< of everything
  struct Passes {
    int64_t count = 0;
    double seconds_per_item = 0;  ///< summed over them
  };
  std::vector<Passes> levels;          ///< k-means iterations
  double rq_vae_items_per_second = 0;  ///< of the newest steps of its training
  double encoded_items_per_second = 0;

  void add_to(nlohmann::json& report) const {
    report["seconds"] = seconds;
    for (size_t level = 0; level < levels.size(); ++level) {
      const double count = static_cast<double>(levels[level].count);
      report["levels"][level]["iterations"] = levels[level].count;
      report["levels"][level]["items_per_second"] = count / levels[level].seconds_per_item;
    }
    if (rq_vae_items_per_second > 0) {
      report["rq_vae"]["items_per_second"] = rq_vae_items_per_second;
      report["rq_vae"]["encoded_items_per_second"] = encoded_items_per_second;
    }
  }
};

TokenizerProgress shown_by(Progress& progress, Progress& encoding_progress,
                           Throughput& throughput) {
  const auto kmeans = [&](const KMeansProgress& now) {
    throughput.levels.resize(now.num_levels);
    ++throughput.levels[now.level].count;
    throughput.levels[now.level].seconds_per_item += 1 / now.items_per_second;
    progress.update(
        now.level * now.max_iterations + now.iteration + 1, now.num_levels * now.max_iterations,
        "level " + std::to_string(now.level + 1) + "/" + std::to_string(now.num_levels) +
            "  iteration " + std::to_string(now.iteration + 1) + "  error " +
            format_number(now.error, 4) + "  change " +
            format_number(100 * now.relative_change, 3) + " %  " +
            format_count(static_cast<int64_t>(now.items_per_second)) + " items/s");
  };
  const auto rq_vae = [&](const RqVaeProgress& now) {
    throughput.rq_vae_items_per_second = now.items_per_second;
    progress.update(now.step, now.steps,
                    "reconstruction " + format_number(now.reconstruction, 4) + "  quantization " +
                        format_number(now.quantization, 4) +
                        (now.contrastive > 0 ? "  contrastive " + format_number(now.contrastive, 3)
                                             : std::string()) +
                        "  " + format_number(100 * now.used_codes, 1) + " % of the codes  " +
                        format_count(static_cast<int64_t>(now.items_per_second)) + " items/s");
  };
  const auto encoding = [&](const EncodingProgress& now) {
    throughput.encoded_items_per_second = now.items_per_second;
    encoding_progress.update(
        now.items, now.num_items,
        format_count(static_cast<int64_t>(now.items_per_second)) + " items/s on all ranks");
  };
  return {kmeans, rq_vae, encoding};
}

TokenizerFile build(const Corpus& corpus, const Config& config, const Communicator& world,
                    Throughput& throughput) {
  const Device device = choose_device(config.backend, world);
  if (world.rank() == 0) {
    spdlog::info("backend {}, {} ranks x {} threads", describe(device), world.size(),
                 omp_get_max_threads());
  }
  const DeviceCommunicator communicator(world, device, config.parallel, true);
  checked_groups(communicator.get(), 1, device);
  Progress progress("tokenizer", world.rank() == 0), encoding("encoding", world.rank() == 0);
  const auto start = std::chrono::steady_clock::now();
  TokenizerFile tokenizer = build_tokenizer(
      corpus, {config.tokenizer, config.rq_vae, config.co_occurrence, to_yaml(config)}, device,
      communicator.get(), shown_by(progress, encoding, throughput));
  throughput.seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return tokenizer;
}

TokenizerFile assign(const Corpus& corpus, const Config& config, const Communicator& world) {
  const TokenizerFile old = read_tokenizer_file(config.tokenizer.file);
  AssignedTokenizer assigned = assign_new_items(old, corpus, config.tokenizer.batch_items, world);
  if (world.rank() > 0) return std::move(assigned.tokenizer);
  std::cout << format_count(assigned.num_new_items) << " new items got semantic IDs; the "
            << format_count(old.ids.num_items()) << " old ones keep theirs.\n";
  if (assigned.tokenizer.ids.vocab_size() != old.ids.vocab_size()) {
    std::cout << "The vocabulary grew from " << format_count(old.ids.vocab_size()) << " to "
              << format_count(assigned.tokenizer.ids.vocab_size())
              << " tokens: models trained before know nothing of the new ones.\n";
  }
  return std::move(assigned.tokenizer);
}

/// Prints how far two tokenizers of the same items agree.
nlohmann::json compare(const std::vector<std::string>& files) {
  const TokenizerFile a = read_tokenizer_file(files[0]), b = read_tokenizer_file(files[1]);
  MIRABELLE_CHECK_DATA(a.item_ids == b.item_ids, files[0], " and ", files[1],
                       " are tokenizers of different items, or in different order");
  const int64_t num_codes = std::min(num_code_levels(a), num_code_levels(b));
  nlohmann::json agreement = nlohmann::json::array();
  Table table({"first codes", "adjusted Rand index"});
  for (int64_t codes = 1; codes <= num_codes; ++codes) {
    agreement.push_back(code_agreement(a.ids, b.ids, codes));
    table.add_row({std::to_string(codes), format_number(agreement.back().get<double>(), 4)});
  }
  table.print(std::cout);
  std::cout << "\n1: both group the " << format_count(a.ids.num_items())
            << " items alike by their first codes; 0: as alike as by chance.\n";
  return {{"files", files}, {"num_items", a.ids.num_items()}, {"agreement", agreement}};
}

int run(int argc, char** argv, const Communicator& world) {
  Config config;
  bool assigns = false;
  std::vector<std::string> compared;
  CommandLine command_line(
      "mirabelle-tokenizer-build",
      "Gives every item of a corpus a semantic ID and writes them, with the codebooks, to "
      "tokenizer.file.",
      "mirabelle-tokenizer-build --set data.corpus=beauty/corpus "
      "--set tokenizer.file=beauty/tokenizer.h5\n"
      "mpirun -n 4 mirabelle-tokenizer-build --config beauty.yaml --set "
      "'tokenizer.levels=[256, 256, 256]'\n"
      "mirabelle-tokenizer-build --config beauty.yaml --assign\n"
      "mirabelle-tokenizer-build --compare seed_0.h5 seed_1.h5",
      config.sections());
  command_line.app().add_flag(
      "--assign", assigns,
      "Keep the codebooks and all codes of tokenizer.file, and give codes to the items of "
      "data.corpus that it does not have yet");
  command_line.app()
      .add_option(
          "--compare", compared,
          "Print how far the codes of two tokenizer files group their items alike, and build "
          "nothing")
      ->type_name("A.h5 B.h5")
      ->expected(2);
  if (const auto status = command_line.parse(argc, argv, world)) return *status;
  if (!compared.empty()) {
    if (world.rank() == 0) command_line.write_result(compare(compared));
    world.barrier();
    return 0;
  }
  MIRABELLE_CHECK_USAGE(!config.data.corpus.empty(),
                        "data.corpus must name the folder of a corpus (see mirabelle-data import)");

  const Corpus corpus(config.data.corpus);
  if (world.rank() == 0) check_writable(config.tokenizer.file);
  Throughput throughput;
  const TokenizerFile tokenizer =
      assigns ? assign(corpus, config, world) : build(corpus, config, world, throughput);
  if (world.rank() == 0) {
    write_tokenizer_file(config.tokenizer.file, tokenizer);
    nlohmann::json report = parse_json(tokenizer.report, "the tokenizer's report");
    print_tokenizer_report(report, std::cout);
    std::cout << "\nwritten to " << config.tokenizer.file << '\n';
    report["file"] = config.tokenizer.file;
    report["dataset"] = tokenizer.dataset;
    report["kind"] = tokenizer.kind;
    if (!assigns) throughput.add_to(report);
    command_line.write_result(report);
  }
  world.barrier();
  return 0;
}

}  // namespace
}  // namespace mirabelle

int main(int argc, char** argv) {
  return mirabelle::run_main(
      argc, argv, "mirabelle-tokenizer-build",
      [&](const mirabelle::Communicator& world) { return mirabelle::run(argc, argv, world); });
}
