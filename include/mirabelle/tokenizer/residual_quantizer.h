#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace mirabelle {

/// One feature matrix of the corpus. A source of weight 1 has total variance 1 after
/// normalisation, however wide it is.
struct FeatureSource {
  std::string name;
  int64_t dim = 0;
  double weight = 1;
};

/// Brings the features of several sources, one after the other in a row, to a common scale:
/// x[j] <- (x[j] - means[j]) * weight / (deviations[j] * sqrt(number of j in the source that
/// vary)).
struct FeatureNormalization {
  std::vector<FeatureSource> sources;
  std::vector<double> means;       ///< [feature_dim]
  std::vector<double> deviations;  ///< [feature_dim]; 0: the feature does not vary and becomes 0

  int64_t feature_dim() const;
  std::vector<float> scales() const;  ///< [feature_dim], the factor in the formula above
  /// rows [n, feature_dim], in place.
  void apply(float* rows, int64_t n) const;
};

/// Turns features into one code per level: the nearest row of the level's codebook to what the
/// earlier levels left over (the residual). This is what a tokenizer that learns in another way
/// (an RQ-VAE) would replace.
struct ResidualQuantizer {
  struct Codebook {
    int64_t size = 0;
    std::vector<float> rows;  ///< [size, feature_dim]
  };
  FeatureNormalization normalization;
  std::vector<Codebook> codebooks;  ///< by level

  int64_t num_levels() const { return static_cast<int64_t>(codebooks.size()); }

  /// One level: codes [n] of what the earlier levels left of n normalised items, residual
  /// [n, feature_dim], from which the chosen codebook rows are then subtracted.
  void encode_level(int32_t* codes, float* residual, int64_t n, int64_t level) const;
};

}  // namespace mirabelle
