#pragma once

#include <cstdint>
#include <vector>

#include "mirabelle/comm/communicator.h"
#include "mirabelle/data/corpus.h"
#include "mirabelle/tokenizer/tokenizer_builder.h"
#include "mirabelle/tokenizer/tokenizer_file.h"

namespace mirabelle {

/// A first embedding that knows what the codes stand for, [vocab_size, hidden_size]: codes of
/// similar items get similar rows. With f_i [feature_dim] the features of item i (the tokenizer's
/// sources; a column of one of n columns and weight w has mean 0 and deviation w / sqrt(n)) and P
/// [feature_dim, hidden_size] random and normal, drawn by `seed`,
///
///   row(code) = s * sum over the items i that carry the code of P^T f_i
///
/// where s brings the row's mean square to 1. Rows of special tokens, and of codes that no item
/// carries, are 0. Features of co-occurrence follow from the corpus' training events by `recipe`,
/// the one that the tokenizer was built by.
///
/// All ranks measure the columns, then rank 0 computes. Every rank holds the result and up to 1 GiB
/// of features. The same on every rank, and for any number of them. Throws a kUsage Error if the
/// tokenizer was not made of features, a kData Error if the corpus has not those. Collective, on
/// host memory.
std::vector<float> code_embedding(const Corpus& corpus, const TokenizerFile& tokenizer,
                                  const TokenizerRecipe& recipe, int64_t hidden_size, int64_t seed,
                                  const Communicator& communicator);

}  // namespace mirabelle
