#pragma once

#include "mirabelle/core/stream.h"
#include "mirabelle/core/tensor.h"

namespace mirabelle {

// What beam search along a prefix tree does between two steps of the decoder, without the host:
//
//   expand_beams     the children of all beams are the candidates
//   segmented_top_k  chooses among each user's (top_k.h)
//   select_beams     what was chosen are the next beams
//
// All sizes are known beforehand: every user has `width` beams. Those that there are not have a
// score of -infinity, no children, and a node, token and parent that exist but mean nothing. The
// candidates of a user are in the order of their codes if the beams are.

/// The nodes of a prefix tree that have one depth, and their children, which are the nodes of the
/// next depth: both numbered from 0 in the order of their codes.
struct TrieLevel {
  TensorView first_child;   ///< [num_nodes + 1] int32: the children of a node are a range
  TensorView child_tokens;  ///< [num_children] int32: the token that leads to each
};

/// The beams of all users at one depth.
struct Beams {
  TensorView scores;  ///< [num_users, width] float64
  TensorView nodes;   ///< [num_users, width] int32, each below num_nodes; distinct for a user
};

/// The children of a user's beams, one beam after the other.
struct BeamCandidates {
  TensorView scores;   ///< [num_users, max_candidates] float64
  TensorView sizes;    ///< [num_users] int32: how many a user has
  TensorView offsets;  ///< [num_users, width + 1] int32: the candidates of each of a user's beams
};

/// Nodes that are not allowed for a user, ascending.
struct ExcludedNodes {
  TensorView nodes;    ///< [num_excluded] int32
  TensorView offsets;  ///< [num_users + 1] int32: a user's
};

/// A candidate's score is its beam's plus the log-probability of its token, added in float64, or
/// -infinity if it is excluded.
///   candidates         overwritten; max_candidates must be enough for all children of a user's
///                      beams (or Error, where the host can read them)
///   not_finite         [1] int32, set to 1 if a beam meets a child whose log-probability is not
///                      finite (the child's score becomes -infinity), else left as it is
///   log_probabilities  [num_users * width, vocab_size]
///   excluded           children that are not allowed
void expand_beams(const BeamCandidates& candidates, const TensorView& not_finite,
                  const TensorView& log_probabilities, const Beams& beams, const TrieLevel& trie,
                  const ExcludedNodes& excluded, const Stream& stream);

/// Looks up chosen candidates.
///   nodes, tokens, parents  [num_users, next_width] int32: the children, their tokens, and the
///   rows
///                           (0 .. num_users * width - 1) of the beams that they continue
///   indices                 [num_users, next_width] int32: among the user's candidates; -1: none
///   offsets                 of the candidates
///   beam_nodes              of the beams
void select_beams(const TensorView& nodes, const TensorView& tokens, const TensorView& parents,
                  const TensorView& indices, const TensorView& offsets,
                  const TensorView& beam_nodes, const TrieLevel& trie, const Stream& stream);

/// Where the beams of a decoding step stand.
///   positions       [num_users, width] int32 = the length of the user's history + step
///   beam_offsets    [num_users + 1] int32 = 0, width, 2 * width, ..: the rows of each user
///   prefix_offsets  [num_users + 1] int32: the tokens of each user's history
void place_beams(const TensorView& positions, const TensorView& beam_offsets,
                 const TensorView& prefix_offsets, int64_t step, const Stream& stream);

namespace backend {
/// The operands of expand_beams.
template <typename T>
struct BeamExpansion {
  double* scores;
  int32_t *sizes, *offsets, *not_finite;
  const T* log_probabilities;
  const double* beam_scores;
  const int32_t *beam_nodes, *first_child, *child_tokens, *excluded, *excluded_offsets;
  int64_t num_users, width, max_candidates, num_nodes, num_children, vocab_size;
};
/// Those of select_beams.
struct BeamSelection {
  int32_t *nodes, *tokens, *parents;
  const int32_t *indices, *offsets, *beam_nodes, *first_child, *child_tokens;
  int64_t num_users, width, next_width, num_nodes;
};
template <Device D, typename T>
void expand_beams(const BeamExpansion<T>& x, const Stream& stream);
template <Device D>
void select_beams(const BeamSelection& x, const Stream& stream);
template <Device D>
void place_beams(int32_t* positions, int32_t* beam_offsets, const int32_t* prefix_offsets,
                 int64_t num_users, int64_t width, int64_t step, const Stream& stream);
}  // namespace backend

}  // namespace mirabelle
