// What the Trainer tells of a step and of the whole run.
#include <unistd.h>

#include <fstream>

#include "mirabelle/training/trainer.h"

namespace mirabelle {
using nlohmann::json;

namespace {

/// Bytes of this rank.
json memory_in_use(Device device) {
  int64_t pages = 0, resident = 0;
  std::ifstream("/proc/self/statm") >> pages >> resident;
  json memory = {{"host_bytes", resident * ::sysconf(_SC_PAGESIZE)}};
  if (device == Device::kCuda) {
    const CudaDeviceFacts facts = cuda_device_facts();
    memory["device_bytes"] = facts.total_bytes - facts.free_bytes;
  }
  return memory;
}

/// FLOP/s of a rank's device at its best in the model's dtype, dense; 0 if that is not known.
double peak_flops(const TrainingConfig& config, Device device) {
  if (config.peak_tflops > 0) return 1e12 * config.peak_tflops;
  if (device == Device::kCpu || config.model_dtype() != DType::kBFloat16) return 0;
  // From NVIDIA's data sheets, for bfloat16. H100 PCIe has less than the SXM modules.
  const std::pair<const char*, double> known[] = {{"H100 PCIe", 756e12}, {"H100", 989e12},
                                                  {"H200", 989e12},      {"A100", 312e12},
                                                  {"L40S", 362e12},      {"L4", 121e12}};
  const std::string name = cuda_device_facts().name;
  for (const auto& [part, flops] : known) {
    if (name.find(part) != std::string::npos) return flops;
  }
  return 0;
}

}  // namespace

void Trainer::log_step(const StepResult& result, double learning_rate) {
  if (ranks_.world().rank() != 0 || result.is_bad) return;
  json line = {{"step", state_.step},
               {"loss", result.loss},
               {"learning_rate", learning_rate},
               {"grad_norm", result.grad_norm},
               {"tokens", state_.tokens},
               {"tokens_per_second", static_cast<double>(result.tokens) / result.seconds},
               {"seconds", state_.seconds},
               {"phase_seconds", to_json(std::exchange(phase_seconds_, {}))},
               {"memory", memory_in_use(model_.device())},
               {"epoch", state_.cursor.epoch}};
  if (num_levels() > 0) line["loss_per_level"] = result.loss_per_level;
  if (config_.adapts_prefixes()) line["prefix_weights"] = state_.prefix_weights;
  const double peak = peak_flops(config_, model_.device()) * ranks_.world().size();
  if (peak > 0) line["mfu"] = result.flops / result.seconds / peak;
  metrics_.add(line);
}

json Trainer::summary(const std::string& reason) const {
  return {{"train_steps", state_.step},
          {"train_seconds", state_.seconds},
          {"step_seconds", state_.step_seconds},
          {"train_tokens", state_.tokens},
          {"tokens_per_second",
           state_.step_seconds > 0 ? static_cast<double>(state_.tokens) / state_.step_seconds : 0},
          {"stopped_by", reason},
          {"finished", state_.finished},
          {"bad_steps", state_.bad_steps},
          {"rollbacks", state_.rollbacks},
          {"final_loss", state_.loss},
          {"best_step", state_.best_step},
          {"best_validation_recall@10", state_.best_recall},
          {"best_validation_ndcg@10", state_.best_ndcg},
          {"ranks", ranks_.world().size()},
          {"version", MIRABELLE_VERSION}};
}

}  // namespace mirabelle
