#pragma once

#include <nlohmann/json.hpp>
#include <ostream>
#include <vector>

#include "mirabelle/config/config.h"
#include "mirabelle/evaluation/beam_search.h"
#include "mirabelle/tokenizer/semantic_id.h"
#include "mirabelle/training/parallel_plan.h"

namespace CLI {
class App;
}

namespace mirabelle {

/// mirabelle-train --plan: what a run would allocate and send and how long its steps would take.
struct PlanOptions {
  bool only_plan = false;
  std::vector<int64_t> world_sizes;  ///< empty: of this job
  int64_t vocab_size = 0;            ///< 0: the tokenizer's
  int64_t part_tokens = 0;           ///< 0: full parts
  double gpu_tflops, memory_gbs, tensor_gbs, data_gbs, latency_us;
  double efficiency;
  double memory_gib = 80;

  PlanOptions();  // the rates of MachineRates
  void add_to(CLI::App& app);
  MachineRates rates() const;
};

PlannedRun planned_run(const Config& config, const SemanticIds& ids, Device device,
                       int64_t world_size);

BeamSearch::Limits validation_limits(const Config& config);
/// What a rank of this run allocates on its device. `ids`: for the memory of validations; may be
/// null, then that is not in it.
MemoryPlan plan_memory(const Config& config, const PlannedRun& run, const SemanticIds* ids);

/// Prints the plans as tables, for one number of ranks with all details, and returns them.
/// Allocates nothing of what it plans. The device is a GPU, unless the configuration says backend
/// cpu.
nlohmann::json plan_runs(const Config& config, const PlanOptions& options, std::ostream& out);

}  // namespace mirabelle
