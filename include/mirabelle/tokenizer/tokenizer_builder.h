#pragma once

#include <functional>
#include <string>
#include <vector>

#include "mirabelle/comm/communicator.h"
#include "mirabelle/data/corpus.h"
#include "mirabelle/tokenizer/co_occurrence.h"
#include "mirabelle/tokenizer/residual_kmeans.h"
#include "mirabelle/tokenizer/rq_vae_trainer.h"
#include "mirabelle/tokenizer/tokenizer_config.h"
#include "mirabelle/tokenizer/tokenizer_file.h"

namespace mirabelle {

/// What a tokenizer follows from: sections of the configuration.
struct TokenizerRecipe {
  TokenizerConfig tokenizer;
  RqVaeConfig rq_vae;
  CoOccurrenceConfig co_occurrence;
  std::string text;  ///< the whole configuration, kept in the file
};

/// How many items a trained RQ-VAE has encoded.
struct EncodingProgress {
  int64_t items, num_items;  ///< of this rank
  double items_per_second;   ///< of all ranks, since the start
};

/// Called as residual_kmeans and fit_rq_vae say, and after every batch that a trained RQ-VAE
/// encodes; each may be empty.
struct TokenizerProgress {
  std::function<void(const KMeansProgress&)> residual_kmeans;
  std::function<void(const RqVaeProgress&)> rq_vae;
  std::function<void(const EncodingProgress&)> encoding;
};

/// Makes a tokenizer for the items of a corpus. k-means passes over them, and an RQ-VAE is trained
/// and encodes them, on `device`; pairs of items come from training events only. The result is the
/// same on every rank, and for any number of ranks (for an RQ-VAE, any that divides rq_vae.parts).
/// Throws a kUsage Error if the configuration names a feature source that the corpus lacks.
/// Collective; `communicator` moves memory of the host and of `device`.
TokenizerFile build_tokenizer(const Corpus& corpus, const TokenizerRecipe& recipe, Device device,
                              const Communicator& communicator,
                              const TokenizerProgress& on_progress = {});

}  // namespace mirabelle
