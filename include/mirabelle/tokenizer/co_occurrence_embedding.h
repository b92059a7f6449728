#pragma once

#include <cstdint>
#include <vector>

#include "mirabelle/comm/communicator.h"
#include "mirabelle/tokenizer/co_occurrence.h"

namespace mirabelle {

/// Co-occurrence as features, [num_items, dim]: items that are met with the same items lie near
/// each other. With w_ij the weight of a pair (of either item's list), p_ij its share of all
/// weights, q_i = w_i^0.75 / sum_j w_j^0.75 and w_i = sum_j w_ij, the matrix
///
///   M_ij = max(0, log(p_ij / (q_i q_j)))
///
/// of positive pointwise mutual information (smoothed as in Levy, Goldberg & Dagan 2015) is
/// factorised: the rows are those of its `dim` leading singular vectors, times the roots of the
/// singular values, scaled to length 1. Items without partners have rows of zeros, and so have the
/// columns that the rank of M does not fill.
///
/// Rank 0 computes, by subspace iteration from a start drawn by `seed`; it holds two matrices
/// [num_items, dim + 16] and, beside the pairs, 32 bytes for each of them. The result, which every
/// rank holds, is the same for any number of ranks and threads. Collective.
std::vector<float> co_occurrence_embedding(const CoOccurrences& pairs, int64_t dim, int64_t seed,
                                           const Communicator& communicator);

}  // namespace mirabelle
