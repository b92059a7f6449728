#include "mirabelle/training/metrics_log.h"

#include <cstdio>
#include <fstream>

#include "mirabelle/core/error.h"
#include "mirabelle/core/files.h"

namespace mirabelle {
using nlohmann::json;

void MetricsLog::truncate(const TrainingState& state) const {
  if (!std::filesystem::exists(file_)) return;
  std::ifstream file(file_);
  std::string kept;
  for (std::string line; std::getline(file, line);) {
    const json entry = json::parse(line, nullptr, false);
    if (!entry.is_object()) continue;  // a killed run may have written half a line
    const int64_t step = entry.value("step", state.step + 1);
    const bool is_owed =
        step == state.step && state.validation_is_owed && entry.contains("validation");
    if (step <= state.step && !is_owed) kept += line + "\n";
  }
  write_text_file(file_, kept);
}

/// nlohmann::json writes the shortest decimal that reads back to the same double; the loss is
/// written with all 17 digits, so that other readers get the same bits too.
void MetricsLog::add(const json& line) const {
  std::string text = line.dump();
  if (line.contains("loss")) {
    char loss[40];
    std::snprintf(loss, sizeof loss, "%.17g", line["loss"].get<double>());
    const std::string shortest = "\"loss\":" + line["loss"].dump();
    text.replace(text.find(shortest), shortest.size(), std::string("\"loss\":") + loss);
  }
  std::ofstream file(file_, std::ios::app);
  file << text << std::endl;
  MIRABELLE_CHECK(file.good(), file_.string(), ": cannot write");
}

}  // namespace mirabelle
