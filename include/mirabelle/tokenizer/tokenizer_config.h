#pragma once

#include <string>
#include <vector>

#include "mirabelle/core/config_fields.h"

namespace mirabelle {

struct TokenizerConfig {
  std::string file = "tokenizer.h5";
  std::string kind = "residual_kmeans";
  std::vector<int64_t> levels = {256, 256, 256};
  int64_t multi_resolution_levels = 0;
  std::vector<std::string> features;
  std::vector<double> feature_weights;
  int64_t co_occurrence_dim = 0;
  double co_occurrence_weight = 1;
  std::string standardize = "per_dimension";
  int64_t iterations = 50;
  double tolerance = 1e-4;
  std::string initialization = "kmeans++";
  int64_t initialization_sample = 16384;
  int64_t seed = 0;
  std::string collisions = "disambiguation_code";
  double balance_temperature = 0.05;
  int64_t batch_items = 16384;

  /// `levels`, or those that multi_resolution_levels stands for.
  std::vector<int64_t> level_sizes() const;

  void visit(ConfigFields& fields);
  /// Throws a kUsage Error that names the field.
  void check() const;
};

}  // namespace mirabelle
