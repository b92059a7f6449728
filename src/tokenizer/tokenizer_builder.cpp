#include "mirabelle/tokenizer/tokenizer_builder.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <memory>
#include <numeric>
#include <sstream>

#include "corpus_items.h"
#include "mirabelle/core/error.h"
#include "mirabelle/core/logging.h"
#include "mirabelle/data/training_histories.h"
#include "mirabelle/tokenizer/canonical_sum.h"
#include "mirabelle/tokenizer/co_occurrence_embedding.h"
#include "mirabelle/tokenizer/collisions.h"
#include "mirabelle/tokenizer/tokenizer_report.h"

namespace mirabelle {
namespace {

constexpr int64_t kEncodedItems = 4096;  // by an RQ-VAE at a time

std::vector<FeatureSource> configured_sources(const Corpus& corpus, const TokenizerConfig& config) {
  const std::vector<std::string> available = corpus.feature_names();
  std::ostringstream listed;
  for (const std::string& name : available) listed << ' ' << name;
  const std::vector<std::string>& names = config.features.empty() ? available : config.features;
  MIRABELLE_CHECK_USAGE(!names.empty() || config.co_occurrence_dim > 0, "corpus ",
                        corpus.folder().string(),
                        " has no feature sources; import some, or set tokenizer.kind=item_id");
  MIRABELLE_CHECK_USAGE(
      config.feature_weights.empty() || config.feature_weights.size() == names.size(),
      "tokenizer.feature_weights has ", config.feature_weights.size(), " weights for the ",
      names.size(), " sources of corpus ", corpus.folder().string(), ":", listed.str());
  std::vector<FeatureSource> sources;
  for (size_t i = 0; i < names.size(); ++i) {
    MIRABELLE_CHECK_USAGE(std::ranges::find(available, names[i]) != available.end(),
                          "tokenizer.features: corpus ", corpus.folder().string(),
                          " has no source ", names[i], ", it has:", listed.str());
    sources.push_back({names[i], corpus.feature_dim(names[i]),
                       config.feature_weights.empty() ? 1.0 : config.feature_weights[i]});
  }
  MIRABELLE_CHECK_USAGE(std::ranges::find(names, kCoOccurrenceSource) == names.end(), "corpus ",
                        corpus.folder().string(), " has a feature source ", kCoOccurrenceSource,
                        ", the name of what tokenizer.co_occurrence_dim makes; give it another");
  if (config.co_occurrence_dim > 0) {
    sources.push_back({kCoOccurrenceSource, config.co_occurrence_dim, config.co_occurrence_weight});
  }
  return sources;
}

SemanticIds one_code_per_item(int64_t num_items) {
  std::vector<int32_t> codes(num_items);
  std::iota(codes.begin(), codes.end(), 0);
  return SemanticIds({num_items}, std::move(codes));
}

/// level_codes[level][item] as codes [num_items, num_levels].
std::vector<int32_t> rows_of(const std::vector<std::vector<int32_t>>& level_codes) {
  const size_t num_levels = level_codes.size(), num_items = level_codes[0].size();
  std::vector<int32_t> codes(num_items * num_levels);
  for (size_t level = 0; level < num_levels; ++level) {
    for (size_t i = 0; i < num_items; ++i) codes[i * num_levels + level] = level_codes[level][i];
  }
  return codes;
}

/// With one more level, which numbers the items of equal codes.
SemanticIds numbered_ids(std::vector<int64_t> level_sizes, const CodeRows& codes) {
  std::vector<int32_t> numbers(codes.num_items(), -1);
  number_items(numbers, codes);
  level_sizes.push_back(disambiguation_level_size(1 + *std::ranges::max_element(numbers)));
  return SemanticIds(std::move(level_sizes), append_level(codes, numbers));
}

/// With one more level, of a code for every item.
SemanticIds ids_with_item_codes(std::vector<int64_t> level_sizes, const CodeRows& codes) {
  std::vector<int32_t> numbers(codes.num_items());
  std::iota(numbers.begin(), numbers.end(), 0);
  level_sizes.push_back(codes.num_items());
  return SemanticIds(std::move(level_sizes), append_level(codes, numbers));
}

/// Fraction of items whose codes are theirs alone.
double unique_share(const CodeRows& codes) {
  int64_t unique = 0;
  for_each_group(codes, codes.num_levels,
                 [&](std::span<const int32_t> items) { unique += items.size() == 1; });
  return static_cast<double>(unique) / static_cast<double>(codes.num_items());
}

/// The semantic IDs of items with these codes, of which the rule may move some.
SemanticIds ids_by_rule(const TokenizerConfig& config, const Corpus& corpus,
                        std::vector<int32_t>& codes, const LastLevel& last,
                        const Communicator& communicator) {
  const std::vector<int64_t> level_sizes = config.level_sizes();
  const auto num_levels = static_cast<int64_t>(level_sizes.size());
  if (config.collisions == "nearest_free") {
    move_to_nearest_free(codes, num_levels, {}, last, communicator);
  } else if (config.collisions == "balanced") {
    balance_last_level(codes, num_levels, config.balance_temperature, last, communicator);
  } else if (config.collisions == "shared") {
    return SemanticIds(level_sizes, codes,
                       priorities_of({codes, num_levels}, count_training_events(corpus)));
  } else if (config.collisions == "item_code") {
    return ids_with_item_codes(level_sizes, {codes, num_levels});
  }
  if (config.collisions != "disambiguation_code" && unique_share({codes, num_levels}) == 1) {
    return SemanticIds(level_sizes, codes);
  }
  return numbered_ids(level_sizes, {codes, num_levels});
}

/// Of two tables of codes; only last codes differ.
int64_t num_changed(const std::vector<int32_t>& before, const std::vector<int32_t>& after) {
  int64_t count = 0;
  for (size_t i = 0; i < before.size(); ++i) count += before[i] != after[i];
  return count;
}

/// The items' codes by given codebooks, and what these leave over: each rank's share of the items,
/// on the CPU.
ResidualKMeans quantize(const ItemRows& rows, std::vector<Codebook> codebooks, int64_t batch_items,
                        const Communicator& communicator,
                        const std::function<void(const EncodingProgress&)>& on_progress) {
  const auto num_levels = static_cast<int64_t>(codebooks.size());
  ResidualKMeans result{{}, {}, {}};
  result.codes.assign(num_levels, std::vector<int32_t>(rows.num_items));
  std::vector<float> values;
  const auto squares = [&] {
    return std::inner_product(values.begin(), values.end(), values.begin(), 0.0);
  };
  CanonicalSum sum(communicator);
  const IndexRange own = {CanonicalSum::items(sum.chunks().begin, rows.num_items).begin,
                          CanonicalSum::items(sum.chunks().end - 1, rows.num_items).end};
  const auto start = std::chrono::steady_clock::now();
  for (int64_t chunk = sum.chunks().begin; chunk < sum.chunks().end; ++chunk) {
    std::vector<double> errors(num_levels + 1);
    const IndexRange items = CanonicalSum::items(chunk, rows.num_items);
    for (int64_t begin = items.begin; begin < items.end; begin += batch_items) {
      const int64_t n = std::min(batch_items, items.end - begin);
      values.resize(n * rows.dim);
      rows.read(begin, begin + n, values.data());
      errors[0] += squares();
      for (int64_t level = 0; level < num_levels; ++level) {
        encode_level(result.codes[level].data() + begin, values.data(), n, codebooks[level]);
        errors[level + 1] += squares();
      }
      if (!on_progress) continue;
      const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
      const double done = static_cast<double>(begin + n - own.begin);
      on_progress({begin + n - own.begin, own.end - own.begin,
                   done * communicator.size() / seconds.count()});
    }
    sum.add(std::move(errors));
  }
  result.errors = sum.finish();
  for (double& error : result.errors) {
    error /= static_cast<double>(rows.num_items);
    MIRABELLE_CHECK(std::isfinite(error), "the RQ-VAE has latents that are not finite numbers; ",
                    kLowerRateMayHelp);
  }
  for (std::vector<int32_t>& codes : result.codes) {
    communicator.all_reduce(view_of(codes), ReduceOp::kSum, Stream());  // 0 on the other ranks
  }
  result.codebooks = std::move(codebooks);
  return result;
}

/// What the levels have learned, and what they quantize: features, or an RQ-VAE's latents of them.
struct Fit {
  ItemRows rows;
  std::shared_ptr<const RqVae> rq_vae;  // on the host
  ResidualKMeans levels;
  nlohmann::json report;  // of the RQ-VAE's training
};

Fit fit_levels(const ItemRows& features, const std::vector<FeatureSource>& sources,
               const CoOccurrences& pairs, const TokenizerRecipe& recipe, Device device,
               const Communicator& communicator, const TokenizerProgress& on_progress) {
  TokenizerConfig config = recipe.tokenizer;
  config.levels = config.level_sizes();
  if (config.kind == "residual_kmeans") {
    return {features,
            nullptr,
            residual_kmeans(features, config, device, communicator, on_progress.residual_kmeans),
            {}};
  }
  RqVaeProgress last{};
  const auto show = [&](const RqVaeProgress& now) {
    last = now;
    if (on_progress.rq_vae) on_progress.rq_vae(now);
  };
  const auto model =
      std::make_shared<RqVae>(fit_rq_vae(features, sources, &pairs, config.levels, recipe.rq_vae,
                                         config.seed, device, communicator, show));
  Fit fit{buffered_rows(latent_rows(model, features, kEncodedItems), config.batch_items),
          on_host(*model),
          {},
          {{"steps", last.steps},
           {"reconstruction", last.reconstruction},
           {"quantization", last.quantization},
           {"contrastive", last.contrastive}}};
  fit.levels = quantize(fit.rows, codebooks_of(*model), config.batch_items, communicator,
                        on_progress.encoding);
  return fit;
}

}  // namespace

TokenizerFile build_tokenizer(const Corpus& corpus, const TokenizerRecipe& recipe, Device device,
                              const Communicator& communicator,
                              const TokenizerProgress& on_progress) {
  MIRABELLE_CHECK_DATA(corpus.num_items() > 0, "corpus ", corpus.folder().string(),
                       " has no items to make semantic IDs for");
  const TokenizerConfig& config = recipe.tokenizer;
  if (config.kind == "rq_vae") recipe.rq_vae.check_ranks(communicator.size());
  TokenizerFile tokenizer;
  tokenizer.kind = config.kind;
  tokenizer.dataset = corpus.dataset();
  tokenizer.split_hash = corpus.split_hash();
  tokenizer.config = recipe.text;
  tokenizer.item_ids = item_ids_of(corpus);
  if (config.kind == "item_id") {
    tokenizer.ids = one_code_per_item(corpus.num_items());
    tokenizer.report = tokenizer_report(tokenizer.ids, 1, {}).dump();
    return tokenizer;
  }

  const std::vector<FeatureSource> sources = configured_sources(corpus, config);
  const CoOccurrences pairs = count_co_occurrences(corpus, recipe.co_occurrence, communicator);
  const bool wants_pairs = config.co_occurrence_dim > 0 ||
                           (config.kind == "rq_vae" && recipe.rq_vae.contrastive_weight > 0);
  if (wants_pairs && pairs.partners.empty() && communicator.rank() == 0) {
    spdlog::warn(
        "no two items meet in the training events (co_occurrence.window {}, min_count {}):"
        " co-occurrence does nothing for this tokenizer",
        recipe.co_occurrence.window, recipe.co_occurrence.min_count);
  }
  std::shared_ptr<const std::vector<float>> embedding;
  if (config.co_occurrence_dim > 0) {
    embedding = std::make_shared<const std::vector<float>>(
        co_occurrence_embedding(pairs, config.co_occurrence_dim, config.seed, communicator));
  }
  const ItemRows fused = fused_rows(corpus, sources, embedding);
  tokenizer.quantizer.normalization =
      fit_normalization(sources, buffered_rows(fused, config.batch_items),
                        config.standardize == "per_source", config.batch_items, communicator);
  const ItemRows features = buffered_rows(normalized_rows(fused, tokenizer.quantizer.normalization),
                                          config.batch_items, kKeptFeatureBytes);
  Fit fit = fit_levels(features, sources, pairs, recipe, device, communicator, on_progress);

  const auto num_levels = static_cast<int64_t>(fit.levels.codes.size());
  const std::vector<int32_t> nearest = rows_of(fit.levels.codes);
  std::vector<int32_t> codes = nearest;
  const ItemRows residuals = residuals_before_last(fit.rows, fit.levels.codebooks, nearest);
  tokenizer.collisions = config.collisions;
  tokenizer.ids =
      ids_by_rule(config, corpus, codes,
                  {fit.levels.codebooks.back(), residuals, config.batch_items}, communicator);
  nlohmann::json report = tokenizer_report(tokenizer.ids, num_levels, fit.levels.errors);
  report["collision_rule"] = config.collisions;
  report["unique_nearest"] = unique_share({nearest, num_levels});
  report["moved_items"] = num_changed(nearest, codes);
  if (fit.rq_vae) report["rq_vae"] = fit.report;
  add_prefix_recall(report, tokenizer.ids, num_levels, pairs);
  tokenizer.report = report.dump();
  tokenizer.quantizer.rq_vae = std::move(fit.rq_vae);
  tokenizer.quantizer.codebooks = std::move(fit.levels.codebooks);
  return tokenizer;
}

}  // namespace mirabelle
