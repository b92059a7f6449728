#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "bench/timing.h"

namespace mirabelle {

struct TrainingBenchOptions {
  std::vector<std::string> models = {"tiny"};  ///< names of presets
  int64_t micro_batch_tokens = 16384;
  int64_t micro_batches = 4;  ///< of an optimizer step
  int64_t sequence = 1024;    ///< tokens of every sequence, or of the longest history
  bool skewed = false;        ///< histories of very different lengths
  DType dtype = DType::kFloat32;
  bool reproducible = false;

  /// Throws a kUsage Error that names the option.
  void check() const;
};

/// The presets' names, for --help.
std::string training_presets();

/// Times complete training steps (forward, backward, optimizer) of one process on random tokens.
nlohmann::json bench_training(const TrainingBenchOptions& options, Device device);

}  // namespace mirabelle
