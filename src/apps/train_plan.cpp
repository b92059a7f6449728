#include "train_plan.h"

#include <CLI/CLI.hpp>
#include <filesystem>
#include <optional>

#include "mirabelle/core/progress.h"
#include "mirabelle/core/table.h"

namespace mirabelle {
namespace {

using nlohmann::json;

const char* const kAssumptions =
    "The times are an estimate: products at the stated efficiency; communication takes bytes /\n"
    "bandwidth + latency; gradients travel beside the backward pass of their part, weights beside\n"
    "the next forward pass, and what does not fit is waited for. Parts are full of sequences of\n"
    "training.max_sequence_tokens. Slower ranks, data, checkpoints and validations are not in "
    "it.\n";

std::string to_string(Overlap overlap) {
  switch (overlap) {
    case Overlap::kNone:
      return "nothing";
    case Overlap::kWeightGradients:
      return "weights' gradients";
    case Overlap::kBackward:
      return "backward pass";
    case Overlap::kForward:
      return "forward pass";
  }
  return "";
}

/// In GiB whatever the size, so that columns compare.
std::string gib(int64_t bytes) {
  return format_number(static_cast<double>(bytes) / static_cast<double>(int64_t{1} << 30), 2);
}
std::string milliseconds(double seconds) { return format_number(1e3 * seconds, 1); }

/// One number of ranks.
struct SizedPlan {
  PlannedRun run;
  ParallelPlan plan;
  StepEstimate estimate;
  double utilisation;
  bool fits;

