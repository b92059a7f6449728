#pragma once

#include <filesystem>
#include <optional>
#include <string>

#include "mirabelle/data/batch_loader.h"
#include "mirabelle/model/parameters.h"

namespace mirabelle {

// A checkpoint is a folder that says nothing about the ranks which wrote it:
//
//   manifest.json   schema, version, TrainingState, and per file its SHA-256
//   config.yaml     the resolved configuration
//   tokenizer.h5    a copy of the tokenizer's file: codebooks, vocabulary, item <-> semantic ID
//   weights.h5      one dataset per logical tensor, by its Hugging Face name, float32
//   optimizer.h5    exp_avg/NAME and exp_avg_sq/NAME, float32
//
// A training output keeps them in checkpoints/step-NNNNNNNN; the file checkpoints/best names the
// best.

/// Everything besides the tensors that training needs to go on as if it had not stopped.
struct TrainingState {
  int64_t step = 0;  ///< optimizer steps done
  DataCursor cursor;
  int64_t tokens = 0;       ///< trained on so far
  double seconds = 0;       ///< spent so far, with validations and checkpoints
  double step_seconds = 0;  ///< of these, in optimizer steps
  double best_ndcg = -1;    ///< of the validations so far; -1 before the first
  double best_recall = -1;  ///< of that validation
  int64_t best_step = -1;
  int64_t validations_since_best = 0;
  bool finished = false;  ///< nothing is left to do
};

/// The flat arrays of one rank's model (no tensor parallelism yet), all float32.
struct CheckpointTensors {
  TensorView weights, exp_avg, exp_avg_sq;
};

/// Writes the folder beside and renames it; one rank does.
void write_checkpoint(const std::filesystem::path& folder, const TrainingState& state,
                      const ParameterLayout& layout, const CheckpointTensors& tensors,
                      const std::string& config_text, const std::filesystem::path& tokenizer_file);

/// Reading verifies the SHA-256 of each file that it opens. Errors are kData Errors that name the
/// file.
TrainingState read_training_state(const std::filesystem::path& folder);
std::string read_checkpoint_config(const std::filesystem::path& folder);
/// Reads the tensors whose views are not absent. Throws if names or shapes differ from the layout.
void read_checkpoint_tensors(const std::filesystem::path& folder, const ParameterLayout& layout,
                             const CheckpointTensors& tensors);

/// The newest checkpoint of a training output, if there is any.
std::optional<std::filesystem::path> newest_checkpoint(const std::filesystem::path& output);
/// `path` itself if it is a checkpoint; of a training output the best one, or the newest if none
/// was validated. Throws a kUsage Error if there is none.
std::filesystem::path find_checkpoint(const std::filesystem::path& path);
std::filesystem::path checkpoint_folder(const std::filesystem::path& output, int64_t step);
void mark_best_checkpoint(const std::filesystem::path& output, int64_t step);
/// Removes all but the newest `keep` and the best.
void remove_old_checkpoints(const std::filesystem::path& output, int64_t keep);

}  // namespace mirabelle
