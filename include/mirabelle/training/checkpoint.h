#pragma once

#include <filesystem>
#include <future>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "mirabelle/comm/communicator.h"
#include "mirabelle/core/buffer.h"
#include "mirabelle/core/files.h"
#include "mirabelle/data/batch_loader.h"
#include "mirabelle/model/parameters.h"

namespace mirabelle {

// A checkpoint is a folder that says nothing about the layout of the ranks which wrote it, but for
// the number of files:
//
//   manifest.json   schema, version, TrainingState, the tensor files, and per file its SHA-256
//   config.yaml     the resolved configuration
//   tokenizer.h5    a copy of the tokenizer's file: codebooks, vocabulary, item <-> semantic ID
//   tensors-00001-of-00004.h5, ...   by every rank what it owns, float32:
//     weights/NAME, exp_avg/NAME, exp_avg_sq/NAME   logical tensors by their Hugging Face names: in
//                     their own shape if the file holds all of one, else the regions that it holds,
//                     one after the other
//     index           JSON text: {NAME: {"shape": [rows, columns], "regions": [region, ...]}, ...};
//                     a region is [row begin, row end, column begin, column end, begin, end]: of
//                     that rectangle, in row-major order, the elements [begin, end)
//
// A training output keeps them in checkpoints/step-NNNNNNNN; the file checkpoints/best names the
// best.

/// Everything besides the tensors that training needs to go on as if it had not stopped.
struct TrainingState {
  int64_t step = 0;  ///< optimizer steps done
  DataCursor cursor;
  int64_t tokens = 0;       ///< trained on so far
  double loss = 0;          ///< of the newest step
  double seconds = 0;       ///< spent so far, with validations and checkpoints
  double step_seconds = 0;  ///< of these, in optimizer steps
  double best_ndcg = -1;    ///< of the validations so far; -1 before the first
  double best_recall = -1;  ///< of that validation
  int64_t best_step = -1;
  int64_t validations_since_best = 0;
  std::vector<double> prefix_weights;  ///< see level_weights.h; empty without training.prefix_loss
  int64_t good_steps = 0;              ///< see step_guard.h; of these
  double mean_grad_norm = 0;           ///< the running mean
  int64_t skipped_steps = 0;           ///< of `step`, without an update
  int64_t bad_steps = 0;               ///< of the whole run, also those that it rolled back
  int64_t bad_steps_in_row = 0;        ///< the newest
  int64_t rollbacks = 0;               ///< of the whole run
  bool validation_is_owed = false;     ///< of this step: it was put off by a stop
  bool finished = false;               ///< nothing is left to do
  std::string optimizer = "adamw";     ///< of whom exp_avg and exp_avg_sq are; none: only weights
};

/// Flat float32 arrays in host memory.
struct CheckpointTensors {
  TensorView weights, exp_avg, exp_avg_sq;
};

/// Reading verifies the SHA-256 of each file that it opens. Errors are kData Errors that name the
/// file.
TrainingState read_training_state(const std::filesystem::path& folder);
/// The names of the tensor files.
std::vector<std::string> checkpoint_tensor_files(const std::filesystem::path& folder);
/// Throws unless the SHA-256 of all files is the manifest's.
void verify_checkpoint(const std::filesystem::path& folder);
std::string read_checkpoint_config(const std::filesystem::path& folder);
/// Fills the tensors whose views are not absent, [layout.num_elements()], with this rank's share,
/// copies of other ranks' pieces too, whatever layout wrote them; padding is left as it is.
/// Verifies all files, dealt out to the ranks. Throws, on all ranks the same, if names or shapes
/// differ from the layout's or if an element is missing. Collective.
void read_checkpoint_tensors(const std::filesystem::path& folder, const ParameterLayout& layout,
                             const CheckpointTensors& tensors, const Communicator& world);

/// Makes a checkpoint of a folder with tensor files and tokenizer.h5: writes the configuration and
/// the manifest.
void complete_checkpoint(const std::filesystem::path& folder, const TrainingState& state,
                         const std::vector<std::string>& tensor_files,
                         const std::string& config_text);

struct OwnedTensor;

/// Writes the checkpoints of a training run, each in the background while the run goes on:
///
///   fill what prepare() returns; start(...); train on; commit()
///
/// Every rank of `world` calls the same. Errors are thrown on all ranks: those of the first that
/// failed.
class CheckpointWriter {
 public:
  /// Of its share of the model this rank writes the `owned` disjoint ranges, of all ranks together
  /// at least what is primary. Allocates 12 bytes per owned element.
  CheckpointWriter(const Communicator& world, const ParameterLayout& layout,
                   const std::vector<FlatRange>& owned, std::filesystem::path tokenizer_file);
  /// Waits for this rank's file. What was not committed is removed by rank 0, or, where another
  /// rank still writes, by the next start() of the same folder.
  ~CheckpointWriter();
  CheckpointWriter(const CheckpointWriter&) = delete;
  CheckpointWriter& operator=(const CheckpointWriter&) = delete;

  /// Memory for the values of the owned ranges, one range after the other, to be filled before
  /// start(). Commits a pending checkpoint first. Collective.
  CheckpointTensors prepare();
  /// Begins to write, in another thread, what the memory of prepare() holds; it must stay so until
  /// commit(). Throws if a checkpoint is pending. Collective.
  void start(const std::filesystem::path& folder, const TrainingState& state,
             const std::string& config_text);
  bool is_pending() const { return job_.valid(); }  ///< started and not committed
  /// Whether this rank's files of the pending checkpoint are complete, or failed. Never waits.
  bool is_written() const;
  /// Waits for the pending checkpoint, if any, on all ranks, and puts the folder in place. On an
  /// error nothing is left of it; a value that is not finite is one. Collective.
  void commit();

 private:
  std::string write_files(const std::filesystem::path& folder,
                          const std::string& config_text) const;

  const Communicator& world_;
  std::filesystem::path tokenizer_file_;
  std::vector<OwnedTensor> tensors_;
  Buffer weights_, exp_avg_, exp_avg_sq_;
  TrainingState state_;                 // of the pending checkpoint
  std::unique_ptr<AtomicPath> target_;  // its folder, on rank 0
  std::future<std::string> job_;        // writes it; the last member, so that it ends first
};

/// The newest checkpoint of a training output, if there is any.
std::optional<std::filesystem::path> newest_checkpoint(const std::filesystem::path& output);
/// How many a training output has.
int64_t num_checkpoints(const std::filesystem::path& output);
/// The newest of a run that is not over: one that is has a finished checkpoint and summary.json.
std::optional<std::filesystem::path> resumable_checkpoint(const std::filesystem::path& output);
/// `path` itself if it is a checkpoint; of a training output the best one, or the newest if none
/// was validated. Throws a kUsage Error if there is none.
std::filesystem::path find_checkpoint(const std::filesystem::path& path);
std::filesystem::path checkpoint_folder(const std::filesystem::path& output, int64_t step);
void mark_best_checkpoint(const std::filesystem::path& output, int64_t step);
/// Removes all but the newest `keep` and the best. At every moment those that are left are whole.
void remove_old_checkpoints(const std::filesystem::path& output, int64_t keep);
/// Removes what killed runs have not finished to write or to remove.
void remove_partial_checkpoints(const std::filesystem::path& output);

}  // namespace mirabelle
