#include <omp.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <iostream>

#include "mirabelle/config/command_line.h"
#include "mirabelle/config/config.h"
#include "mirabelle/config/preflight.h"
#include "mirabelle/convert/initial_weights.h"
#include "mirabelle/core/activity.h"
#include "mirabelle/core/logging.h"
#include "mirabelle/core/memory_plan.h"
#include "mirabelle/core/progress.h"
#include "mirabelle/core/table.h"
#include "mirabelle/evaluation/beam_search.h"
#include "mirabelle/evaluation/evaluator.h"
#include "mirabelle/kernels/matmul.h"
#include "mirabelle/tokenizer/code_embedding.h"
#include "mirabelle/training/trainer.h"
#include "train_plan.h"

namespace {

using namespace mirabelle;
using nlohmann::json;

TokenTable token_table(const SemanticIds& ids) {
  TokenTable table{ids.bos_token(), ids.num_levels(), {}};
  for (int64_t item = 0; item < ids.num_items(); ++item) {
    for (int64_t level = 0; level < ids.num_levels(); ++level) {
      table.tokens.push_back(ids.token(item, level));
    }
  }
  return table;
}

/// Everything that a training run is made of, in the order in which it is built.
struct TrainingRun {
  TrainingRun(const Config& config, const Communicator& world)
      : device(choose_device(config.backend, world)),
        communicator(world, device, config.parallel, config.training.reproducible),
        ranks(checked_groups(communicator.get(), config.parallel.tensor_parallel_size, device)),
        stream(device),
        corpus(config.data.corpus),
        ids(read_ids(config, corpus, world)),
        memory(plan_memory(config, ids, device, world)),
        model(config.model, ids.vocab_size(), ids.padded_vocab_size(),
              config.training.model_dtype(), limits(config, ids, world.size()), device,
              model_share(config.training, config.parallel, world.rank(), world.size()),
              &ranks.tensor()),
        loader(corpus, token_table(ids), loader_options(config)),
        trainer(
            config.training, config.parallel, model, loader, ranks,
            [this, &config] { return validate(config); }, config.tokenizer.file,
            token_rows(config, corpus, world)) {}

  static SemanticIds read_ids(const Config& config, const Corpus& corpus,
                              const Communicator& world) {
    SemanticIds ids = SemanticIds::read(config.tokenizer.file);
    MIRABELLE_CHECK_DATA(ids.num_items() == corpus.num_items(), config.tokenizer.file, " knows ",
                         ids.num_items(), " items, ", config.data.corpus, " has ",
                         corpus.num_items(), "; build the tokenizer on this corpus, or --assign");
    if (world.rank() == 0) {
      check_items(read_item_ids(config.tokenizer.file), corpus, config.tokenizer.file);
    }
    return ids;
  }

  static Transformer::Limits limits(const Config& config, const SemanticIds& ids,
                                    int64_t world_size) {
    Transformer::Limits limits =
        Trainer::model_limits(config.training, config.parallel, world_size, ids.level_bounds());
    limits.max_sequence_tokens =
        std::max(limits.max_sequence_tokens, max_search_tokens(ids, config.data.history_length));
    return limits;
  }

  /// Before anything is allocated. Throws if it cannot be.
  static MemoryPlan plan_memory(const Config& config, const SemanticIds& ids, Device device,
                                const Communicator& world) {
    const PlannedRun run = planned_run(config, ids, device, world.size());
    const MemoryPlan plan = mirabelle::plan_memory(config, run, &ids);
    int64_t available = available_bytes(device) / ranks_on_device(device, world);
    if (device == Device::kCpu) available -= checkpoint_bytes(run);
    plan.check_fits(available, device,
                    "a lower training.micro_batch_tokens or a smaller model needs less");
    return plan;
  }

  /// Before anything is trained. Throws if the checkpoints will not fit on the disk.
  void check_room(const Config& config) const {
    const TrainingConfig& training = config.training;
    const bool may_go_on = training.resume && resumable_checkpoint(training.output);
    const int64_t present = may_go_on ? num_checkpoints(training.output) : 0;
    // The newest ones, the best, and one that is being written.
    const int64_t most = training.keep_checkpoints + 2;
    const PlannedRun run = planned_run(config, ids, device, ranks.world().size());
    check_checkpoint_room(ranks.world(), training.output, std::max<int64_t>(most - present, 1),
                          checkpoint_file_bytes(run));
  }

