#include "corpus_items.h"

#include <algorithm>

#include "mirabelle/tokenizer/rq_vae.h"

namespace mirabelle {

ItemRows fused_rows(const Corpus& corpus, const std::vector<FeatureSource>& sources,
                    std::shared_ptr<const std::vector<float>> co_occurrences) {
  int64_t dim = 0;
  for (const FeatureSource& source : sources) dim += source.dim;
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
                        int64_t batch_items) {
  const FeatureNormalization& normalization = quantizer.normalization;
  ItemRows features = normalized_rows(fused_rows(corpus, normalization.sources), normalization);
  return quantizer.rq_vae ? latent_rows(quantizer.rq_vae, features, batch_items) : features;
}

std::vector<std::string> item_ids_of(const Corpus& corpus) {
  std::vector<std::string> ids;
  for (int64_t item = 0; item < corpus.num_items(); ++item) {
    const nlohmann::json id = corpus.item_id(item);
    ids.push_back(id.is_string() ? id.get<std::string>() : id.dump());
  }
  return ids;
}

}  // namespace mirabelle
