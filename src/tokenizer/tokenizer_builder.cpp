#include "mirabelle/tokenizer/tokenizer_builder.h"

#include <algorithm>
#include <memory>
#include <numeric>
#include <sstream>
#include <unordered_map>

#include "mirabelle/core/error.h"
#include "mirabelle/data/training_histories.h"
#include "mirabelle/tokenizer/collisions.h"
#include "mirabelle/tokenizer/tokenizer_report.h"

namespace mirabelle {
namespace {

std::vector<FeatureSource> configured_sources(const Corpus& corpus, const TokenizerConfig& config) {
  const std::vector<std::string> available = corpus.feature_names();
  std::ostringstream listed;
  for (const std::string& name : available) listed << ' ' << name;
  const std::vector<std::string>& names = config.features.empty() ? available : config.features;
  MIRABELLE_CHECK_USAGE(!names.empty(), "corpus ", corpus.folder().string(),
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
  return sources;
}

/// The features of all sources, one after the other in a row.
ItemRows fused_rows(const Corpus& corpus, const std::vector<FeatureSource>& sources) {
  int64_t dim = 0;
  for (const FeatureSource& source : sources) dim += source.dim;
  return {corpus.num_items(), dim, [&corpus, sources, dim](int64_t begin, int64_t end, float* out) {
            std::vector<float> values;
            for (const FeatureSource& source : sources) {
              values.resize((end - begin) * source.dim);
              corpus.read_features(source.name, begin, end, values.data());
              for (int64_t i = 0; i < end - begin; ++i) {
                std::copy_n(values.data() + i * source.dim, source.dim, out + i * dim);
              }
              out += source.dim;
            }
          }};
}

/// Serves pieces out of a window of up to `window_items` rows, so that the file is not opened for
/// every piece, and only once if all items fit into the window.
ItemRows windowed_rows(ItemRows rows, int64_t window_items) {
  struct Window {
    int64_t begin = 0, end = 0;
    std::vector<float> values;
  };
  const auto window = std::make_shared<Window>();
  const int64_t num_items = rows.num_items, dim = rows.dim;
  const auto read = [=, rows = std::move(rows)](int64_t begin, int64_t end, float* out) {
    // Single items are looked up here and there: no reason to move the window, if it moves at all.
    const bool in_window = window->begin <= begin && end <= window->end;
    if (!in_window && num_items > window_items &&
        (end - begin == 1 || end - begin > window_items)) {
      return rows.read(begin, end, out);
    }
    if (!in_window) {
      window->begin = num_items <= window_items ? 0 : begin;
      window->end = std::min(num_items, window->begin + window_items);
      window->values.resize((window->end - window->begin) * dim);
      rows.read(window->begin, window->end, window->values.data());
    }
    const float* first = window->values.data() + (begin - window->begin) * dim;
    std::copy_n(first, (end - begin) * dim, out);
  };
  return {num_items, dim, read};
}

ItemRows normalized_rows(ItemRows rows, const FeatureNormalization& normalization) {
  return {rows.num_items, rows.dim, [rows, &normalization](int64_t begin, int64_t end, float* out) {
            rows.read(begin, end, out);
            normalization.apply(out, end - begin);
          }};
}

std::vector<std::string> item_ids_of(const Corpus& corpus) {
  std::vector<std::string> ids;
  for (int64_t item = 0; item < corpus.num_items(); ++item) {
    const nlohmann::json id = corpus.item_id(item);
    ids.push_back(id.is_string() ? id.get<std::string>() : id.dump());
  }
  return ids;
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
  }
  bool all_differ = true;
  for_each_group({codes, num_levels}, num_levels,
                 [&](std::span<const int32_t> items) { all_differ &= items.size() == 1; });
  if (all_differ && config.collisions != "disambiguation_code") {
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

// --- assigning --------------------------------------------------------------------------------

/// For each item of the corpus its row in the old table, or -1.
std::vector<int64_t> old_rows(const TokenizerFile& old, const std::vector<std::string>& item_ids,
                              const Corpus& corpus) {
  std::unordered_map<std::string, int64_t> row_of;
  for (size_t row = 0; row < old.item_ids.size(); ++row) {
    row_of.emplace(old.item_ids[row], static_cast<int64_t>(row));
  }
  std::vector<int64_t> rows;
  for (const std::string& id : item_ids) {
    const auto found = row_of.find(id);
    rows.push_back(found == row_of.end() ? -1 : found->second);
    if (found != row_of.end()) row_of.erase(found);
  }
  // Dropping an item would free its semantic ID for another one, which a trained model would take
  // for the first.
  MIRABELLE_CHECK_DATA(row_of.empty(), "corpus ", corpus.folder().string(), " lacks ",
                       row_of.size(), " items of the tokenizer, among them ", row_of.begin()->first,
                       ": --assign only adds items, build a new tokenizer instead");
  return rows;
}

void check_sources(const TokenizerFile& old, const Corpus& corpus) {
  const std::vector<std::string> available = corpus.feature_names();
  for (const FeatureSource& source : old.quantizer.normalization.sources) {
    MIRABELLE_CHECK_DATA(std::ranges::find(available, source.name) != available.end(), "corpus ",
                         corpus.folder().string(), " lacks the feature source ", source.name,
                         " that the tokenizer was built from");
    MIRABELLE_CHECK_DATA(corpus.feature_dim(source.name) == source.dim, "feature source ",
                         source.name, " of corpus ", corpus.folder().string(), " has dim ",
                         corpus.feature_dim(source.name), ", the tokenizer was built from dim ",
                         source.dim);
  }
}

/// Calls body(begin, end) for every run of at most `batch_items` neighbouring new items.
template <typename Body>
void for_each_new_batch(const std::vector<int64_t>& rows, int64_t batch_items, const Body& body) {
  const int64_t num_items = static_cast<int64_t>(rows.size());
  for (int64_t begin = 0, end = 0; begin < num_items; begin = end) {
    end = begin + 1;
    if (rows[begin] >= 0) continue;
    while (end < num_items && rows[end] < 0 && end - begin < batch_items) ++end;
    body(begin, end);
  }
}

struct NewCodes {
  std::vector<int32_t> codes;                // [num_items, quantizer.num_levels()], 0 for old items
  double error_before = 0, error_after = 0;  // sums of squares over the new items
};

/// Rank 0 computes: new items are few beside the old ones.
NewCodes encode_new_items(const ResidualQuantizer& quantizer, const Corpus& corpus,
                          const std::vector<int64_t>& rows, int64_t batch_items,
                          const Communicator& communicator) {
  NewCodes result;
  result.codes.resize(rows.size() * quantizer.num_levels());
  const ItemRows fused = fused_rows(corpus, quantizer.normalization.sources);
  const ItemRows normalized = normalized_rows(fused, quantizer.normalization);
  double errors[2] = {};
  if (communicator.rank() == 0) {
    std::vector<float> features;
    const auto squares = [&] {
      return std::inner_product(features.begin(), features.end(), features.begin(), 0.0);
    };
    for_each_new_batch(rows, batch_items, [&](int64_t begin, int64_t end) {
      features.resize((end - begin) * fused.dim);
      normalized.read(begin, end, features.data());
      errors[0] += squares();
      quantizer.encode(result.codes.data() + begin * quantizer.num_levels(), features.data(),
                       end - begin);
      errors[1] += squares();
    });
  }
  const Stream stream;
  communicator.broadcast(view_of(result.codes.data(), {static_cast<int64_t>(result.codes.size())}),
                         0, stream);
  communicator.broadcast(view_of(errors, {2}), 0, stream);
  result.error_before = errors[0];
  result.error_after = errors[1];
  return result;
}

/// Old items' semantic IDs, and for new ones those that follow from their nearest codes by the
/// tokenizer's rule.
SemanticIds extended_ids(const TokenizerFile& old, const Corpus& corpus,
                         const std::vector<std::string>& item_ids, const std::vector<int64_t>& rows,
                         std::vector<int32_t> codes, int64_t batch_items,
                         const Communicator& communicator) {
  const auto num_items = static_cast<int64_t>(rows.size());
  const int64_t num_codes = old.quantizer.num_levels(), num_levels = old.ids.num_levels();
  const bool has_numbers = num_levels > num_codes;
  std::vector<bool> is_old(num_items);
  std::vector<int32_t> numbers(num_items, -1);
  for (int64_t item = 0; item < num_items; ++item) {
    if (rows[item] < 0) continue;
    const auto id = old.ids.codes(rows[item]);
    std::copy_n(id.begin(), num_codes, codes.begin() + item * num_codes);
    is_old[item] = true;
    numbers[item] = has_numbers ? id.back() : 0;
  }
  std::vector<int64_t> level_sizes;
  for (int64_t level = 0; level < num_levels; ++level) {
    level_sizes.push_back(old.ids.level_size(level));
  }
  if (old.collisions == "shared") {
    auto priorities = priorities_of({codes, num_codes}, count_training_events(corpus));
    return SemanticIds(std::move(level_sizes), std::move(codes), std::move(priorities));
  }
  if (old.collisions != "disambiguation_code") {
    const ItemRows fused = fused_rows(corpus, old.quantizer.normalization.sources);
    const ItemRows rows_of_items = normalized_rows(fused, old.quantizer.normalization);
    const ItemRows residuals = residuals_before_last(rows_of_items, old.quantizer.codebooks, codes);
    move_to_nearest_free(codes, num_codes, is_old,
                         {old.quantizer.codebooks.back(), residuals, batch_items}, communicator);
  }
  number_items(numbers, {codes, num_codes});
  for (int64_t item = 0; item < num_items; ++item) {
    MIRABELLE_CHECK_DATA(
        !has_numbers || numbers[item] < level_sizes.back(), "item ", item_ids[item],
        " has the codes of ", level_sizes.back(),
        " other items, which take all disambiguation codes: build a new tokenizer");
    MIRABELLE_CHECK_DATA(has_numbers || numbers[item] == 0, "item ", item_ids[item],
                         " has the first codes of ", old.quantizer.codebooks.back().size,
                         " other items, which take all codes of the last level: build a new "
                         "tokenizer");
  }
  if (has_numbers) codes = append_level({codes, num_codes}, numbers);
  return SemanticIds(std::move(level_sizes), std::move(codes));
}

/// Of kind item_id: new items get the codes after the last one.
SemanticIds extended_item_codes(const TokenizerFile& old, const std::vector<int64_t>& rows) {
  std::vector<int32_t> codes;
  int64_t size = old.ids.level_size(0);
  for (const int64_t row : rows) {
    codes.push_back(row >= 0 ? old.ids.codes(row)[0] : static_cast<int32_t>(size++));
  }
  return SemanticIds({size}, std::move(codes));
}

/// The quality of the grown table. Errors stay those of the build, beside that of the new items: if
/// it is much larger, the new items are unlike the old ones, and it is time to build anew.
nlohmann::json assign_report(const TokenizerFile& old, const SemanticIds& ids, int64_t num_new,
                             const NewCodes& new_codes) {
  const nlohmann::json before = nlohmann::json::parse(old.report);
  nlohmann::json report = tokenizer_report(ids, old.quantizer.num_levels(), {});
  for (int64_t level = 0; level < old.quantizer.num_levels(); ++level) {
    report["levels"][level]["relative_error"] = before.at("levels").at(level).at("relative_error");
  }
  report["collision_rule"] = old.collisions;
  report["assigned"] = {{"new_items", num_new}};
  if (new_codes.error_before > 0) {
    report["assigned"]["relative_error"] = new_codes.error_after / new_codes.error_before;
  }
  return report;
}

}  // namespace

TokenizerFile build_tokenizer(const Corpus& corpus, const TokenizerConfig& config,
                              const CoOccurrenceConfig& co_occurrence,
                              const std::string& config_text, Device device,
                              const Communicator& communicator,
                              const std::function<void(const KMeansProgress&)>& on_progress) {
  MIRABELLE_CHECK_DATA(corpus.num_items() > 0, "corpus ", corpus.folder().string(),
                       " has no items to make semantic IDs for");
  TokenizerFile tokenizer;
  tokenizer.kind = config.kind;
  tokenizer.dataset = corpus.dataset();
  tokenizer.split_hash = corpus.split_hash();
  tokenizer.config = config_text;
  tokenizer.item_ids = item_ids_of(corpus);
  if (config.kind == "item_id") {
    tokenizer.ids = one_code_per_item(corpus.num_items());
    tokenizer.report = tokenizer_report(tokenizer.ids, 1, {}).dump();
    return tokenizer;
  }

  const std::vector<FeatureSource> sources = configured_sources(corpus, config);
  const ItemRows fused = fused_rows(corpus, sources);
  FeatureNormalization normalization =
      fit_normalization(sources, windowed_rows(fused, config.batch_items),
                        config.standardize == "per_source", config.batch_items, communicator);
  const ItemRows features =
      windowed_rows(normalized_rows(fused, normalization), config.batch_items);
  TokenizerConfig resolved = config;
  resolved.levels = config.level_sizes();
  ResidualKMeans fit = residual_kmeans(features, resolved, device, communicator, on_progress);

  const auto num_levels = static_cast<int64_t>(resolved.levels.size());
  const std::vector<int32_t> nearest = rows_of(fit.codes);
  std::vector<int32_t> codes = nearest;
  const ItemRows residuals = residuals_before_last(features, fit.codebooks, nearest);
  tokenizer.collisions = config.collisions;
  tokenizer.ids = ids_by_rule(config, corpus, codes,
                              {fit.codebooks.back(), residuals, config.batch_items}, communicator);
  nlohmann::json report = tokenizer_report(tokenizer.ids, num_levels, fit.errors);
  report["collision_rule"] = config.collisions;
  report["moved_items"] = num_changed(nearest, codes);
  add_prefix_recall(report, tokenizer.ids, num_levels,
                    count_co_occurrences(corpus, co_occurrence, communicator));
  tokenizer.report = report.dump();
  tokenizer.quantizer = {std::move(normalization), std::move(fit.codebooks)};
  return tokenizer;
}

AssignedTokenizer assign_new_items(const TokenizerFile& old, const Corpus& corpus,
                                   int64_t batch_items, const Communicator& communicator) {
  AssignedTokenizer result{old, 0};
  TokenizerFile& tokenizer = result.tokenizer;
  tokenizer.dataset = corpus.dataset();
  tokenizer.split_hash = corpus.split_hash();
  tokenizer.item_ids = item_ids_of(corpus);
  const std::vector<int64_t> rows = old_rows(old, tokenizer.item_ids, corpus);
  result.num_new_items = std::count(rows.begin(), rows.end(), -1);

  NewCodes new_codes;
  if (old.kind == "item_id") {
    tokenizer.ids = extended_item_codes(old, rows);
    nlohmann::json report = tokenizer_report(tokenizer.ids, 1, {});
    report["assigned"] = {{"new_items", result.num_new_items}};
    tokenizer.report = report.dump();
    return result;
  }
  check_sources(old, corpus);
  new_codes = encode_new_items(old.quantizer, corpus, rows, batch_items, communicator);
  tokenizer.ids = extended_ids(old, corpus, tokenizer.item_ids, rows, std::move(new_codes.codes),
                               batch_items, communicator);
  tokenizer.report = assign_report(old, tokenizer.ids, result.num_new_items, new_codes).dump();
  return result;
}

}  // namespace mirabelle
