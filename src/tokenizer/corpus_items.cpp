#include "corpus_items.h"

#include <algorithm>

#include "mirabelle/core/error.h"
#include "mirabelle/tokenizer/rq_vae.h"

namespace mirabelle {
namespace {

/// Row i: that of items[i], which ascend.
ItemRows selected_rows(ItemRows rows, std::vector<int64_t> items) {
  const auto num_items = static_cast<int64_t>(items.size()), dim = rows.dim;
  return {num_items, dim, [=](int64_t begin, int64_t end, float* out) {
            for (int64_t first = begin, last = begin; first < end; first = last) {
              while (last < end && items[last] - items[first] == last - first) ++last;
              rows.read(items[first], items[first] + last - first, out + (first - begin) * dim);
            }
          }};
}

}  // namespace

void check_sources(const std::vector<FeatureSource>& sources, const Corpus& corpus) {
  const std::vector<std::string> available = corpus.feature_names();
  for (const FeatureSource& source : sources) {
    if (source.name == kCoOccurrenceSource) continue;
    MIRABELLE_CHECK_DATA(std::ranges::find(available, source.name) != available.end(), "corpus ",
                         corpus.folder().string(), " lacks the feature source ", source.name,
                         " that the tokenizer was built from");
    MIRABELLE_CHECK_DATA(corpus.feature_dim(source.name) == source.dim, "feature source ",
                         source.name, " of corpus ", corpus.folder().string(), " has dim ",
                         corpus.feature_dim(source.name), ", the tokenizer was built from dim ",
                         source.dim);
  }
}

ItemRows fused_rows(const Corpus& corpus, const std::vector<FeatureSource>& sources,
                    std::shared_ptr<const std::vector<float>> co_occurrences) {
  int64_t dim = 0;
  for (const FeatureSource& source : sources) {
    dim += source.dim;
    MIRABELLE_CHECK(
        source.name != kCoOccurrenceSource || !co_occurrences ||
            static_cast<int64_t>(co_occurrences->size()) == corpus.num_items() * source.dim,
        "the co-occurrence features have not ", source.dim, " columns");
  }
  const auto read = [=, &corpus](int64_t begin, int64_t end, float* out) {
    std::vector<float> values;
    for (const FeatureSource& source : sources) {
      values.assign((end - begin) * source.dim, 0.0F);
      if (source.name != kCoOccurrenceSource) {
        corpus.read_features(source.name, begin, end, values.data());
      } else if (co_occurrences) {
        std::copy_n(co_occurrences->data() + begin * source.dim, values.size(), values.data());
      }
      for (int64_t i = 0; i < end - begin; ++i) {
        std::copy_n(values.data() + i * source.dim, source.dim, out + i * dim);
      }
      out += source.dim;
    }
  };
  return {corpus.num_items(), dim, read};
}

ItemRows normalized_rows(ItemRows rows, const FeatureNormalization& normalization) {
  return {rows.num_items, rows.dim, [=](int64_t begin, int64_t end, float* out) {
            rows.read(begin, end, out);
            normalization.apply(out, end - begin);
          }};
}

ItemRows quantized_rows(const ResidualQuantizer& quantizer, const Corpus& corpus,
                        int64_t batch_items, const std::vector<int64_t>* items) {
  const FeatureNormalization& normalization = quantizer.normalization;
  ItemRows features = normalized_rows(fused_rows(corpus, normalization.sources), normalization);
  if (items) features = selected_rows(std::move(features), *items);
  return quantizer.rq_vae ? latent_rows(quantizer.rq_vae, features, batch_items) : features;
}

std::vector<std::string> item_ids_of(const Corpus& corpus) {
  std::vector<std::string> ids;
  for (int64_t item = 0; item < corpus.num_items(); ++item) {
    ids.push_back(id_text(corpus.item_id(item)));
  }
  return ids;
}

}  // namespace mirabelle
