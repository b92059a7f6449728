#include "mirabelle/training/metrics_log.h"

#include <cmath>
#include <cstdio>
#include <fstream>

#include "mirabelle/core/error.h"
#include "mirabelle/core/files.h"

namespace mirabelle {
using nlohmann::json;

namespace {

/// Removes what a run that goes on from this state does again.
void truncate(const std::filesystem::path& path, const TrainingState& state) {
  if (!std::filesystem::exists(path)) return;
  std::ifstream file(path);
  std::string kept;
  for (std::string line; std::getline(file, line);) {
    const json entry = json::parse(line, nullptr, false);
    if (!entry.is_object()) continue;  // a killed run may have written half a line
    const json stored = entry.value("step", json());
    const int64_t step = stored.is_number_integer() ? stored.get<int64_t>() : state.step + 1;
    const bool is_owed =
        step == state.step && state.validation_is_owed && entry.contains("validation");
    if (step <= state.step && !is_owed) kept += line + "\n";
  }
  write_text_file(path, kept);
}

}  // namespace

void MetricsLog::go_on_from(const TrainingState& state) {
  truncate(output_ / "metrics.jsonl", state);
  if (!events_) events_ = std::make_unique<EventFile>(output_ / "tensorboard");
  events_->restart(state.step + 1);
}

/// nlohmann::json writes the shortest decimal that reads back to the same double; the loss is
/// written with all 17 digits, so that other readers get the same bits too.
void MetricsLog::add(const json& line) {
  std::string text = line.dump();
  if (line.contains("loss")) {
    char loss[40];
    std::snprintf(loss, sizeof loss, "%.17g", line["loss"].get<double>());
    const std::string shortest = "\"loss\":" + line["loss"].dump();
    text.replace(text.find(shortest), shortest.size(), std::string("\"loss\":") + loss);
  }
  const std::filesystem::path path = output_ / "metrics.jsonl";
  std::ofstream file(path, std::ios::app);
  file << text << std::endl;
  MIRABELLE_CHECK(file.good(), path.string(), ": cannot write");
  const auto figures = tagged_figures(line);
  if (events_ && !figures.empty()) events_->add(line.at("step"), figures);
}

std::vector<std::pair<std::string, double>> tagged_figures(const json& line) {
  std::vector<std::pair<std::string, double>> figures;
  const auto add = [&](const std::string& tag, const json& value) {
    if (value.is_number() && std::isfinite(value.get<double>())) figures.emplace_back(tag, value);
  };
  if (line.contains("event")) return figures;
  for (const auto& [key, value] : line.items()) {
    if (key == "step") continue;
    if (value.is_object()) {
      for (const auto& [name, part] : value.items()) add(key + "/" + name, part);
    } else if (value.is_array()) {
      for (size_t i = 0; i < value.size(); ++i) add(key + "/" + std::to_string(i + 1), value[i]);
    } else {
      add("train/" + key, value);
    }
  }
  return figures;
}

}  // namespace mirabelle
