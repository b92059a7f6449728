#pragma once

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "mirabelle/comm/communicator.h"
#include "mirabelle/data/corpus.h"

namespace mirabelle {

/// Writes the ranked items of users as JSON lines, ordered by user, with the IDs of the data set:
///
///   {"user": 17, "target": 4, "items": [..], "scores": [..]}
///
/// "targets": [..] stands in the place of "target" if a user has several or none, and neither if
/// the writer is for recommendations. Each rank writes a file beside the target, PATH.rankR;
/// finish() merges them, so nothing is held in memory, and the file appears whole or not at all.
class PredictionWriter {
 public:
  enum class Targets { kWritten, kUnknown };
  /// A `resumable` writer leaves what was written if it does not come to finish(), for
  /// recover_predictions(), which must have been called before.
  PredictionWriter(const std::filesystem::path& path, const Corpus& corpus, Targets targets,
                   const Communicator& communicator, bool resumable = false);
  ~PredictionWriter();
  PredictionWriter(const PredictionWriter&) = delete;
  PredictionWriter& operator=(const PredictionWriter&) = delete;

  /// `user` (global index) must ascend on each rank.
  void add(int64_t user, const nlohmann::json& user_id, std::span<const int32_t> targets,
           std::span<const int32_t> items, std::span<const double> scores);

  /// Collective. Throws if any rank's file is incomplete.
  void finish();

 private:
  std::filesystem::path part_path(int rank) const;
  std::string id_list(std::span<const int32_t> items) const;
  void merge_parts() const;

  std::filesystem::path path_;
  Targets targets_;
  const Communicator& communicator_;
  std::vector<std::string> item_ids_;  // as JSON
  bool resumable_;
  std::ofstream part_;
};

/// The users, ascending, whose lines an interrupted run has left beside `path`, on any number of
/// ranks. `run` describes what the lines follow from; what a run of another description has left is
/// removed. Collective over `world`, with the same result on all ranks.
std::vector<int64_t> recover_predictions(const std::filesystem::path& path, const std::string& run,
                                         const Communicator& world);

}  // namespace mirabelle
