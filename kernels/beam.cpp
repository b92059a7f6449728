#include "mirabelle/kernels/beam.h"

#include "check_offsets.h"
#include "check_operand.h"
#include "mirabelle/core/dispatch.h"

namespace mirabelle {
namespace {

void check_trie(const TrieLevel& trie, const TensorView& like) {
  MIRABELLE_CHECK(trie.child_tokens.shape.rank() == 1, "child_tokens has shape ",
                  trie.child_tokens.shape, ", wanted [num_children]");
  check_indices("child_tokens", trie.child_tokens, trie.child_tokens.shape, like);
  check_offsets("first_child", trie.first_child, trie.child_tokens.shape[0], like);
}

}  // namespace

void expand_beams(const BeamCandidates& candidates, const TensorView& not_finite,
                  const TensorView& log_probabilities, const Beams& beams, const TrieLevel& trie,
                  const ExcludedNodes& excluded, const Stream& stream) {
  MIRABELLE_CHECK(beams.nodes.shape.rank() == 2, "beam nodes has shape ", beams.nodes.shape,
                  ", wanted [num_users, width]");
  MIRABELLE_CHECK(log_probabilities.shape.rank() == 2 && candidates.scores.shape.rank() == 2,
                  "log_probabilities has shape ", log_probabilities.shape, ", candidate scores ",
                  candidates.scores.shape,
                  ": wanted [num_users * width, vocab_size] and [num_users, max_candidates]");
  MIRABELLE_CHECK(excluded.nodes.shape.rank() == 1, "excluded nodes has shape ",
                  excluded.nodes.shape, ", wanted [num_excluded]");
  const int64_t num_users = beams.nodes.shape[0], width = beams.nodes.shape[1];
  const int64_t max_candidates = candidates.scores.shape[1];
  const int64_t vocab_size = log_probabilities.shape[1];
  const TensorView& like = log_probabilities;
  TensorView float64_like = like;
  float64_like.dtype = DType::kFloat64;
  check_operand("log_probabilities", like, {num_users * width, vocab_size}, like);
  check_operand("candidate scores", candidates.scores, {num_users, max_candidates}, float64_like);
  check_indices("candidate sizes", candidates.sizes, {num_users}, like);
  check_indices("candidate offsets", candidates.offsets, {num_users, width + 1}, like);
  check_indices("not_finite", not_finite, {1}, like);
  check_operand("beam scores", beams.scores, {num_users, width}, float64_like);
  check_indices("beam nodes", beams.nodes, {num_users, width}, like);
  check_trie(trie, like);
  check_indices("excluded nodes", excluded.nodes, excluded.nodes.shape, like);
  check_indices("excluded offsets", excluded.offsets, {num_users + 1}, like);
  check_offsets("excluded offsets", excluded.offsets, excluded.nodes.shape[0], like);
  dispatch<float>(like.device, like.dtype, [&]<Device D, typename T>() {
    backend::expand_beams<D, T>({.scores = candidates.scores.as<double>(),
                                 .sizes = candidates.sizes.as<int32_t>(),
                                 .offsets = candidates.offsets.as<int32_t>(),
                                 .not_finite = not_finite.as<int32_t>(),
                                 .log_probabilities = log_probabilities.as<T>(),
                                 .beam_scores = beams.scores.as<double>(),
                                 .beam_nodes = beams.nodes.as<int32_t>(),
                                 .first_child = trie.first_child.as<int32_t>(),
                                 .child_tokens = trie.child_tokens.as<int32_t>(),
                                 .excluded = excluded.nodes.as<int32_t>(),
                                 .excluded_offsets = excluded.offsets.as<int32_t>(),
                                 .num_users = num_users,
                                 .width = width,
                                 .max_candidates = max_candidates,
                                 .num_nodes = trie.first_child.shape[0] - 1,
                                 .num_children = trie.child_tokens.shape[0],
                                 .vocab_size = vocab_size},
                                stream);
  });
}

void select_beams(const TensorView& nodes, const TensorView& tokens, const TensorView& parents,
                  const TensorView& indices, const TensorView& offsets,
                  const TensorView& beam_nodes, const TrieLevel& trie, const Stream& stream) {
  MIRABELLE_CHECK(indices.shape.rank() == 2 && beam_nodes.shape.rank() == 2, "indices has shape ",
                  indices.shape, ", beam_nodes ", beam_nodes.shape,
                  ": wanted [num_users, next_width] and [num_users, width]");
  const int64_t num_users = beam_nodes.shape[0], width = beam_nodes.shape[1];
  const Shape next_shape = {num_users, indices.shape[1]};
  check_indices("nodes", nodes, next_shape, indices);
  check_indices("tokens", tokens, next_shape, indices);
  check_indices("parents", parents, next_shape, indices);
  check_indices("indices", indices, next_shape, indices);
  check_indices("offsets", offsets, {num_users, width + 1}, indices);
  check_indices("beam_nodes", beam_nodes, beam_nodes.shape, indices);
  check_trie(trie, indices);
  if (indices.empty()) return;
  MIRABELLE_CHECK(!beam_nodes.empty() && !trie.child_tokens.empty(),
                  "no beams or no children, and yet ", indices.shape, " are wanted of them");
  dispatch(indices.device, DType::kFloat32, [&]<Device D, typename>() {  // has no floating dtype
    backend::select_beams<D>({.nodes = nodes.as<int32_t>(),
                              .tokens = tokens.as<int32_t>(),
                              .parents = parents.as<int32_t>(),
                              .indices = indices.as<int32_t>(),
                              .offsets = offsets.as<int32_t>(),
                              .beam_nodes = beam_nodes.as<int32_t>(),
                              .first_child = trie.first_child.as<int32_t>(),
                              .child_tokens = trie.child_tokens.as<int32_t>(),
                              .num_users = num_users,
                              .width = width,
                              .next_width = indices.shape[1],
                              .num_nodes = trie.first_child.shape[0] - 1},
                             stream);
  });
}

void place_beams(const TensorView& positions, const TensorView& beam_offsets,
                 const TensorView& prefix_offsets, int64_t step, const Stream& stream) {
  MIRABELLE_CHECK(positions.shape.rank() == 2, "positions has shape ", positions.shape,
                  ", wanted [num_users, width]");
  const int64_t num_users = positions.shape[0];
  check_indices("positions", positions, positions.shape, positions);
  check_indices("beam_offsets", beam_offsets, {num_users + 1}, positions);
  check_indices("prefix_offsets", prefix_offsets, {num_users + 1}, positions);
  dispatch(positions.device, DType::kFloat32, [&]<Device D, typename>() {  // has no floating dtype
    backend::place_beams<D>(positions.as<int32_t>(), beam_offsets.as<int32_t>(),
                            prefix_offsets.as<int32_t>(), num_users, positions.shape[1], step,
                            stream);
  });
}

}  // namespace mirabelle
