#pragma once

#include <string>
#include <vector>

#include "mirabelle/core/config_fields.h"

namespace mirabelle {

/// The RQ-VAE (tokenizer/rq_vae.h) and its training.
struct RqVaeConfig {
  std::vector<int64_t> hidden_sizes = {512, 256};
  int64_t source_size = 128;
  int64_t codebook_dim = 64;

  int64_t steps = 5000;
  int64_t batch_items = 1024;
  int64_t parts = 8;
  double learning_rate = 1e-3;
  int64_t warmup_steps = 100;
  double weight_decay = 0.01;

  double commitment_weight = 0.25;
  std::string codebook_update = "gradient";
  double ema_decay = 0.99;
  std::string gradient_estimator = "rotation";
  bool progressive_masking = true;
  bool kmeans_initialization = true;
  int64_t dead_code_steps = 100;

  double contrastive_weight = 0;
  std::string contrastive_similarity = "cosine";
  double contrastive_temperature = 0.1;
  int64_t contrastive_size = 64;

  void visit(ConfigFields& fields);
  /// Throws a kUsage Error that names the field.
  void check() const;
  /// Throws a kUsage Error unless so many ranks can share the parts of a batch evenly.
  void check_ranks(int64_t num_ranks) const;
};

}  // namespace mirabelle