  int64_t bytes_sent(bool is_data_parallel) const {
    int64_t bytes = 0;
    for (const PlannedTraffic& entry : plan.traffic) {
      if (entry.is_data_parallel() == is_data_parallel) bytes += entry.bytes;
    }
    return bytes;
  }
  double tokens_per_second() const {
    return static_cast<double>(estimate.tokens) / estimate.seconds();
  }
};

PlannedRun run_without_ids(const Config& config, Device device, int64_t world_size) {
  return {.training = config.training,
          .parallel = config.parallel,
          .model = config.model,
          .world_size = world_size,
          .device = device};
}

/// As many levels as training.level_weights or else tokenizer.levels has; their sizes do not
/// matter.
PlannedRun run_without_tokenizer(const Config& config, int64_t vocab_size, Device device,
                                 int64_t world_size) {
  constexpr int64_t kMultiple = SemanticIds::kVocabMultiple;
  PlannedRun run = run_without_ids(config, device, world_size);
  run.vocab_size = vocab_size;
  run.padded_vocab_size = (vocab_size + kMultiple - 1) / kMultiple * kMultiple;
  const size_t num_levels = config.training.level_weights.empty()
                                ? config.tokenizer.levels.size()
                                : config.training.level_weights.size();
  run.level_bounds.assign(num_levels + 1, 0);
  return run;
}

SizedPlan plan_for(const Config& config, const PlanOptions& options,
                   const std::optional<SemanticIds>& ids, int64_t world_size) {
  const Device device = config.backend.backend == "cpu" ? Device::kCpu : Device::kCuda;
  SizedPlan sized;
  sized.run = ids ? planned_run(config, *ids, device, world_size)
                  : run_without_tokenizer(config, options.vocab_size, device, world_size);
  if (options.part_tokens > 0) {
    sized.plan = plan_training(
        sized.run, std::vector<int64_t>(sized.run.parts_per_rank(), options.part_tokens));
  } else {
    sized.plan = plan_training(sized.run);
  }
  sized.plan.memory = plan_memory(config, sized.run, ids ? &*ids : nullptr);
  const MachineRates rates = options.rates();
  sized.estimate = estimate_step(sized.run, sized.plan, rates);
  sized.utilisation = sized.estimate.utilisation(sized.run, rates);
  sized.fits = static_cast<double>(sized.plan.memory.total()) <=
               options.memory_gib * static_cast<double>(int64_t{1} << 30);
  return sized;
}

json to_json(const SizedPlan& sized) {
  const StepEstimate& estimate = sized.estimate;
  json memory = json::object(), traffic = json::array();
  for (const auto& [what, bytes] : sized.plan.memory.items()) memory[what] = bytes;
  for (const PlannedTraffic& entry : sized.plan.traffic) {
    traffic.push_back({{"group", entry.group},
                       {"collective", entry.collective},
                       {"purpose", entry.purpose},
                       {"beside", to_string(entry.overlap)},
                       {"calls", entry.calls},
                       {"bytes", entry.bytes}});
  }
  return {{"ranks", sized.run.world_size},
          {"tensor_parallel_size", sized.run.parallel.tensor_parallel_size},
          {"data_parallel_size", sized.run.data_parallel_size()},
          {"parts_per_rank", sized.run.parts_per_rank()},
          {"memory", memory},
          {"memory_bytes", sized.plan.memory.total()},
          {"checkpoint_host_bytes", sized.plan.checkpoint_bytes},
          {"fits", sized.fits},
          {"traffic", traffic},
          {"estimate",
           {{"compute_seconds", estimate.compute},
            {"optimizer_seconds", estimate.optimizer},
            {"tensor_parallel_seconds", estimate.tensor_parallel},
            {"data_parallel_seconds", estimate.data_parallel},
            {"step_seconds", estimate.seconds()},
            {"tokens_per_second", sized.tokens_per_second()},
            {"useful_flops", estimate.useful_flops},
            {"model_flops_utilisation", sized.utilisation}}}};
}

void print_details(const SizedPlan& sized, std::ostream& out) {
  Table memory({"memory of a rank", "bytes", "GiB"});
  for (const auto& [what, bytes] : sized.plan.memory.items()) {
    memory.add_row({what, format_count(bytes), gib(bytes)});
  }
  const int64_t total = sized.plan.memory.total(), checkpoint = sized.plan.checkpoint_bytes;
  memory.add_row({"sum", format_count(total), gib(total)});
  memory.add_row({"checkpoint (host)", format_count(checkpoint), gib(checkpoint)});
  memory.print(out);
  out << "\n";

  Table traffic({"group", "collective", "of", "beside", "calls", "bytes sent by a rank"});
  for (const PlannedTraffic& entry : sized.plan.traffic) {
    traffic.add_row({entry.group, entry.collective, entry.purpose, to_string(entry.overlap),
                     format_count(entry.calls), format_count(entry.bytes)});
  }
  traffic.print(out);
  out << "\n";

  const StepEstimate& estimate = sized.estimate;
  Table step({"step", "ms"});
  step.add_row({"compute", milliseconds(estimate.compute)});
  step.add_row({"optimizer", milliseconds(estimate.optimizer)});
  step.add_row({"waiting for tensor-parallel ranks", milliseconds(estimate.tensor_parallel)});
  step.add_row({"waiting for data-parallel ranks", milliseconds(estimate.data_parallel)});
  step.add_row({"sum", milliseconds(estimate.seconds())});
  step.print(out);
  out << "\n"
      << format_count(static_cast<int64_t>(sized.tokens_per_second())) << " tokens/s, "
      << format_number(100 * sized.utilisation, 1) << " % of the peak (MFU)\n";
}

void print_overview(const std::vector<SizedPlan>& plans, std::ostream& out) {
  Table table({"ranks", "tensor x data", "parts", "memory GiB", "weights, gradients", "optimizer",
               "activations", "send GiB (tensor)", "(data)", "step ms", "wait ms (tensor)",
               "(data)", "tokens/s", "MFU %"});
  for (const SizedPlan& sized : plans) {
    int64_t model = 0, optimizer = 0, activations = 0;
    for (const auto& [what, bytes] : sized.plan.memory.items()) {
      if (what == "weights" || what == "gradients" || what == "sums of gradients") model += bytes;
      if (what == "optimizer") optimizer += bytes;
      if (what == "activations") activations += bytes;
    }
    const StepEstimate& estimate = sized.estimate;
    const std::string grid = std::to_string(sized.run.parallel.tensor_parallel_size) + " x " +
                             std::to_string(sized.run.data_parallel_size());
    table.add_row({format_count(sized.run.world_size), grid,
                   format_count(sized.run.parts_per_rank()), gib(sized.plan.memory.total()),
                   gib(model), gib(optimizer), gib(activations), gib(sized.bytes_sent(false)),
                   gib(sized.bytes_sent(true)), milliseconds(estimate.seconds()),
                   milliseconds(estimate.tensor_parallel), milliseconds(estimate.data_parallel),
                   format_count(static_cast<int64_t>(sized.tokens_per_second())),
                   format_number(100 * sized.utilisation, 1)});
  }
  table.print(out);
}

}  // namespace

PlanOptions::PlanOptions() {
  const MachineRates rates;
  gpu_tflops = rates.flops_per_second / 1e12;
  efficiency = rates.efficiency;
  memory_gbs = rates.memory_bytes_per_second / 1e9;
  tensor_gbs = rates.tensor_bytes_per_second / 1e9;
  data_gbs = rates.data_bytes_per_second / 1e9;
  latency_us = rates.latency_seconds * 1e6;
}

void PlanOptions::add_to(CLI::App& app) {
  app.add_flag("--plan", only_plan,
               "print the memory and the communication of a rank and an estimate of step time and "
               "MFU, and train nothing; no other ranks, GPU or corpus are needed");
  app.add_option("--world-size", world_sizes, "of --plan: numbers of ranks, e.g. 8,64,1024")
      ->delimiter(',')
      ->check(CLI::PositiveNumber);
  app.add_option("--plan-vocab", vocab_size, "of --plan: tokens, where there is no tokenizer.file")
      ->check(CLI::PositiveNumber);
  app.add_option("--plan-part-tokens", part_tokens,
                 "of --plan: tokens of every part whose communication is counted; full parts if 0")
      ->check(CLI::NonNegativeNumber);
  const auto add_rate = [&](const char* name, double& value, const char* what) {
    app.add_option(name, value, std::string("of --plan: ") + what)
        ->check(CLI::PositiveNumber)
        ->capture_default_str();
  };
  add_rate("--gpu-tflops", gpu_tflops, "peak of a GPU in the model's dtype, TFLOP/s (H100: 989)");
  add_rate("--efficiency", efficiency, "the part of it that the kernels of a step reach");
  add_rate("--memory-gbs", memory_gbs, "bandwidth of a GPU's memory, GB/s");
  add_rate("--memory-gib", memory_gib, "memory of a GPU, GiB");
  add_rate("--tensor-gbs", tensor_gbs,
           "GB/s that a rank sends to tensor-parallel ranks (NVLink, one direction)");
  add_rate("--data-gbs", data_gbs,
           "GB/s that a rank sends to data-parallel ranks (a 400 Gbit/s network card for each)");
  add_rate("--latency-us", latency_us, "latency of a collective, microseconds");
}

MachineRates PlanOptions::rates() const {
  return {.flops_per_second = gpu_tflops * 1e12,
          .efficiency = efficiency,
          .float32_flops_per_second =
              std::min(gpu_tflops * 1e12, MachineRates().float32_flops_per_second),
          .memory_bytes_per_second = memory_gbs * 1e9,
          .tensor_bytes_per_second = tensor_gbs * 1e9,
          .data_bytes_per_second = data_gbs * 1e9,
          .latency_seconds = latency_us * 1e-6};
}

PlannedRun planned_run(const Config& config, const SemanticIds& ids, Device device,
                       int64_t world_size) {
  PlannedRun run = run_without_ids(config, device, world_size);
  run.vocab_size = ids.vocab_size();
  run.padded_vocab_size = ids.padded_vocab_size();
  run.level_bounds = ids.level_bounds();
  return run;
}

BeamSearch::Limits validation_limits(const Config& config) {
  return {config.training.validation_beam_size, config.evaluation.batch_users,
          config.data.history_length};
}

MemoryPlan plan_memory(const Config& config, const PlannedRun& run, const SemanticIds* ids) {
  MemoryPlan plan = plan_memory(run);
  if (ids && config.training.validation_every_steps > 0) {
    plan.add("validation", BeamSearch::planned_bytes(sketch(run), *ids, validation_limits(config)));
  }
  return plan;
}

json plan_runs(const Config& config, const PlanOptions& options, std::ostream& out) {
  std::optional<SemanticIds> ids;
  if (options.vocab_size == 0) {
    MIRABELLE_CHECK_USAGE(std::filesystem::exists(config.tokenizer.file), "there is no tokenizer '",
                          config.tokenizer.file,
                          "' (tokenizer.file) that tells the vocabulary; --plan-vocab does");
    ids = SemanticIds::read(config.tokenizer.file);
  }
  std::vector<SizedPlan> plans;
  for (const int64_t size : options.world_sizes) {
    plans.push_back(plan_for(config, options, ids, size));
  }
  const PlannedRun& run = plans.front().run;
  out << format_count(plans.front().plan.num_parameters) << " parameters, vocabulary "
      << format_count(run.vocab_size) << ", " << config.training.dtype << "; ZeRO stage "
      << config.parallel.zero_stage << ", recompute " << config.training.recompute
      << (config.parallel.sequence_parallel ? ", sequence-parallel" : "")
      << (config.training.reproducible ? ", reproducible" : "")
      << "\nglobal batch: " << config.training.num_parts() << " parts of "
      << format_count(config.training.micro_batch_tokens) << " tokens\n";
  json result = {{"parameters", plans.front().plan.num_parameters}, {"plans", json::array()}};
  for (const SizedPlan& sized : plans) result["plans"].push_back(to_json(sized));
  if (plans.size() == 1) {
    out << run.world_size << " ranks: " << run.parallel.tensor_parallel_size
        << " tensor-parallel x " << run.data_parallel_size() << " data-parallel, "
        << run.parts_per_rank() << " parts each\n\n";
    print_details(plans.front(), out);
  } else {
    out << "\n";
    print_overview(plans, out);
  }
  out << "\n" << kAssumptions;
  if (!ids) out << "Nor is the memory of validations, which depends on the tokenizer.\n";
  for (const SizedPlan& sized : plans) {
    if (sized.fits) continue;
    out << "WARNING: on " << sized.run.world_size << " ranks a rank needs "
        << format_bytes(sized.plan.memory.total()) << ", more than the "
        << format_number(options.memory_gib, 1) << " GiB of --memory-gib\n";
  }
  return result;
}

}  // namespace mirabelle
