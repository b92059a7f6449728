#pragma once

#include <string>
#include <vector>

#include "mirabelle/comm/parallel_config.h"
#include "mirabelle/core/config_fields.h"
#include "mirabelle/core/dtype.h"
#include "mirabelle/model/model_share.h"
#include "mirabelle/model/transformer.h"

namespace mirabelle {

struct TrainingConfig {
  std::string output = "runs/train";
  int64_t max_steps = 10000;
  double max_wall_seconds = 0;
  bool fit_steps_to_wall_time = false;
  int64_t seed = 0;
  std::string dtype = "float32";
  std::string init_from;
  std::string initial_embedding = "random";
  bool cuda_graph = true;
  bool reproducible = false;
  int64_t reproducible_shards = 4;
  std::string recompute = "none";

  int64_t micro_batch_tokens = 2048;
  int64_t global_batch_tokens = 8192;
  int64_t max_sequence_tokens = 1024;

  std::string optimizer = "adamw";
  double learning_rate = 2e-3;
  double min_learning_rate = 0;
  int64_t warmup_steps = 200;
  std::string schedule = "cosine";
  double weight_decay = 0.05;
  double beta1 = 0.9;
  double beta2 = 0.98;
  double epsilon = 1e-8;
  double muon_learning_rate = 0;
  double muon_momentum = 0.95;
  double max_grad_norm = 1.0;
  std::string bad_step = "skip";
  double spike_factor = 0;
  int64_t spike_warmup_steps = 100;
  int64_t max_bad_steps = 10;

  double label_smoothing = 0;
  std::vector<double> level_weights;
  std::string prefix_loss = "none";
  double prefix_loss_weight = 0.1;
  double prefix_adaptation_rate = 1e-3;

  int64_t log_every_steps = 20;
  double peak_tflops = 0;
  int64_t validation_every_steps = 500;
  int64_t validation_users = 2000;
  int64_t validation_beam_size = 20;
  int64_t early_stop_patience = 0;
  int64_t checkpoint_every_steps = 500;
  int64_t keep_checkpoints = 2;
  int64_t sentinel_every_steps = 100;
  bool resume = true;

  /// Parts of the global batch; each is packed and computed by itself.
  int64_t num_parts() const { return global_batch_tokens / micro_batch_tokens; }

  bool uses_muon() const { return optimizer == "muon"; }
  DType model_dtype() const { return mirabelle::model_dtype("training.dtype", dtype); }
  Recompute model_recompute() const;
  bool adapts_prefixes() const { return prefix_loss == "adaptive"; }
  bool weighs_levels() const { return !level_weights.empty() || adapts_prefixes(); }

  void visit(ConfigFields& fields);
  /// Throws a kUsage Error that names the field.
  void check() const;
};

/// What rank `rank` of `world_size` holds of the model. Throws a kUsage Error that names the key if
/// the sizes do not fit together.
ModelShare model_share(const TrainingConfig& training, const ParallelConfig& parallel, int64_t rank,
                       int64_t world_size);

}  // namespace mirabelle
