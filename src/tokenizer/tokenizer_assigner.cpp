#include "mirabelle/tokenizer/tokenizer_assigner.h"

#include <algorithm>
#include <numeric>
#include <unordered_map>

#include "corpus_items.h"
#include "mirabelle/core/error.h"
#include "mirabelle/core/json.h"
#include "mirabelle/data/training_histories.h"
#include "mirabelle/tokenizer/collisions.h"
#include "mirabelle/tokenizer/tokenizer_report.h"

namespace mirabelle {
namespace {

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

struct NewCodes {
  std::vector<int32_t> codes;                // [num_items, quantizer.num_levels()], 0 for old items
  double error_before = 0, error_after = 0;  // sums of squares over the new items
};

/// Rank 0 computes: new items are few beside the old ones.
NewCodes encode_new_items(const ResidualQuantizer& quantizer, const Corpus& corpus,
                          const std::vector<int64_t>& rows, int64_t batch_items,
                          const Communicator& communicator) {
  const int64_t num_levels = quantizer.num_levels();
  NewCodes result;
  result.codes.resize(rows.size() * num_levels);
  std::vector<int64_t> items;  // the new ones
  for (size_t item = 0; item < rows.size(); ++item) {
    if (rows[item] < 0) items.push_back(static_cast<int64_t>(item));
  }
  const auto num_new = static_cast<int64_t>(items.size());
  double errors[2] = {};
  if (communicator.rank() == 0 && num_new > 0) {
    const ItemRows features = quantized_rows(quantizer, corpus, batch_items, &items);
    std::vector<float> values;
    std::vector<int32_t> codes;
    const auto squares = [&] {
      return std::inner_product(values.begin(), values.end(), values.begin(), 0.0);
    };
    for (int64_t begin = 0; begin < num_new; begin += batch_items) {
      const int64_t n = std::min(batch_items, num_new - begin);
      values.resize(n * features.dim);
      codes.resize(n * num_levels);
      features.read(begin, begin + n, values.data());
      errors[0] += squares();
      quantizer.encode(codes.data(), values.data(), n);
      errors[1] += squares();
      for (int64_t i = 0; i < n; ++i) {
        std::copy_n(codes.begin() + i * num_levels, num_levels,
                    result.codes.begin() + items[begin + i] * num_levels);
      }
    }
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
  if (old.collisions == "item_code") {
    for (int32_t& number : numbers) {
      if (number < 0) number = static_cast<int32_t>(level_sizes.back()++);
    }
    codes = append_level({codes, num_codes}, numbers);
    return SemanticIds(std::move(level_sizes), std::move(codes));
  }
  if (old.collisions != "disambiguation_code") {
    const ItemRows items = quantized_rows(old.quantizer, corpus, batch_items);
    const ItemRows residuals = residuals_before_last(items, old.quantizer.codebooks, codes);
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
  const std::string where = "the report in the tokenizer's file";
  const auto before =
      json_field<std::vector<nlohmann::json>>(parse_json(old.report, where), "levels", where);
  MIRABELLE_CHECK_DATA(static_cast<int64_t>(before.size()) == old.quantizer.num_levels(), where,
                       " has ", before.size(), " levels, the tokenizer ",
                       old.quantizer.num_levels());
  nlohmann::json report = tokenizer_report(ids, old.quantizer.num_levels(), {});
  for (int64_t level = 0; level < old.quantizer.num_levels(); ++level) {
    report["levels"][level]["relative_error"] =
        json_field<double>(before[level], "relative_error", where);
  }
  report["collision_rule"] = old.collisions;
  report["assigned"] = {{"new_items", num_new}};
  if (new_codes.error_before > 0) {
    report["assigned"]["relative_error"] = new_codes.error_after / new_codes.error_before;
  }
  return report;
}

}  // namespace

AssignedTokenizer assign_new_items(const TokenizerFile& old, const Corpus& corpus,
                                   int64_t batch_items, const Communicator& communicator) {
  MIRABELLE_CHECK_DATA(old.kind != "text",
                       "a tokenizer without items has no codes to assign; build one");
  AssignedTokenizer result{old, 0};
  TokenizerFile& tokenizer = result.tokenizer;
  tokenizer.dataset = corpus.dataset();
  tokenizer.split_hash = corpus.split_hash();
  tokenizer.item_ids = item_ids_of(corpus);
  const std::vector<int64_t> rows = old_rows(old, tokenizer.item_ids, corpus);
  result.num_new_items = std::count(rows.begin(), rows.end(), -1);

  NewCodes new_codes;
  if (old.kind == "item_id") {
    tokenizer.ids = extended_item_codes(old, rows).after_text(old.ids.num_text_tokens());
    nlohmann::json report = tokenizer_report(tokenizer.ids, 1, {});
    report["assigned"] = {{"new_items", result.num_new_items}};
    tokenizer.report = report.dump();
    return result;
  }
  check_sources(old.quantizer.normalization.sources, corpus);
  new_codes = encode_new_items(old.quantizer, corpus, rows, batch_items, communicator);
  tokenizer.ids = extended_ids(old, corpus, tokenizer.item_ids, rows, std::move(new_codes.codes),
                               batch_items, communicator)
                      .after_text(old.ids.num_text_tokens());
  tokenizer.report = assign_report(old, tokenizer.ids, result.num_new_items, new_codes).dump();
  return result;
}

}  // namespace mirabelle
