#include "mirabelle/tokenizer/code_embedding.h"

#include <algorithm>
#include <cmath>
#include <memory>

#include "corpus_items.h"
#include "mirabelle/core/error.h"
#include "mirabelle/core/random.h"
#include "mirabelle/kernels/matmul.h"
#include "mirabelle/tokenizer/co_occurrence_embedding.h"
#include "mirabelle/tokenizer/residual_kmeans.h"

namespace mirabelle {
namespace {

std::vector<float> random_projection(int64_t rows, int64_t columns, int64_t seed) {
  const uint64_t key = random_key(seed, "code embedding");
  std::vector<float> values(rows * columns);
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = static_cast<float>(random_normal(key, static_cast<int64_t>(i)));
  }
  return values;
}

/// Adds the projected features of every item to the rows of its codes.
void add_items(std::vector<float>& rows, const ItemRows& features, const SemanticIds& ids,
               std::vector<float> projection, int64_t hidden_size, int64_t batch_items) {
  const Stream stream;
  std::vector<float> batch, projected;
  for (int64_t begin = 0; begin < features.num_items; begin += batch_items) {
    const int64_t n = std::min(batch_items, features.num_items - begin);
    batch.resize(n * features.dim);
    projected.resize(n * hidden_size);
    features.read(begin, begin + n, batch.data());
    matmul(view_of(projected.data(), {n, hidden_size}), view_of(batch.data(), {n, features.dim}),
           false, view_of(projection.data(), {features.dim, hidden_size}), false, Accumulate::kNo,
           stream);
    for (int64_t i = 0; i < n; ++i) {
      const float* const item = projected.data() + i * hidden_size;
      for (int64_t level = 0; level < ids.num_levels(); ++level) {
        float* const row = rows.data() + ids.token(begin + i, level) * hidden_size;
        for (int64_t j = 0; j < hidden_size; ++j) row[j] += item[j];
      }
    }
  }
}

void scale_to_mean_square_1(float* row, int64_t n) {
  double squares = 0;
  for (int64_t j = 0; j < n; ++j) squares += static_cast<double>(row[j]) * row[j];
  if (squares == 0) return;
  const double scale = std::sqrt(static_cast<double>(n) / squares);
  for (int64_t j = 0; j < n; ++j) row[j] = static_cast<float>(scale * row[j]);
}

}  // namespace

std::vector<float> code_embedding(const Corpus& corpus, const TokenizerFile& tokenizer,
                                  const TokenizerRecipe& recipe, int64_t hidden_size, int64_t seed,
                                  const Communicator& communicator) {
  const std::vector<FeatureSource>& sources = tokenizer.quantizer.normalization.sources;
  MIRABELLE_CHECK_USAGE(!sources.empty(),
                        "training.initial_embedding=features needs a tokenizer made of features; "
                        "this one is of kind ",
                        tokenizer.kind);
  check_sources(sources, corpus);
  const TokenizerConfig& config = recipe.tokenizer;
  std::shared_ptr<const std::vector<float>> co_occurrences;
  if (config.co_occurrence_dim > 0) {
    co_occurrences = std::make_shared<const std::vector<float>>(
        co_occurrence_embedding(count_co_occurrences(corpus, recipe.co_occurrence, communicator),
                                config.co_occurrence_dim, config.seed, communicator));
  }
  const ItemRows fused = buffered_rows(fused_rows(corpus, sources, std::move(co_occurrences)),
                                       config.batch_items, kKeptFeatureBytes);
  const ItemRows features = normalized_rows(
      fused, fit_normalization(sources, fused, false, config.batch_items, communicator));
  std::vector<float> rows(tokenizer.ids.vocab_size() * hidden_size);
  if (communicator.rank() == 0) {
    add_items(rows, features, tokenizer.ids, random_projection(features.dim, hidden_size, seed),
              hidden_size, config.batch_items);
    for (int64_t token = 0; token < tokenizer.ids.vocab_size(); ++token) {
      scale_to_mean_square_1(rows.data() + token * hidden_size, hidden_size);
    }
  }
  communicator.broadcast(view_of(rows), 0, Stream());
  return rows;
}

}  // namespace mirabelle