  /// Whether a checkpoint of the output replaces the first weights. Collective.
  static bool goes_on(const Config& config, const Communicator& world) {
    const bool may_go_on = config.training.resume && world.rank() == 0;
    int64_t goes_on = may_go_on && resumable_checkpoint(config.training.output) ? 1 : 0;
    world.broadcast(view_of(&goes_on, {1}), 0, Stream());
    return goes_on != 0;
  }

  /// What initialize_weights is given. Collective.
  static std::vector<float> token_rows(const Config& config, const Corpus& corpus,
                                       const Communicator& world) {
    if (config.training.initial_embedding == "random" || goes_on(config, world)) return {};
    const std::string& file = config.tokenizer.file;
    const TokenizerFile tokenizer = read_tokenizer_file(file);
    const Config built = config_from_yaml(tokenizer.config, file);
    const TokenizerRecipe recipe{built.tokenizer, built.rq_vae, built.co_occurrence, {}};
    return code_embedding(corpus, tokenizer, recipe, config.model.hidden_size, config.training.seed,
                          world);
  }

  /// The weights of training.init_from, if there is any and the run begins. Collective.
  void take_initial_weights(const Config& config) {
    const Communicator& world = ranks.world();
    if (config.training.init_from.empty() || goes_on(config, world)) return;
    const Buffer values({model.layout().num_elements()}, DType::kFloat32);
    read_initial_weights(values.view(), model.layout(), config.training.init_from,
                         config.tokenizer.file, config.training.seed, world);
    trainer.set_weights(values.view());
    if (world.rank() == 0) spdlog::info("begin with the weights of {}", config.training.init_from);
  }

  static BatchLoader::Options loader_options(const Config& config) {
    return {.seed = config.training.seed,
            .part_tokens = config.training.micro_batch_tokens,
            .parts_per_step = config.training.num_parts(),
            .max_sequence_tokens = config.training.max_sequence_tokens,
            .newest_events_only = config.data.long_histories == "last"};
  }

  std::optional<ValidationFigures> validate(const Config& config) {
    EvaluationConfig validation = config.evaluation;
    validation.split = "validation";
    validation.beam_size = config.training.validation_beam_size;
    validation.top_k = {10};
    validation.max_users = config.training.validation_users;
    validation.bootstrap_samples = 0;
    if (!search) search = std::make_unique<BeamSearch>(model, ids, validation_limits(config));
    const Recommender recommend = [this](std::span<const RecommendationQuery> queries) {
      return search->search(queries, stream);
    };
    const EvaluationResult result =
        evaluate_users(corpus, recommend, validation, ranks.data(), nullptr, nullptr, nullptr,
                       [this] { return trainer.stops_now(); });
    if (result.was_stopped) return std::nullopt;
    return ValidationFigures{result.figure(result.model, "recall@10").mean,
                             result.figure(result.model, "ndcg@10").mean};
  }

