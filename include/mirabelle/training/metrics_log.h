#pragma once

#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>

#include "mirabelle/training/checkpoint.h"
#include "mirabelle/training/event_file.h"

namespace mirabelle {

/// What is known of a training run as it goes: metrics.jsonl, one JSON object a line, each with the
/// "step" that it belongs to; and its numbers as an event file for TensorBoard in tensorboard/. One
/// rank writes it.
class MetricsLog {
 public:
  explicit MetricsLog(std::filesystem::path output) : output_(std::move(output)) {}

  /// Goes on from this state, of which everything later is dropped: the lines of later steps, and
  /// of this step the validation if it is owed. The first call begins a new event file.
  void go_on_from(const TrainingState& state);
  /// Appends a line; it is on its way to the disk when this returns. Throws if it cannot be
  /// written.
  void add(const nlohmann::json& line);

 private:
  std::filesystem::path output_;
  std::unique_ptr<EventFile> events_;
};

/// The finite numbers of a line by the tags that TensorBoard groups them by: "loss" is train/loss,
/// {"validation": {"ndcg@10": ...}} validation/ndcg@10, {"loss_per_level": [a, b]}
/// loss_per_level/1 and /2. "step" is none; texts and lines about an "event" have none.
std::vector<std::pair<std::string, double>> tagged_figures(const nlohmann::json& line);

}  // namespace mirabelle
