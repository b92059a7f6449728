#include <algorithm>

#include "cuda/attention_mma.h"
#include "cuda/libraries.h"
#include "cuda/mma_softmax.cuh"
#include "cuda/vector_load.cuh"

namespace mirabelle::backend {
namespace {

/// What blocks that met a part of the history each leave for combine_kernel. A row is a query head
/// of a beam, in the order of `out`.
struct Partials {
  float* out;       // [num_splits, num_rows, head_dim] not divided by the sum
  float2* softmax;  // [num_splits, num_rows] maximum (of scores times log2(e)), sum
};

/// All beams of a user and all query heads of a group meet the same keys of the user's history: a
/// block takes 64 of these rows and one of num_splits parts of the history. The block of the last
/// part goes on to the keys that each beam has for itself.
template <int kDim>
__global__ void __launch_bounds__(kMmaThreads)
    beam_kernel(BFloat16* out, Partials partials, const BFloat16* qkv, const BFloat16* prefix_qkv,
                const int32_t* prefix_offsets, const int32_t* beam_offsets,
                const BFloat16* suffix_kv, int num_users, int num_beams, int suffix_length,
                int num_splits, Heads heads, float scale) {
  extern __shared__ __align__(16) unsigned char memory[];
  auto& shared = *reinterpret_cast<MmaSoftmaxMemory<kDim>*>(memory);
  const int group_size = heads.group_size;
  const auto tile = find_tile<kMmaRows>(beam_offsets, num_users, blockIdx.x, group_size);
  if (tile.empty()) return;
  const int user = tile.sequence;
  const int kv_head = blockIdx.y / num_splits, split = blockIdx.y % num_splits;
  const int64_t stride = heads.token_stride();
  const auto beam_of = [&](int row) -> int64_t { return (tile.first + row) / group_size; };
  const auto head_of = [&](int row) {
    return kv_head * group_size + (tile.first + row) % group_size;
  };
  const auto row_of_out = [&](int row) { return beam_of(row) * heads.num_heads() + head_of(row); };

  shared.queries.template load<kMmaThreads>(
      [&](int row) { return qkv + beam_of(row) * stride + heads.query(head_of(row)); },
      tile.count());
  const int begin = prefix_offsets[user], end = prefix_offsets[user + 1];
  const int tiles_of_split =
      ((end - begin + kMmaKeys - 1) / kMmaKeys + num_splits - 1) / num_splits;
  const int first_key = begin + split * tiles_of_split * kMmaKeys;
  const int last_key = min(end, first_key + tiles_of_split * kMmaKeys);
  MmaSoftmax<kDim> softmax;
  softmax.add_keys(shared, prefix_qkv + heads.key(kv_head), prefix_qkv + heads.value(kv_head),
                   stride, first_key, last_key, scale,
                   [&](int, int key) { return key < last_key; });

  commit_copies();  // a part without keys did not wait for the queries
  wait_for_copies<0>();
  __syncthreads();

  if (split == num_splits - 1) {
    const int64_t to_value = static_cast<int64_t>(heads.num_kv_heads) * kDim;
    for (int step = 0; step <= suffix_length; ++step) {
      const bool is_newest = step == suffix_length;
      const BFloat16* keys = is_newest ? qkv + heads.key(kv_head)
                                       : suffix_kv + step * num_beams * 2 * to_value +
                                             static_cast<int64_t>(kv_head) * kDim;
      const BFloat16* key[2];
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int row = min(warp_row() + row_in_c(2 * r), tile.count() - 1);
        key[r] = keys + beam_of(row) * (is_newest ? stride : 2 * to_value);
      }
      softmax.add_own_key(shared.queries, key, to_value, scale);
    }
  }

  softmax.add_up_sum();
  if (num_splits == 1) {
    store_rows<kDim>([&](int row) { return out + row_of_out(row) * kDim; }, tile.count(),
                     softmax.out, {1 / softmax.sum[0], 1 / softmax.sum[1]});
    return;
  }
  const int64_t first_partial = static_cast<int64_t>(split) * num_beams * heads.num_heads();
  store_rows<kDim>([&](int row) { return partials.out + (first_partial + row_of_out(row)) * kDim; },
                   tile.count(), softmax.out, {1, 1});
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = warp_row() + row_in_c(2 * r);
    if (row < tile.count() && threadIdx.x % 4 == 0) {
      partials.softmax[first_partial + row_of_out(row)] =
          make_float2(softmax.maximum[r], softmax.sum[r]);
    }
  }
}

