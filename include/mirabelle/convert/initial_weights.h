#pragma once

#include <cstdint>
#include <filesystem>

#include "mirabelle/comm/communicator.h"
#include "mirabelle/model/parameters.h"

namespace mirabelle {

/// Fills a rank's share of a model, float32 in the flat order of `layout`, with the weights of
/// `from`: a checkpoint, the best one of a training output, or a folder of Hugging Face. Tokens are
/// joined by the names of their ranges (see map_vocabulary), so the vocabulary of `tokenizer_file`
/// may have grown; new tokens' rows are drawn by `seed` (see RemappedVocabulary). Throws a kData
/// Error if a tensor's shape is not the layout's, or if an item that both know has other codes:
/// then the weights speak of other tokens. Rank 0 compares files with their checksums. Collective.
void read_initial_weights(const TensorView& flat, const ParameterLayout& layout,
                          const std::filesystem::path& from,
                          const std::filesystem::path& tokenizer_file, uint64_t seed,
                          const Communicator& world);

}  // namespace mirabelle
