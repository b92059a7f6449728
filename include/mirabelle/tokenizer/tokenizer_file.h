#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "mirabelle/data/corpus.h"
#include "mirabelle/tokenizer/residual_quantizer.h"
#include "mirabelle/tokenizer/semantic_id.h"

namespace mirabelle {

// The tokenizer's file, one HDF5 file (`tokenizer.h5`), schema version 2. A text is an array of
// bytes; many texts are two arrays, NAME_bytes and NAME_offsets [n + 1].
//
//   magic               text    "mirabelle tokenizer"
//   schema_version      int64   [1]
//   kind                text    "residual_kmeans", "rq_vae", "item_id", or "text": no items, only
//                               the vocabulary of an imported language model
//   collisions          text    the rule for items with equal codes (tokenizer/collisions.h)
//   dataset             text    the corpus that it was built from: name
//   split_hash          text      and hash of its split
//   config              text    the resolved configuration that built it, YAML
//   report              text    what build or assign measured, JSON (tokenizer/tokenizer_report.h)
//
//   table/codes         int32   [num_items, num_levels]  row i: item i of the corpus
//   table/priority      int32   [num_items]  rank among the items that share the ID, 0 first
//   table/level_sizes   int64   [num_levels]
//   table/item_ids      texts   [num_items]  the data set's own IDs
//   vocabulary/names    texts   [num_ranges] text, if there is any, special tokens, one range per
//                               level, padding
//   vocabulary/begin    int64   [num_ranges]
//   vocabulary/size     int64   [num_ranges]
//
// and, where codes come from features (not for item_id and text):
//   features/names      texts   [num_sources]
//   features/dims       int64   [num_sources]
//   features/weights    float64 [num_sources]
//   features/means      float64 [feature_dim]  of all sources, one after the other
//   features/deviations float64 [feature_dim]  0: the feature does not vary
//   codebooks/level_K   float32 [<= level_sizes[K], feature_dim]  K = 0, 1, ...
//
// and for rq_vae, whose codebooks have rows [codebook_dim] instead:
//   rq_vae/hidden_sizes int64   [n]
//   rq_vae/sizes        int64   [3]  source_size, codebook_dim, contrastive_size (0: no head)
//   rq_vae/NAME         float32 the matrices and biases by their names in RqVaeLayout
//
// A disambiguation code is a last level without a codebook. Files of version 1, which are read too,
// have neither `collisions` (it is "disambiguation_code") nor table/priority (all are 0).

/// Everything in the file. The texts `kind`, `collisions` and `report` are as in the format above.
struct TokenizerFile {
  std::string kind;
  std::string collisions = "disambiguation_code";
  std::string dataset, split_hash, config, report;
  SemanticIds ids;
  std::vector<std::string> item_ids;  ///< [num_items] the data set's own
  ResidualQuantizer quantizer;        ///< without sources and codebooks for item_id and text
};

/// Levels without the disambiguation code.
int64_t num_code_levels(const TokenizerFile& tokenizer);

/// Atomically replaces the file.
void write_tokenizer_file(const std::filesystem::path& path, const TokenizerFile& tokenizer);

/// Checks magic, schema version, all shapes and ranges. Errors are kData Errors with the path.
TokenizerFile read_tokenizer_file(const std::filesystem::path& path);

/// Only the item <-> semantic-ID table.
SemanticIds read_semantic_ids(const std::filesystem::path& path);

/// Only the data set's own IDs of the items.
std::vector<std::string> read_item_ids(const std::filesystem::path& path);

/// Throws a kData Error unless these are the corpus' items, in its order; `owner` has the IDs.
void check_items(const std::vector<std::string>& item_ids, const Corpus& corpus,
                 const std::string& owner);

}  // namespace mirabelle
