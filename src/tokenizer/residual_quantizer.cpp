#include "mirabelle/tokenizer/residual_quantizer.h"

#include <algorithm>
#include <cmath>

#include "mirabelle/core/error.h"
#include "mirabelle/kernels/nearest_code.h"

namespace mirabelle {

void encode_level(int32_t* codes, float* residual, int64_t n, const Codebook& codebook) {
  std::vector<float> workspace((n + 1) * codebook.size);
  const TensorView codes_view = view_of(codes, {n});
  const TensorView residual_view = view_of(residual, {n, codebook.dim});
  const TensorView rows = view_of(codebook.rows.data(), {codebook.size, codebook.dim});
  const TensorView workspace_view = view_of(workspace.data(), {(n + 1) * codebook.size});
  const Stream stream;
  nearest_code(codes_view, residual_view, rows, workspace_view, stream);
  subtract_code(residual_view, codes_view, rows, stream);
}

int64_t FeatureNormalization::feature_dim() const {
  int64_t dim = 0;
  for (const FeatureSource& source : sources) dim += source.dim;
  return dim;
}

std::vector<float> FeatureNormalization::scales() const {
  std::vector<float> result;
  for (const FeatureSource& source : sources) {
    const auto begin = deviations.begin() + static_cast<int64_t>(result.size());
    const auto varying = source.dim - std::count(begin, begin + source.dim, 0.0);
    for (int64_t j = 0; j < source.dim; ++j) {
      const double scale =
          begin[j] == 0 ? 0 : source.weight / (begin[j] * std::sqrt(static_cast<double>(varying)));
      result.push_back(static_cast<float>(scale));
    }
  }
  return result;
}

void FeatureNormalization::apply(float* rows, int64_t n) const {
  const std::vector<float> scale = scales();
  const int64_t dim = static_cast<int64_t>(scale.size());
  for (int64_t i = 0; i < n; ++i) {
    float* row = rows + i * dim;
    for (int64_t j = 0; j < dim; ++j) {
      row[j] = static_cast<float>(row[j] - means[j]) * scale[j];
    }
  }
}

void ResidualQuantizer::encode(int32_t* codes, float* rows, int64_t n) const {
  std::vector<int32_t> level_codes(n);
  for (int64_t level = 0; level < num_levels(); ++level) {
    encode_level(level_codes.data(), rows, n, codebooks[level]);
    for (int64_t i = 0; i < n; ++i) codes[i * num_levels() + level] = level_codes[i];
  }
}

}  // namespace mirabelle
