#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace mirabelle {

class RqVae;

/// One feature matrix of the corpus.
struct FeatureSource {
  std::string name;
  int64_t dim = 0;
  double weight = 1;
};

/// Brings the features of several sources, one after the other in a row, to a common scale:
///
///   x[j] <- (x[j] - means[j]) * weight / (deviations[j] * sqrt(n))
///
/// with n the number of features of the source that vary. A source then has total variance
/// weight^2 however wide it is, so wide sources do not outvote narrow ones.
struct FeatureNormalization {
  std::vector<FeatureSource> sources;
  std::vector<double> means;       ///< [feature_dim]
  std::vector<double> deviations;  ///< [feature_dim]; 0: the feature does not vary and becomes 0

  int64_t feature_dim() const;
  std::vector<float> scales() const;  ///< [feature_dim], the factor in the formula above
  /// rows [n, feature_dim], in place.
  void apply(float* rows, int64_t n) const;
};

/// What one level chooses from: rows [size, dim]. The code of a row is its index.
struct Codebook {
  int64_t size = 0;
  int64_t dim = 0;
  std::vector<float> rows;
};

/// codes [n] = the codebook's rows nearest to the residuals [n, dim], which lose those rows. On the
/// CPU.
void encode_level(int32_t* codes, float* residual, int64_t n, const Codebook& codebook);

/// Turns features into one code per level: the nearest row of the level's codebook to what the
/// earlier levels left over (the residual). What is quantized are the normalised features, or the
/// latents that an RQ-VAE's encoders make of them.
struct ResidualQuantizer {
  FeatureNormalization normalization;
  std::shared_ptr<const RqVae> rq_vae;  ///< on the host; null: normalised features are quantized
  std::vector<Codebook> codebooks;      ///< by level

  int64_t num_levels() const { return static_cast<int64_t>(codebooks.size()); }

  /// codes [n, num_levels] of rows [n, codebook dim] of what is quantized, which become the
  /// residuals that the last level leaves. On the CPU.
  void encode(int32_t* codes, float* rows, int64_t n) const;
};

}  // namespace mirabelle
