#include "mirabelle/convert/semantic_id_export.h"

#include <fstream>
#include <nlohmann/json.hpp>

#include "mirabelle/core/error.h"
#include "mirabelle/core/files.h"

namespace mirabelle {
namespace fs = std::filesystem;
namespace {

using nlohmann::ordered_json;

constexpr const char* kBos = "<bos>";

void write_json(const fs::path& path, const ordered_json& value) {
  write_text_file(path, value.dump(2) + "\n");
}

/// Item by item, since millions of them as one JSON value would take gigabytes.
void write_table(const fs::path& path, const TokenizerFile& tokenizer) {
  const SemanticIds& ids = tokenizer.ids;
  ordered_json ranges = ordered_json::array();
  for (const auto& [name, begin, size] : ids.token_ranges()) {
    if (name != "padding") ranges.push_back({{"name", name}, {"begin", begin}, {"size", size}});
  }
  const ordered_json head = {{"schema", "mirabelle-semantic-ids"}, {"version", 1},
                             {"vocab_size", ids.vocab_size()},     {"bos_token", ids.bos_token()},
                             {"num_levels", ids.num_levels()},     {"ranges", ranges}};
  std::string text = head.dump();
  text.pop_back();  // the brace
  std::ofstream file(path, std::ios::binary);
  file << text << ",\n\"items\": {";
  const char* separator = "\n";
  for (const int32_t item : ids.items_by_id()) {
    std::vector<int32_t> tokens;
    for (int64_t level = 0; level < ids.num_levels(); ++level) {
      tokens.push_back(ids.token(item, level));
    }
    file << separator << ordered_json(tokenizer.item_ids[item]).dump() << ": "
         << ordered_json(tokens).dump();
    separator = ",\n";
  }
  file << "\n}}\n";
  file.close();
  MIRABELLE_CHECK(file, path.string(), ": cannot write");
}

void write_word_tokenizer(const fs::path& folder, const SemanticIds& ids) {
  nlohmann::json vocabulary = {{kBos, ids.bos_token()}};
  for (int64_t level = 0; level < ids.num_levels(); ++level) {
    for (int64_t code = 0; code < ids.level_size(level); ++code) {
      const std::string word = "<level_" + std::to_string(level) + "_" + std::to_string(code) + ">";
      vocabulary[word] = ids.level_begin(level) + code;
    }
  }
  const ordered_json bos = {{"id", ids.bos_token()}, {"content", kBos}, {"single_word", false},
                            {"lstrip", false},       {"rstrip", false}, {"normalized", false},
                            {"special", true}};
  write_json(folder / "tokenizer.json",
             {{"version", "1.0"},
              {"truncation", nullptr},
              {"padding", nullptr},
              {"added_tokens", ordered_json::array({bos})},
              {"normalizer", nullptr},
              {"pre_tokenizer", {{"type", "WhitespaceSplit"}}},
              {"post_processor", nullptr},
              {"decoder", nullptr},
              {"model", {{"type", "WordLevel"}, {"vocab", vocabulary}, {"unk_token", kBos}}}});
  write_json(folder / "tokenizer_config.json",
             {{"tokenizer_class", "PreTrainedTokenizerFast"}, {"bos_token", kBos}});
}

}  // namespace

void write_semantic_ids(const fs::path& folder, const TokenizerFile& tokenizer) {
  if (tokenizer.ids.num_levels() == 0) return;
  write_table(folder / "semantic_ids.json", tokenizer);
  write_json(folder / "special_tokens_map.json", {{"bos_token", kBos}});
  if (tokenizer.ids.num_text_tokens() == 0) write_word_tokenizer(folder, tokenizer.ids);
}

}  // namespace mirabelle
