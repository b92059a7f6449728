#include "mirabelle/kernels/beam.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/check_indices.h"
#include "cpu/parallel_threshold.h"

namespace mirabelle::backend {
namespace {

constexpr double kNone = -std::numeric_limits<double>::infinity();

/// Where each beam's candidates begin; a user's after those of the users before are forgotten.
template <typename T>
void count_candidates(const BeamExpansion<T>& x) {
  for (int64_t user = 0; user < x.num_users; ++user) {
    int32_t* offsets = x.offsets + user * (x.width + 1);
    offsets[0] = 0;
    for (int64_t row = 0; row < x.width; ++row) {
      const int64_t beam = user * x.width + row;
      const int32_t* children = x.first_child + x.beam_nodes[beam];
      const bool exists = x.beam_scores[beam] > kNone;
      offsets[row + 1] = offsets[row] + (exists ? children[1] - children[0] : 0);
    }
    x.sizes[user] = offsets[x.width];
  }
}

/// The scores of one beam's candidates; false if one is not finite.
template <typename T>
bool score_children(const BeamExpansion<T>& x, int64_t user, int64_t row) {
  const int32_t* offsets = x.offsets + user * (x.width + 1) + row;
  const int32_t num_children = offsets[1] - offsets[0];
  if (num_children == 0) return true;
  const int64_t beam = user * x.width + row;
  const int32_t first = x.first_child[x.beam_nodes[beam]], end = first + num_children;
  const T* log_probability = x.log_probabilities + beam * x.vocab_size;
  double* scores = x.scores + user * x.max_candidates + offsets[0];
  bool all_finite = true;
  for (int32_t i = 0; i < num_children; ++i) {
    const double score =
        x.beam_scores[beam] + static_cast<double>(log_probability[x.child_tokens[first + i]]);
    all_finite = all_finite && std::isfinite(score);
    scores[i] = std::isfinite(score) ? score : kNone;
  }
  const int32_t* excluded_end = x.excluded + x.excluded_offsets[user + 1];
  const int32_t* excluded = x.excluded + x.excluded_offsets[user];
  for (excluded = std::lower_bound(excluded, excluded_end, first);
       excluded != excluded_end && *excluded < end; ++excluded) {
    scores[*excluded - first] = kNone;
  }
  return all_finite;
}

}  // namespace

template <Device D, typename T>
void expand_beams(const BeamExpansion<T>& x, const Stream&) {
  check_index_range("beam nodes", x.beam_nodes, x.num_users * x.width, 0, x.num_nodes);
  check_index_range("child_tokens", x.child_tokens, x.num_children, 0, x.vocab_size);
  count_candidates(x);
  check_index_range("candidate sizes", x.sizes, x.num_users, 0, x.max_candidates + 1);
  bool all_finite = true;
#pragma omp parallel for schedule(dynamic) reduction(&& : all_finite)
  for (int64_t user = 0; user < x.num_users; ++user) {
    for (int64_t row = 0; row < x.width; ++row) {
      all_finite = score_children(x, user, row) && all_finite;
    }
  }
  if (!all_finite) *x.not_finite = 1;
}

template <Device D>
void select_beams(const BeamSelection& x, const Stream&) {
  check_index_range("beam_nodes", x.beam_nodes, x.num_users * x.width, 0, x.num_nodes);
  for (int64_t user = 0; user < x.num_users; ++user) {
    const int64_t num_candidates = x.offsets[(user + 1) * (x.width + 1) - 1];
    check_index_range("indices", x.indices + user * x.next_width, x.next_width, -1, num_candidates);
  }
  const int64_t num_beams = x.num_users * x.next_width;
#pragma omp parallel for schedule(static) if (num_beams > kParallelThreshold)
  for (int64_t beam = 0; beam < num_beams; ++beam) {
    const int64_t user = beam / x.next_width;
    const int32_t index = x.indices[beam];
    int64_t parent = user * x.width;
    int32_t node = 0;
    if (index >= 0) {
      const int32_t* offsets = x.offsets + user * (x.width + 1);
      const int64_t row = std::upper_bound(offsets, offsets + x.width, index) - offsets - 1;
      parent += row;
      node = x.first_child[x.beam_nodes[parent]] + index - offsets[row];
    }
    x.nodes[beam] = node;
    x.tokens[beam] = x.child_tokens[node];
    x.parents[beam] = static_cast<int32_t>(parent);
  }
}

template <Device D>
void place_beams(int32_t* positions, int32_t* beam_offsets, const int32_t* prefix_offsets,
                 int64_t num_users, int64_t width, int64_t step, const Stream&) {
  for (int64_t user = 0; user <= num_users; ++user) {
    beam_offsets[user] = static_cast<int32_t>(user * width);
  }
  for (int64_t user = 0; user < num_users; ++user) {
    const int32_t length = prefix_offsets[user + 1] - prefix_offsets[user];
    std::fill_n(positions + user * width, width, length + static_cast<int32_t>(step));
  }
}

template void expand_beams<Device::kCpu, float>(const BeamExpansion<float>&, const Stream&);
template void expand_beams<Device::kCpu, double>(const BeamExpansion<double>&, const Stream&);
template void select_beams<Device::kCpu>(const BeamSelection&, const Stream&);
template void place_beams<Device::kCpu>(int32_t*, int32_t*, const int32_t*, int64_t, int64_t,
                                        int64_t, const Stream&);

}  // namespace mirabelle::backend
