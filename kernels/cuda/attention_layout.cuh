#pragma once

#include <cstdint>

#include "mirabelle/core/cuda_check.h"
#include "mirabelle/core/stream.h"

namespace mirabelle::backend {

/// Where things are in `qkv` and `out` (see attention.h).
struct Heads {
  int num_kv_heads, group_size, head_dim;
  __host__ __device__ int num_heads() const { return num_kv_heads * group_size; }
  __device__ int64_t token_stride() const {
    return static_cast<int64_t>(num_heads() + 2 * num_kv_heads) * head_dim;
  }
  __device__ int64_t query(int head) const { return static_cast<int64_t>(head) * head_dim; }
  __device__ int64_t key(int kv_head) const { return query(num_heads() + kv_head); }
  __device__ int64_t value(int kv_head) const { return key(num_kv_heads + kv_head); }
  __device__ int64_t out_stride() const { return static_cast<int64_t>(num_heads()) * head_dim; }
  __device__ int64_t out(int head) const { return static_cast<int64_t>(head) * head_dim; }
};

/// A tile of up to kTile of the tokens [begin, end) of a sequence.
template <int kTile>
struct SequenceTile {
  int sequence, begin, end, first;
  __device__ bool empty() const { return first >= end; }
  __device__ int count() const { return min(kTile, end - first); }
};

/// The tiles of all sequences are numbered without a table: sequence s has the numbers from
/// offsets[s] / kTile + s on, which are enough for it; those that it does not need are empty.
template <int kTile>
int64_t num_tiles(int64_t num_tokens, int64_t num_sequences) {
  return num_tokens / kTile + num_sequences;
}

/// With rows_per_token, the tile is one of rows, and so is all that it holds: token t has the rows
/// from t * rows_per_token on.
template <int kTile>
__device__ SequenceTile<kTile> find_tile(const int32_t* offsets, int num_sequences, int number,
                                         int rows_per_token = 1) {
  int low = 0, high = num_sequences;  // the first number of `low` is at most `number`
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (offsets[middle] * rows_per_token / kTile + middle <= number ? low : high) = middle;
  }
  const int begin = offsets[low] * rows_per_token, end = offsets[low + 1] * rows_per_token;
  return {low, begin, end, begin + (number - begin / kTile - low) * kTile};
}

/// Launches blocks of kThreads threads for `tiles` x `heads`, each with a Memory of shared memory.
template <typename Memory, int kThreads, typename Kernel, typename... Arguments>
void launch_with_memory(Kernel kernel, int64_t tiles, int64_t heads, const Stream& stream,
                        Arguments... arguments) {
  CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  static_cast<int>(sizeof(Memory))));
  const dim3 grid(static_cast<unsigned>(tiles), static_cast<unsigned>(heads));
  kernel<<<grid, kThreads, sizeof(Memory), stream.cuda()>>>(arguments...);
  CUDA_CHECK(cudaGetLastError());
}

}  // namespace mirabelle::backend
