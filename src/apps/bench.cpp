#include <CLI/CLI.hpp>
#include <iostream>

#include "bench/beam_search.h"
#include "bench/kernels.h"
#include "bench/training.h"
#include "mirabelle/config/backend.h"
#include "mirabelle/config/command_line.h"
#include "mirabelle/core/logging.h"
#include "mirabelle/core/table.h"

namespace mirabelle {
namespace {

using nlohmann::json;

constexpr const char* kSummary =
    "Measures kernels, training steps and beam search beside what this machine can do at most, "
    "measured in the same run: the bandwidth of a copy and the rate of a large matrix product. "
    "Floating-point operations are useful ones only: causal attention counts as half, padding not "
    "at all.";
constexpr const char* kExamples =
    "mirabelle-bench kernels --set backend=cpu\n"
    "mirabelle-bench kernels --dtype bfloat16 --tokens 16384 --hidden 2048 --json kernels.json\n"
    "mirabelle-bench training --dtype bfloat16 --model 125M --model 0.5B\n"
    "mirabelle-bench training --dtype bfloat16 --model 125M --sequence 4096 --skewed\n"
    "mirabelle-bench beam-search --dtype bfloat16";

void add_kernel_options(CLI::App& command, KernelShapes& shapes) {
  command.add_option("--tokens", shapes.tokens, "Tokens of a batch")->capture_default_str();
  command.add_option("--sequence", shapes.sequence, "Tokens of a sequence")->capture_default_str();
  command.add_option("--hidden", shapes.hidden, "hidden_size")->capture_default_str();
  command.add_option("--heads", shapes.heads, "num_heads")->capture_default_str();
  command.add_option("--ffn", shapes.ffn, "ffn_hidden_size")->capture_default_str();
  command.add_option("--vocab", shapes.vocab, "Tokens of the vocabulary")->capture_default_str();
}

void add_training_options(CLI::App& command, TrainingBenchOptions& options) {
  command.add_option("--model", options.models, "Sizes, one or more of " + training_presets())
      ->capture_default_str();
  command.add_option("--micro-batch-tokens", options.micro_batch_tokens, "Tokens of a pass")
      ->capture_default_str();
  command.add_option("--micro-batches", options.micro_batches, "Passes of an optimizer step")
      ->capture_default_str();
  command.add_option("--sequence", options.sequence, "Tokens of a sequence")->capture_default_str();
  command.add_flag("--skewed", options.skewed,
                   "Log-normal histories: half are shorter than an eighth of --sequence");
}

void add_beam_search_options(CLI::App& command, BeamSearchBenchOptions& options) {
  command.add_option("--users", options.users, "Users of a batch")->capture_default_str();
  command.add_option("--beams", options.beams, "Beams of a user")->capture_default_str();
  command.add_option("--history", options.history_items, "Items of a history")
      ->capture_default_str();
  command.add_option("--levels", options.levels, "Codes of an item")->capture_default_str();
  command.add_option("--level-size", options.level_size, "Codes of a level")->capture_default_str();
  command.add_option("--items", options.items, "Items of the catalogue")->capture_default_str();
  command.add_option("--hidden", options.hidden, "hidden_size")->capture_default_str();
  command.add_option("--layers", options.layers, "num_layers")->capture_default_str();
  command.add_option("--heads", options.heads, "num_heads")->capture_default_str();
  command.add_option("--kv-heads", options.kv_heads, "num_kv_heads")->capture_default_str();
  command.add_option("--ffn", options.ffn, "ffn_hidden_size")->capture_default_str();
}

int run(int argc, char** argv, const Communicator& self) {
  BackendConfig backend;
  std::string dtype_name = "float32";
  KernelShapes shapes;
  TrainingBenchOptions training;
  BeamSearchBenchOptions beam_search;
  CommandLine command_line("mirabelle-bench", kSummary, kExamples, {config_section("", backend)});
  CLI::App& app = command_line.app();
  app.add_option("--dtype", dtype_name, "float32 or bfloat16")->capture_default_str();
  bool reproducible = false;
  app.add_flag("--reproducible", reproducible,
               "Of kernels and training: as with training.reproducible=true");
  CLI::App& kernels_command =
      *app.add_subcommand("kernels",
                          "Every kernel of a training step: its bytes over the bandwidth, or its "
                          "floating-point operations over the rate of products.");
  add_kernel_options(kernels_command, shapes);
  CLI::App& training_command =
      *app.add_subcommand("training", "Complete training steps of one process on random tokens.");
  add_training_options(training_command, training);
  CLI::App& beam_search_command = *app.add_subcommand(
      "beam-search", "Beam search over a random catalogue: histories in, ranked items out.");
  add_beam_search_options(beam_search_command, beam_search);
  app.require_subcommand(0, 1);
  if (const auto status = command_line.parse(argc, argv, self)) return *status;
  MIRABELLE_CHECK_USAGE(!app.get_subcommands().empty(),
                        "wanted kernels, training or beam-search (see mirabelle-bench --help)");
  const DType dtype = model_dtype("--dtype", dtype_name);
  shapes.dtype = training.dtype = beam_search.dtype = dtype;
  shapes.reproducible = training.reproducible = reproducible;
  shapes.check();
  training.check();
  beam_search.check();
  const Device device = choose_device(backend, self);
  const std::string description = describe(device);
  spdlog::info("backend {}, {}", description, dtype_name);

  json result = kernels_command.parsed()    ? bench_kernels(shapes, device)
                : training_command.parsed() ? bench_training(training, device)
                                            : bench_beam_search(beam_search, device);
  result["benchmark"] = app.get_subcommands().front()->get_name();
  result["device"] = description;
  result["dtype"] = dtype_name;
  result["reproducible"] = reproducible;
  result["version"] = MIRABELLE_VERSION;
  command_line.write_result(result);
  return 0;
}

}  // namespace
}  // namespace mirabelle

int main(int argc, char** argv) {
  return mirabelle::run_serial_main("mirabelle-bench", [&](const mirabelle::Communicator& self) {
    return mirabelle::run(argc, argv, self);
  });
}