/// A warp takes a row.
template <int kDim>
__global__ void __launch_bounds__(kMmaThreads)
    combine_kernel(BFloat16* out, Partials partials, int num_splits, int64_t num_rows) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kMmaWarps + threadIdx.x / kWarp;
  if (row >= num_rows) return;
  const int lane = threadIdx.x % kWarp;
  float maximum = -kInfinity;  // finite in the last split, which has the beam's own keys
  for (int split = 0; split < num_splits; ++split) {
    maximum = fmaxf(maximum, partials.softmax[split * num_rows + row].x);
  }
  float sum = 0, value[kDim / kWarp] = {};
  for (int split = 0; split < num_splits; ++split) {
    const int64_t place = split * num_rows + row;
    const float2 softmax = partials.softmax[place];
    const float weight = exp2f(softmax.x - maximum);
    sum += weight * softmax.y;
#pragma unroll
    for (int f = 0; f < kDim / kWarp; ++f) {
      value[f] += weight * partials.out[place * kDim + f * kWarp + lane];
    }
  }
#pragma unroll
  for (int f = 0; f < kDim / kWarp; ++f) {
    out[row * kDim + f * kWarp + lane] = static_cast<BFloat16>(value[f] / sum);
  }
}

/// Blocks that fill a large GPU: an H100 holds two to five of these on each of its 132
/// multiprocessors.
constexpr int64_t kFullGrid = 512;

/// Enough parts to have `blocks` of them fill the GPU, but none that is not worth the sums that it
/// leaves, if histories have the average length.
int64_t num_splits(int64_t blocks, int64_t num_prefix_tokens, int64_t num_users) {
  constexpr int64_t kMinTiles = 4;
  const int64_t tiles = ceil_div(num_prefix_tokens, num_users * kMmaKeys);
  return std::max<int64_t>(1, std::min(kFullGrid / blocks, tiles / kMinTiles));
}

/// Memory of one size for all shapes: there are at most kFullGrid blocks when there are splits.
Partials allocate_partials(int64_t head_dim, const Stream& stream) {
  constexpr int64_t kNumRows = kFullGrid * kMmaRows;
  const int64_t out_bytes = kNumRows * head_dim * static_cast<int64_t>(sizeof(float));
  const int64_t softmax_bytes = kNumRows * static_cast<int64_t>(sizeof(float2));
  auto* memory = static_cast<char*>(libraries_of(stream).workspace(out_bytes + softmax_bytes));
  return {reinterpret_cast<float*>(memory), reinterpret_cast<float2*>(memory + out_bytes)};
}

}  // namespace

void beam_attention_mma(BFloat16* out, const BFloat16* qkv, const BFloat16* prefix_qkv,
                        const int32_t* prefix_offsets, const int32_t* beam_offsets,
                        const BFloat16* suffix_kv, int64_t num_users, int64_t num_prefix_tokens,
                        int64_t num_beams, int64_t suffix_length, const Heads& heads, float scale,
                        const Stream& stream) {
  const int64_t tiles = num_tiles<kMmaRows>(num_beams * heads.group_size, num_users);
  const int64_t splits = num_splits(tiles * heads.num_kv_heads, num_prefix_tokens, num_users);
  const int64_t num_rows = num_beams * heads.num_heads();
  const Partials partials = splits > 1 ? allocate_partials(heads.head_dim, stream) : Partials{};
  dispatch_mma_head_dim(heads.head_dim, [&]<int kDim>() {
    launch_with_memory<MmaSoftmaxMemory<kDim>, kMmaThreads>(
        beam_kernel<kDim>, tiles, heads.num_kv_heads * splits, stream, out, partials, qkv,
        prefix_qkv, prefix_offsets, beam_offsets, suffix_kv, static_cast<int>(num_users),
        static_cast<int>(num_beams), static_cast<int>(suffix_length), static_cast<int>(splits),
        heads, scale);
    if (splits == 1) return;
    combine_kernel<kDim><<<ceil_div(num_rows, kMmaWarps), kMmaThreads, 0, stream.cuda()>>>(
        out, partials, static_cast<int>(splits), num_rows);
    CUDA_CHECK(cudaGetLastError());
  });
}

}  // namespace mirabelle::backend