  Device device;
  DeviceCommunicator communicator;
  ParallelContext ranks;
  Stream stream;  // of validations
  Corpus corpus;
  SemanticIds ids;
  MemoryPlan memory;
  Transformer model;
  BatchLoader loader;
  std::unique_ptr<BeamSearch> search;  // made by the first validation
  Trainer trainer;
};

void log_plan(const TrainingRun& run, const Config& config, const Communicator& world) {
  if (world.rank() != 0) return;
  spdlog::info("backend {}, {} ranks ({}) x {} threads, {}", describe(run.device), world.size(),
               run.communicator.get().name(), omp_get_max_threads(), to_string(run.model.dtype()));
  const ModelShare& share = run.model.layout().share();
  spdlog::info("{} tensor-parallel{} x {} data-parallel ranks, ZeRO stage {}, recompute {}",
               share.tensor_parallel_size,
               share.sequence_parallel ? " (and sequence-parallel)" : "", run.ranks.data().size(),
               config.parallel.zero_stage, config.training.recompute);
  if (config.training.reproducible) {
    spdlog::info("reproducible: the same bits on every layout; sums over {} shards and {} parts",
                 share.num_shards, config.training.num_parts());
  } else {
    spdlog::info("fast mode: the last bits depend on the layout (training.reproducible)");
  }
  spdlog::info("corpus {}: {} users, {} items, {} events, split {}", config.data.corpus,
               format_count(run.corpus.num_users()), format_count(run.corpus.num_items()),
               format_count(run.corpus.num_events()), run.corpus.split_name());
  spdlog::info("model: {} parameters, vocabulary {} tokens in {} levels",
               format_count(run.model.layout().num_model_parameters()), run.ids.vocab_size(),
               run.ids.num_levels());
  spdlog::info("global batch: {} parts of at most {} tokens", config.training.num_parts(),
               config.training.micro_batch_tokens);
  spdlog::info("memory per rank: {}", run.memory.describe());
}

/// Sets the schedule of a run that is limited by time: that of the run to be resumed, or what fits.
/// False if a signal stopped it.
bool fit_schedule(TrainingRun& run, Config& config) {
  const auto newest = resumable_checkpoint(config.training.output);
  if (config.training.resume && newest) {
    const Config saved = config_from_yaml(read_checkpoint_config(*newest), newest->string());
    run.trainer.set_schedule(saved.training.max_steps, saved.training.warmup_steps,
                             saved.training.validation_every_steps,
                             saved.training.checkpoint_every_steps);
  } else {
    const auto plan = run.trainer.plan_for_wall_time();
    if (!plan) return false;
    const auto part = [&](int64_t count) { return (plan->steps + count - 1) / count; };
    run.trainer.set_schedule(plan->steps, std::min(config.training.warmup_steps, part(10)),
                             part(plan->validations), part(10));
  }
  config.training = run.trainer.config();
  return true;
}

double seconds_of(const std::function<void()>& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

/// Edge of the matrix products that training steps are compared with: large enough to be limited by
/// arithmetic.
int64_t matmul_edge(Device device) { return device == Device::kCpu ? 1024 : 8192; }

/// FLOP/s of cubic products in the model's dtype, on all ranks at once, summed over the ranks.
double matmul_rate(const TrainingRun& run, const Communicator& world) {
  const int64_t n = matmul_edge(run.device);
  const DType dtype = run.model.dtype();
  const Buffer a({n, n}, dtype, run.device), b({n, n}, dtype, run.device);
  const Buffer out({n, n}, dtype, run.device);
  std::vector<double> rates;
  world.barrier();
  for (int repeat = 0; repeat < 5; ++repeat) {
    const double seconds = seconds_of([&] {
      matmul(out.view(), a.view(), false, b.view(), true, Accumulate::kNo, run.stream);
      run.stream.synchronize();
    });
    rates.push_back(2.0 * static_cast<double>(n * n * n) / seconds);
  }
  double rate = median(rates);
  world.all_reduce(view_of(&rate, {1}), ReduceOp::kSum, Stream());
  return rate;
}

/// Times complete training steps, each beside the matrix products of the same moment, since
/// machines are shared and noisy.
json benchmark(TrainingRun& run, const Communicator& world) {
  constexpr int kRounds = 12;
  run.trainer.time_steps(1);  // warms up
  matmul_rate(run, world);
  std::vector<double> ratios, matmul_rates, step_rates, token_rates;
  for (int round = 0; round < kRounds; ++round) {
    const double before = matmul_rate(run, world);
    const Trainer::StepTiming step = run.trainer.time_steps(1).front();
    const double rate = 0.5 * (before + matmul_rate(run, world));
    matmul_rates.push_back(rate);
    step_rates.push_back(step.flops / step.seconds);
    token_rates.push_back(static_cast<double>(step.tokens) / step.seconds);
    ratios.push_back(step_rates.back() / rate);
  }
  const std::string edge = std::to_string(matmul_edge(run.device));
  json result = {{"matmul_" + edge + "_gflops", median(matmul_rates) / 1e9},
                 {"training_gflops", median(step_rates) / 1e9},
                 {"fraction_of_matmul", median(ratios)},
                 {"tokens_per_second", median(token_rates)},
                 {"parameters", run.model.layout().num_model_parameters()},
                 {"ranks", world.size()},
                 {"threads_per_rank", omp_get_max_threads()}};
  if (world.rank() == 0) {
    Table table({"", "median of " + std::to_string(kRounds)});
    table.add_row(
        {"matrix product " + edge + "^3, GFLOP/s", format_number(median(matmul_rates) / 1e9, 1)});
    table.add_row({"training step, useful GFLOP/s", format_number(median(step_rates) / 1e9, 1)});
    table.add_row({"of the matrix product", format_number(100 * median(ratios), 1) + " %"});
    table.add_row({"tokens/s", format_count(static_cast<int64_t>(median(token_rates)))});
    table.print(std::cout);
  }
  return result;
}

void log_summary(const json& result) {
  const auto best_step = result["best_step"].get<int64_t>();
  spdlog::info(
      "{} steps, {} tokens in {} ({} tokens/s), stopped by {}{}",
      result["train_steps"].get<int64_t>(), format_count(result["train_tokens"].get<int64_t>()),
      format_duration(result["train_seconds"].get<double>()),
      format_count(static_cast<int64_t>(result["tokens_per_second"].get<double>())),
      result["stopped_by"].get<std::string>(),
      best_step < 0 ? ""
                    : "; best validation NDCG@10 " +
                          format_number(result["best_validation_ndcg@10"].get<double>(), 4) +
                          " at step " + std::to_string(best_step));
}

int train(int argc, char** argv, StopSignals& signals, const Communicator& world) {
  Config config;
  bool only_benchmark = false;
  CommandLine command_line(
      "mirabelle-train",
      "Trains a decoder-only transformer to predict the semantic IDs of users' next items. Writes "
      "config.yaml (resolved), metrics.jsonl, summary.json and checkpoints/ to training.output, "
      "and goes on from the newest checkpoint there.\n\n"
      "SIGTERM and SIGUSR1 at any time, and training.max_wall_seconds, lead to a checkpoint at the "
      "next micro-step; a second signal after more than a second ends the program at once. The "
      "exit "
      "status is 0 if the run is over, 75 if it was stopped before and goes on when it is started "
      "again, 2 for a wrong configuration, 3 for bad data, 1 for anything else. A run with "
      "training.fit_steps_to_wall_time is over when its time is.",
      "mpirun -n 2 mirabelle-train --config configs/beauty/semantic_ids.yaml\n"
      "mirabelle-train --config run/config.yaml --set training.learning_rate=1e-3\n"
      "mirabelle-train --config configs/scale/plum_3b.yaml --plan --plan-vocab 16386",
      config.sections());
  command_line.app().add_flag("--benchmark", only_benchmark,
                              "time training steps of this configuration against the machine's "
                              "matrix products, and train nothing");
  PlanOptions plan;
  plan.add_to(command_line.app());
  if (const auto status = command_line.parse(argc, argv, world)) return *status;
  if (plan.only_plan) {
    if (plan.world_sizes.empty()) plan.world_sizes = {world.size()};
    if (world.rank() == 0) command_line.write_result(plan_runs(config, plan, std::cout));
    return 0;
  }
  MIRABELLE_CHECK_USAGE(!config.data.corpus.empty(), "data.corpus must name a corpus folder");
  const Watchdog watchdog(config.parallel.fault_timeout_seconds, world.rank());

  TrainingRun run(config, world);
  log_plan(run, config, world);
  if (only_benchmark) {
    const json result = benchmark(run, run.ranks.world());
    if (world.rank() == 0) command_line.write_result(result);
    return 0;
  }
  run.check_room(config);
  run.take_initial_weights(config);
  if (config.training.fit_steps_to_wall_time && !fit_schedule(run, config)) {
    signals.ignore();
    return kExitStopped;
  }
  const json result = run.trainer.run(to_yaml(config));
  signals.ignore();
  if (world.rank() == 0) {
    command_line.write_result(result);
    log_summary(result);
  }
  return result["finished"].get<bool>() ? 0 : kExitStopped;
}

}  // namespace

int main(int argc, char** argv) {
  mirabelle::StopSignals signals;
  return mirabelle::run_main(argc, argv, "mirabelle-train", [&](const mirabelle::Communicator& w) {
    return train(argc, argv, signals, w);
  });
}
