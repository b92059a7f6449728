#include <algorithm>
#include <cub/block/block_scan.cuh>
#include <limits>

#include "cuda/vector_load.cuh"
#include "mirabelle/kernels/beam.h"

namespace mirabelle::backend {
namespace {

constexpr int kThreads = 256;
constexpr double kNone = -std::numeric_limits<double>::infinity();

/// The first of the ascending `values` [0, size) that is above `x`, or `size`.
__device__ int upper_bound(const int32_t* values, int size, int32_t x) {
  int low = 0, high = size;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (values[middle] > x) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

/// Where each beam's candidates begin. A block takes a user, and its beams by kThreads.
template <typename T>
__global__ void __launch_bounds__(kThreads) count_kernel(BeamExpansion<T> x) {
  using Scan = cub::BlockScan<int, kThreads>;
  __shared__ typename Scan::TempStorage memory;
  const int64_t user = blockIdx.x;
  const int width = static_cast<int>(x.width);
  const int max_candidates = static_cast<int>(x.max_candidates);
  int32_t* offsets = x.offsets + user * (width + 1);
  int total = 0;  // the same in all threads
  for (int first = 0; first < width; first += kThreads) {
    const int row = first + static_cast<int>(threadIdx.x);
    int num_children = 0;
    if (row < width && x.beam_scores[user * width + row] > kNone) {
      const int32_t* children = x.first_child + x.beam_nodes[user * width + row];
      num_children = children[1] - children[0];
    }
    int before, of_block;
    Scan(memory).ExclusiveSum(num_children, before, of_block);
    // Nothing is ever written past the end, even of a tree that is not one.
    if (row < width) offsets[row] = min(total + before, max_candidates);
    total += of_block;
    __syncthreads();  // before `memory` is used again
  }
  if (threadIdx.x == 0) offsets[width] = x.sizes[user] = min(total, max_candidates);
}

/// A thread takes a candidate.
template <typename T>
__global__ void __launch_bounds__(kThreads) score_kernel(BeamExpansion<T> x, int blocks_per_user) {
  const int64_t user = blockIdx.x / blocks_per_user;
  const int64_t place = static_cast<int64_t>(blockIdx.x % blocks_per_user) * kThreads + threadIdx.x;
  if (place >= x.sizes[user]) return;
  const auto index = static_cast<int32_t>(place);
  const int width = static_cast<int>(x.width);
  const int32_t* offsets = x.offsets + user * (width + 1);
  const int row = upper_bound(offsets, width, index) - 1;
  const int64_t beam = user * width + row;
  const int32_t node = x.first_child[x.beam_nodes[beam]] + index - offsets[row];
  const double score =
      x.beam_scores[beam] +
      static_cast<double>(x.log_probabilities[beam * x.vocab_size + x.child_tokens[node]]);
  const bool is_finite = isfinite(score);
  if (!is_finite) *x.not_finite = 1;
  const int32_t* excluded = x.excluded + x.excluded_offsets[user];
  const int num_excluded = x.excluded_offsets[user + 1] - x.excluded_offsets[user];
  const int above = upper_bound(excluded, num_excluded, node);
  const bool is_excluded = above > 0 && excluded[above - 1] == node;
  x.scores[user * x.max_candidates + index] = is_finite && !is_excluded ? score : kNone;
}

/// A thread takes one of the next beams.
__global__ void __launch_bounds__(kThreads) select_kernel(BeamSelection x, int64_t num_beams) {
  const int64_t beam = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (beam >= num_beams) return;
  const int64_t user = beam / x.next_width;
  const int32_t index = x.indices[beam];
  int64_t parent = user * x.width;
  int32_t node = 0;
  if (index >= 0) {
    const int32_t* offsets = x.offsets + user * (x.width + 1);
    const int row = upper_bound(offsets, static_cast<int>(x.width), index) - 1;
    parent += row;
    node = x.first_child[x.beam_nodes[parent]] + index - offsets[row];
  }
  x.nodes[beam] = node;
  x.tokens[beam] = x.child_tokens[node];
  x.parents[beam] = static_cast<int32_t>(parent);
}

__global__ void __launch_bounds__(kThreads)
    place_kernel(int32_t* positions, int32_t* beam_offsets, const int32_t* prefix_offsets,
                 int64_t num_users, int64_t width, int32_t step) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (index <= num_users) beam_offsets[index] = static_cast<int32_t>(index * width);
  if (index >= num_users * width) return;
  const int64_t user = index / width;
  positions[index] = prefix_offsets[user + 1] - prefix_offsets[user] + step;
}

}  // namespace

template <Device D, typename T>
void expand_beams(const BeamExpansion<T>& x, const Stream& stream) {
  if (x.num_users == 0) return;
  count_kernel<<<x.num_users, kThreads, 0, stream.cuda()>>>(x);
  CUDA_CHECK(cudaGetLastError());
  if (x.max_candidates == 0) return;
  const int64_t blocks_per_user = ceil_div(x.max_candidates, kThreads);
  score_kernel<<<x.num_users * blocks_per_user, kThreads, 0, stream.cuda()>>>(
      x, static_cast<int>(blocks_per_user));
  CUDA_CHECK(cudaGetLastError());
}

template <Device D>
void select_beams(const BeamSelection& x, const Stream& stream) {
  const int64_t num_beams = x.num_users * x.next_width;
  if (num_beams == 0) return;
  select_kernel<<<ceil_div(num_beams, kThreads), kThreads, 0, stream.cuda()>>>(x, num_beams);
  CUDA_CHECK(cudaGetLastError());
}

template <Device D>
void place_beams(int32_t* positions, int32_t* beam_offsets, const int32_t* prefix_offsets,
                 int64_t num_users, int64_t width, int64_t step, const Stream& stream) {
  const int64_t num_threads = std::max(num_users * width, num_users + 1);
  place_kernel<<<ceil_div(num_threads, kThreads), kThreads, 0, stream.cuda()>>>(
      positions, beam_offsets, prefix_offsets, num_users, width, static_cast<int32_t>(step));
  CUDA_CHECK(cudaGetLastError());
}

template void expand_beams<Device::kCuda, float>(const BeamExpansion<float>&, const Stream&);
template void select_beams<Device::kCuda>(const BeamSelection&, const Stream&);
template void place_beams<Device::kCuda>(int32_t*, int32_t*, const int32_t*, int64_t, int64_t,
                                         int64_t, const Stream&);

}  // namespace mirabelle::backend
