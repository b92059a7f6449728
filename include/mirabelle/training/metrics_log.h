#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>

#include "mirabelle/training/checkpoint.h"

namespace mirabelle {

/// metrics.jsonl of a training run: one JSON object a line, each with the "step" that it belongs
/// to. One rank writes it.
class MetricsLog {
 public:
  explicit MetricsLog(std::filesystem::path file) : file_(std::move(file)) {}

  /// Removes what a run that goes on from this state does again: the lines of later steps, and of
  /// this step the validation if it is owed.
  void truncate(const TrainingState& state) const;
  /// Appends a line; it is on its way to the disk when this returns. Throws if it cannot be
  /// written.
  void add(const nlohmann::json& line) const;

 private:
  std::filesystem::path file_;
};

}  // namespace mirabelle
