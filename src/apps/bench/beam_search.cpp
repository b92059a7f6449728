#include "bench/beam_search.h"

#include <iostream>
#include <set>

#include "mirabelle/core/copy.h"
#include "mirabelle/core/random.h"
#include "mirabelle/core/table.h"
#include "mirabelle/evaluation/beam_search.h"
#include "mirabelle/kernels/convert.h"

namespace mirabelle {
namespace {

using nlohmann::json;

/// A catalogue of items with random, different codes.
SemanticIds draw_catalogue(const BeamSearchBenchOptions& options) {
  Random random(random_key(1, "benchmark catalogue"));
  std::set<std::vector<int32_t>> ids;
  while (static_cast<int64_t>(ids.size()) < options.items) {
    std::vector<int32_t> codes(options.levels);
    for (int32_t& code : codes) code = static_cast<int32_t>(random.below(options.level_size));
    ids.insert(codes);
  }
  std::vector<int32_t> all;
  for (const auto& codes : ids) all.insert(all.end(), codes.begin(), codes.end());
  return SemanticIds(std::vector<int64_t>(options.levels, options.level_size), all);
}

std::vector<std::vector<int32_t>> draw_histories(const BeamSearchBenchOptions& options) {
  Random random(random_key(2, "benchmark histories"));
  std::vector<std::vector<int32_t>> histories(options.users);
  for (auto& history : histories) {
    history.resize(options.history_items);
    for (int32_t& item : history) item = static_cast<int32_t>(random.below(options.items));
  }
  return histories;
}

TransformerConfig model_config(const BeamSearchBenchOptions& options) {
  TransformerConfig config;
  config.hidden_size = options.hidden;
  config.num_layers = options.layers;
  config.num_heads = options.heads;
  config.num_kv_heads = options.kv_heads;
  config.ffn_hidden_size = options.ffn;
  return config;
}

/// Floating-point operations of a batch: products of every token with every matrix, causal
/// attention of the histories counted as half, and each beam's attention to its history.
double useful_flops(const BeamSearchBenchOptions& options, const Transformer& model) {
  const auto& layers = model.layout().layers();
  const double layer_weights = static_cast<double>(
      options.layers > 1 ? layers[1].qkv - layers[0].qkv : model.layout().norms() - layers[0].qkv);
  const double history = static_cast<double>(1 + options.history_items * options.levels);
  const double users = static_cast<double>(options.users);
  const double rows = users * static_cast<double>(options.beams * (options.levels - 1));
  const double width = static_cast<double>(options.hidden * options.layers);
  const double products =
      2 * static_cast<double>(options.layers) * layer_weights * (users * history + rows);
  const double head = 2 * static_cast<double>(model.vocab_size() * options.hidden) * (users + rows);
  return products + head + 2 * width * users * history * history + 4 * width * rows * history;
}

}  // namespace

void BeamSearchBenchOptions::check() const {
  for (int64_t extent : {users, beams, history_items, levels, level_size, items, layers}) {
    MIRABELLE_CHECK_USAGE(extent > 0, "sizes must be positive, one is ", extent);
  }
  double ids = 1;
  for (int64_t level = 0; level < levels; ++level) ids *= static_cast<double>(level_size);
  MIRABELLE_CHECK_USAGE(2 * static_cast<double>(items) <= ids, "--items ", items,
                        " is more than half of the IDs that --levels ", levels,
                        " and --level-size ", level_size, " give");
}

json bench_beam_search(const BeamSearchBenchOptions& options, Device device) {
  const SemanticIds ids = draw_catalogue(options);
  const std::vector<std::vector<int32_t>> histories = draw_histories(options);
  std::vector<RecommendationQuery> queries;
  for (const auto& history : histories) queries.push_back({history, {}});

  const Stream stream(device);
  const TransformerConfig config = model_config(options);
  const int64_t max_tokens = max_search_tokens(ids, options.history_items);
  Transformer model(config, ids.vocab_size(), ids.padded_vocab_size(), options.dtype,
                    {/*max_tokens=*/1, max_tokens, /*training=*/false}, device);
  const Buffer values({model.layout().num_elements()}, wide(options.dtype));
  initialize_weights(values.view(), model.layout(), config, model.vocab_size(), 0);
  const Buffer on_device({model.layout().num_elements()}, wide(options.dtype), device);
  copy(on_device.view(), values.view(), stream);
  round_to(model.weights(), on_device.view(), stream);
  BeamSearch search(model, ids, {options.beams, options.users, options.history_items});

  MachineLimits limits = measure_limits(device, options.dtype);
  const double seconds = median_seconds([&] { search.search(queries, stream); }, stream);
  limits = better(limits, measure_limits(device, options.dtype));
  const double flops = useful_flops(options, model);
  const double rate = flops / seconds;
  const MachineLimits datasheet = datasheet_limits(device, options.dtype);
  Table table(
      {"users", "beams", "history tokens", "ms/batch", "users/s", "of products", "of datasheet"});
  table.add_row({std::to_string(options.users), std::to_string(options.beams),
                 std::to_string(options.history_items * options.levels),
                 format_number(seconds * 1e3, 2),
                 format_number(static_cast<double>(options.users) / seconds, 1),
                 format_share(rate, limits.flops_per_second),
                 format_share(rate, datasheet.flops_per_second)});
  table.print(std::cout);
  std::cout << '\n' << describe(limits, datasheet) << '\n';
  return {{"users", options.users},
          {"beams", options.beams},
          {"history_items", options.history_items},
          {"levels", options.levels},
          {"items", options.items},
          {"hidden_size", options.hidden},
          {"num_layers", options.layers},
          {"parameters", model.layout().num_elements()},
          {"seconds_per_batch", seconds},
          {"flops_per_batch", flops},
          {"fraction_of_products", rate / limits.flops_per_second},
          {"limits", to_json(limits)},
          {"datasheet", to_json(datasheet)}};
}

}  // namespace mirabelle
