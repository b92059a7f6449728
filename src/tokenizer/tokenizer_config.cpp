#include "mirabelle/tokenizer/tokenizer_config.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "mirabelle/core/error.h"
#include "mirabelle/tokenizer/collisions.h"

namespace mirabelle {

std::vector<int64_t> TokenizerConfig::level_sizes() const {
  if (multi_resolution_levels == 0) return levels;
  std::vector<int64_t> sizes;
  for (int64_t size = 2048; std::ssize(sizes) < multi_resolution_levels;
       size = std::max<int64_t>(1, size / 2)) {
    sizes.push_back(size);
  }
  return sizes;
}

void TokenizerConfig::visit(ConfigFields& fields) {
  fields.field("file", file, "the tokenizer's file, made by mirabelle-tokenizer-build");
  fields.field("kind", kind,
               "'residual_kmeans', 'rq_vae' (section rq_vae), or 'item_id': one level with one "
               "code per item, which makes the "
               "model an ordinary next-item model");
  fields.field("levels", levels, "codebook size of each level");
  fields.field("multi_resolution_levels", multi_resolution_levels,
               "n > 0: in the place of `levels`, n levels of 2048, 1024, 512, ... codes");
  fields.field("features", features, "feature sources of the corpus to use; empty = all");
  fields.field("feature_weights", feature_weights,
               "a weight for each source; empty = all weigh the same, however wide they are");
  fields.field("co_occurrence_dim", co_occurrence_dim,
               "n > 0: one more source, of n columns, in which items that are met together in "
               "training histories are near (section co_occurrence); 0: none");
  fields.field("co_occurrence_weight", co_occurrence_weight, "the weight of that source");
  fields.field("standardize", standardize,
               "'per_dimension': every feature to mean 0 and deviation 1; 'per_source': mean 0 and "
               "one common scale, so that features keep their proportions");
  fields.field("iterations", iterations, "most k-means iterations of a level");
  fields.field("tolerance", tolerance,
               "a level is done when an iteration lowers its error by less than this fraction");
  fields.field("initialization", initialization,
               "first codebooks: 'kmeans++', or 'sample' (items drawn at random)");
  fields.field("initialization_sample", initialization_sample,
               "items among which the first codebooks are drawn; held in memory");
  fields.field("seed", seed, "of the initialization");
  fields.field(
      "collisions", collisions,
      "items with equal codes: 'disambiguation_code' numbers them at one more level; "
      "'nearest_free' moves all but one to the nearest free code of the last level; "
      "'balanced' spreads the items of every prefix evenly over the last level's codes; "
      "'shared' lets them share one semantic ID; 'item_code' gives every item a code of its "
      "own at one more level");
  fields.field("balance_temperature", balance_temperature,
               "of 'balanced', in mean squared distances: lower is nearer to the least total "
               "distance, and slower");
  fields.field("batch_items", batch_items, "items in memory at a time, on each rank and its GPU");
}

void TokenizerConfig::check() const {
  MIRABELLE_CHECK_USAGE(!file.empty(), "tokenizer.file must name a file");
  MIRABELLE_CHECK_USAGE(kind == "residual_kmeans" || kind == "rq_vae" || kind == "item_id",
                        "tokenizer.kind must be 'residual_kmeans', 'rq_vae' or 'item_id', not '",
                        kind, "'");
  MIRABELLE_CHECK_USAGE(co_occurrence_dim >= 0,
                        "tokenizer.co_occurrence_dim must not be negative, is ", co_occurrence_dim);
  MIRABELLE_CHECK_USAGE(co_occurrence_weight > 0 && std::isfinite(co_occurrence_weight),
                        "tokenizer.co_occurrence_weight must be positive, not ",
                        co_occurrence_weight);
  MIRABELLE_CHECK_USAGE(!levels.empty(), "tokenizer.levels must have at least one level");
  for (const int64_t size : levels) {
    MIRABELLE_CHECK_USAGE(size > 0 && size <= (1 << 24),
                          "tokenizer.levels must be sizes from 1 to 16777216, not ", size);
  }
  MIRABELLE_CHECK_USAGE(std::set(features.begin(), features.end()).size() == features.size(),
                        "tokenizer.features names a source twice");
  MIRABELLE_CHECK_USAGE(
      feature_weights.empty() || features.empty() || feature_weights.size() == features.size(),
      "tokenizer.feature_weights has ", feature_weights.size(), " weights for ", features.size(),
      " tokenizer.features");
  for (const double weight : feature_weights) {
    MIRABELLE_CHECK_USAGE(weight > 0 && std::isfinite(weight),
                          "tokenizer.feature_weights must be positive, not ", weight);
  }
  MIRABELLE_CHECK_USAGE(standardize == "per_dimension" || standardize == "per_source",
                        "tokenizer.standardize must be 'per_dimension' or 'per_source', not '",
                        standardize, "'");
  MIRABELLE_CHECK_USAGE(iterations > 0, "tokenizer.iterations must be positive, not ", iterations);
  MIRABELLE_CHECK_USAGE(tolerance >= 0 && tolerance < 1,
                        "tokenizer.tolerance must be from 0 to below 1, not ", tolerance);
  MIRABELLE_CHECK_USAGE(initialization == "kmeans++" || initialization == "sample",
                        "tokenizer.initialization must be 'kmeans++' or 'sample', not '",
                        initialization, "'");
  MIRABELLE_CHECK_USAGE(initialization_sample > 0,
                        "tokenizer.initialization_sample must be positive, not ",
                        initialization_sample);
  MIRABELLE_CHECK_USAGE(is_collision_rule(collisions),
                        "tokenizer.collisions must be 'disambiguation_code', 'nearest_free', "
                        "'balanced', 'shared' or 'item_code', not '",
                        collisions, "'");
  MIRABELLE_CHECK_USAGE(balance_temperature > 0 && std::isfinite(balance_temperature),
                        "tokenizer.balance_temperature must be positive, not ",
                        balance_temperature);
  MIRABELLE_CHECK_USAGE(multi_resolution_levels >= 0 && multi_resolution_levels <= 64,
                        "tokenizer.multi_resolution_levels must be from 0 to 64, not ",
                        multi_resolution_levels);
  MIRABELLE_CHECK_USAGE(batch_items > 0, "tokenizer.batch_items must be positive, not ",
                        batch_items);
}

}  // namespace mirabelle
