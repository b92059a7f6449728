#include "mirabelle/tokenizer/tokenizer_builder.h"

#include <algorithm>
#include <map>
#include <memory>
#include <numeric>
#include <sstream>
#include <unordered_map>

#include "mirabelle/core/error.h"
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

int64_t largest_group(const std::vector<int32_t>& codes, int64_t num_levels) {
  int64_t largest = 0;  // the last code numbers the items of a group
  for (size_t i = num_levels - 1; i < codes.size(); i += num_levels) {
    largest = std::max<int64_t>(largest, codes[i] + 1);
  }
  return largest;
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

/// Old items' semantic IDs, and for new ones their codes with the next free disambiguation code.
SemanticIds extended_ids(const TokenizerFile& old, const std::vector<std::string>& item_ids,
                         const std::vector<int64_t>& rows, const std::vector<int32_t>& new_codes) {
  const int64_t num_levels = old.ids.num_levels(), num_code_levels = num_levels - 1;
  std::map<std::vector<int32_t>, int32_t> next_free;
  for (int64_t row = 0; row < old.ids.num_items(); ++row) {
    const auto id = old.ids.codes(row);
    int32_t& next = next_free[{id.begin(), id.end() - 1}];
    next = std::max(next, id.back() + 1);
  }
  std::vector<int32_t> codes;
  codes.reserve(rows.size() * num_levels);
  for (size_t item = 0; item < rows.size(); ++item) {
    if (rows[item] >= 0) {
      const auto id = old.ids.codes(rows[item]);
      codes.insert(codes.end(), id.begin(), id.end());
      continue;
    }
    const int32_t* begin = new_codes.data() + item * num_code_levels;
    const std::vector<int32_t> prefix(begin, begin + num_code_levels);
    const int32_t free_code = next_free[prefix]++;
    MIRABELLE_CHECK_DATA(
        free_code < old.ids.level_size(num_code_levels), "item ", item_ids[item],
        " has the codes of ", old.ids.level_size(num_code_levels),
        " other items, which take all disambiguation codes: build a new tokenizer");
    codes.insert(codes.end(), prefix.begin(), prefix.end());
    codes.push_back(free_code);
  }
  std::vector<int64_t> level_sizes;
  for (int64_t level = 0; level < num_levels; ++level) {
    level_sizes.push_back(old.ids.level_size(level));
  }
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
  report["assigned"] = {{"new_items", num_new}};
  if (new_codes.error_before > 0) {
    report["assigned"]["relative_error"] = new_codes.error_after / new_codes.error_before;
  }
  return report;
}

}  // namespace

std::vector<int32_t> append_disambiguation_codes(const std::vector<int32_t>& codes,
                                                 int64_t num_levels) {
  const int64_t num_items = static_cast<int64_t>(codes.size()) / num_levels;
  std::map<std::vector<int32_t>, int32_t> group_size;
  std::vector<int32_t> result;
  result.reserve(codes.size() + num_items);
  for (int64_t item = 0; item < num_items; ++item) {
    const auto begin = codes.begin() + item * num_levels;
    result.insert(result.end(), begin, begin + num_levels);
    result.push_back(group_size[{begin, begin + num_levels}]++);
  }
  return result;
}

int64_t disambiguation_level_size(int64_t largest_group) {
  return std::max<int64_t>(8, (2 * largest_group + 7) / 8 * 8);
}

TokenizerFile build_tokenizer(const Corpus& corpus, const TokenizerConfig& config,
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
  ResidualKMeans fit =
      residual_kmeans(windowed_rows(normalized_rows(fused, normalization), config.batch_items),
                      config, device, communicator, on_progress);

  const int64_t num_levels = static_cast<int64_t>(config.levels.size());
  std::vector<int32_t> codes = append_disambiguation_codes(rows_of(fit.codes), num_levels);
  std::vector<int64_t> level_sizes = config.levels;
  level_sizes.push_back(disambiguation_level_size(largest_group(codes, num_levels + 1)));
  tokenizer.ids = SemanticIds(std::move(level_sizes), std::move(codes));
  tokenizer.quantizer = {std::move(normalization), std::move(fit.codebooks)};
  tokenizer.report = tokenizer_report(tokenizer.ids, num_levels, fit.errors).dump();
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
  tokenizer.ids = extended_ids(old, tokenizer.item_ids, rows, new_codes.codes);
  tokenizer.report = assign_report(old, tokenizer.ids, result.num_new_items, new_codes).dump();
  return result;
}

}  // namespace mirabelle
