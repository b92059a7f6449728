#pragma once

#include <memory>
#include <string>
#include <vector>

#include "mirabelle/data/corpus.h"
#include "mirabelle/tokenizer/item_rows.h"
#include "mirabelle/tokenizer/residual_quantizer.h"

namespace mirabelle {

/// A source that is no feature matrix of the corpus, but made of its histories.
inline constexpr const char* kCoOccurrenceSource = "co_occurrence";

/// Features of all items that take no more than this are kept by each rank (buffered_rows()).
inline constexpr int64_t kKeptFeatureBytes = int64_t{1} << 30;

/// Throws a kData Error unless the corpus has these sources, in these widths; that of
/// co-occurrence follows from its histories.
void check_sources(const std::vector<FeatureSource>& sources, const Corpus& corpus);

/// The features of all sources, one after the other in a row. Those of kCoOccurrenceSource are the
/// rows [num_items, dim] of `co_occurrences`, zeros if that is null: as of items that nobody has
/// met. `corpus` must outlive the result.
ItemRows fused_rows(const Corpus& corpus, const std::vector<FeatureSource>& sources,
                    std::shared_ptr<const std::vector<float>> co_occurrences = nullptr);

ItemRows normalized_rows(ItemRows rows, const FeatureNormalization& normalization);

/// What the quantizer's codebooks quantize of the items of a corpus, none of whom has met another:
/// of all, or of `items` (ascending, row i: items[i]).
ItemRows quantized_rows(const ResidualQuantizer& quantizer, const Corpus& corpus,
                        int64_t batch_items, const std::vector<int64_t>* items = nullptr);

/// The data set's own IDs.
std::vector<std::string> item_ids_of(const Corpus& corpus);

}  // namespace mirabelle
