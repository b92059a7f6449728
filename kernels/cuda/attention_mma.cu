#include "cuda/attention_mma.h"
#include "cuda/mma_softmax.cuh"
#include "cuda/vector_load.cuh"

namespace mirabelle::backend {
namespace {

constexpr int kBackwardTile = 32;
constexpr float kLn2 = 0.69314718055994530942f;

template <int kDim>
__global__ void __launch_bounds__(kMmaThreads)
    forward_kernel(BFloat16* out, float* log_sum, const BFloat16* qkv,
                   const int32_t* sequence_offsets, int num_sequences, Heads heads, float scale) {
  extern __shared__ __align__(16) unsigned char memory[];
  auto& shared = *reinterpret_cast<MmaSoftmaxMemory<kDim>*>(memory);
  const auto tile = find_tile<kMmaRows>(sequence_offsets, num_sequences, blockIdx.x);
  if (tile.empty()) return;
  const int head = blockIdx.y, kv_head = head / heads.group_size;
  const int64_t stride = heads.token_stride();
  shared.queries.template load<kMmaThreads>(qkv + tile.first * stride + heads.query(head), stride,
                                            tile.count());
  MmaSoftmax<kDim> softmax;
  // Only the last tile of keys, which is the queries' own, has keys that come after a query.
  softmax.add_keys(shared, qkv + heads.key(kv_head), qkv + heads.value(kv_head), stride, tile.begin,
                   min(tile.end, tile.first + kMmaRows), scale,
                   [&](int row, int key) { return key <= tile.first + row; });
  softmax.add_up_sum();
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = warp_row() + row_in_c(2 * r);
    if (row < tile.count() && threadIdx.x % 4 == 0) {
      log_sum[(tile.first + row) * static_cast<int64_t>(heads.num_heads()) + head] =
          softmax.maximum[r] * kLn2 + logf(softmax.sum[r]);
    }
  }
  store_rows<kDim>(out + tile.first * heads.out_stride() + heads.out(head), heads.out_stride(),
                   tile.count(), softmax.out, {1 / softmax.sum[0], 1 / softmax.sum[1]});
}

/// P and dS (attention.cu) of one pair of a query and a key, from their score and dP.
struct Pair {
  float weight, grad_score;
};
__device__ Pair softmax_pair(float score, float grad_weight, float scale, float log_sum, float dot,
                             bool sees) {
  if (!sees) return {0, 0};
  const float weight = exp2f((score * scale - log_sum) * kLog2E);
  return {weight, weight * (grad_weight - dot)};
}

template <int kDim>
struct QueriesMemory {
  MmaTile<kMmaRows, kDim> queries, grad_out;
  MmaTile<kBackwardTile, kDim> keys[2], values[2];
};

/// dQ = scale dS K.
template <int kDim>
__global__ void __launch_bounds__(kMmaThreads)
    backward_queries_kernel(BFloat16* grad_qkv, const BFloat16* grad_out, const float* log_sum,
                            const float* dots, const BFloat16* qkv, const int32_t* sequence_offsets,
                            int num_sequences, Heads heads, float scale) {
  extern __shared__ __align__(16) unsigned char memory[];
  auto& shared = *reinterpret_cast<QueriesMemory<kDim>*>(memory);
  const auto tile = find_tile<kMmaRows>(sequence_offsets, num_sequences, blockIdx.x);
  if (tile.empty()) return;
  const int head = blockIdx.y, kv_head = head / heads.group_size;
  const int64_t stride = heads.token_stride();
  const auto load_keys = [&](int first, int buffer) {
    const BFloat16* token = qkv + first * stride;
    const int count = min(kBackwardTile, tile.end - first);
    shared.keys[buffer].template load<kMmaThreads>(token + heads.key(kv_head), stride, count);
    shared.values[buffer].template load<kMmaThreads>(token + heads.value(kv_head), stride, count);
    commit_copies();
  };
  shared.queries.template load<kMmaThreads>(qkv + tile.first * stride + heads.query(head), stride,
                                            tile.count());
  shared.grad_out.template load<kMmaThreads>(
      grad_out + tile.first * heads.out_stride() + heads.out(head), heads.out_stride(),
      tile.count());
  load_keys(tile.begin, 0);
  float row_log_sum[2] = {}, row_dot[2] = {};
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = warp_row() + row_in_c(2 * r);
    if (row >= tile.count()) continue;
    const int64_t place = (tile.first + row) * static_cast<int64_t>(heads.num_heads()) + head;
    row_log_sum[r] = log_sum[place];
    row_dot[r] = dots[place];
  }

  FragmentC grad_query[kDim / 8];
  const int key_end = min(tile.end, tile.first + kMmaRows);
  int buffer = 0;
  for (int first_key = tile.begin; first_key < key_end; first_key += kBackwardTile) {
    const bool is_last = first_key + kBackwardTile >= key_end;
    if (!is_last) load_keys(first_key + kBackwardTile, 1 - buffer);
    is_last ? wait_for_copies<0>() : wait_for_copies<1>();
    __syncthreads();
    FragmentC score[kBackwardTile / 8], grad_weight[kBackwardTile / 8];
#pragma unroll
    for (int d = 0; d < kDim; d += 16) {
      const FragmentA query = shared.queries.a(warp_row(), d);
      const FragmentA grad = shared.grad_out.a(warp_row(), d);
#pragma unroll
      for (int key = 0; key < kBackwardTile; key += 16) {
        multiply_add(score[key / 8], score[key / 8 + 1], query,
                     shared.keys[buffer].b_of_rows(key, d));
        multiply_add(grad_weight[key / 8], grad_weight[key / 8 + 1], grad,
                     shared.values[buffer].b_of_rows(key, d));
      }
    }
#pragma unroll
    for (int n = 0; n < kBackwardTile / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const bool sees =
            first_key + n * 8 + column_in_c(i) <= tile.first + warp_row() + row_in_c(i);
        score[n].value[i] = softmax_pair(score[n].value[i], grad_weight[n].value[i], scale,
                                         row_log_sum[i / 2], row_dot[i / 2], sees)
                                .grad_score;
      }
    }
#pragma unroll
    for (int key = 0; key < kBackwardTile; key += 16) {
      const FragmentA grad_scores = as_a(score[key / 8], score[key / 8 + 1]);
#pragma unroll
      for (int d = 0; d < kDim; d += 16) {
        multiply_add(grad_query[d / 8], grad_query[d / 8 + 1], grad_scores,
                     shared.keys[buffer].b(key, d));
      }
    }
    __syncthreads();
    buffer = 1 - buffer;
  }
  store_rows<kDim>(grad_qkv + tile.first * stride + heads.query(head), stride, tile.count(),
                   grad_query, {scale, scale});
}

template <int kDim>
struct KeysMemory {
  MmaTile<kMmaRows, kDim> keys, values;
  MmaTile<kBackwardTile, kDim> queries[2], grad_out[2];
  float log_sum[2][kBackwardTile], dots[2][kBackwardTile];
};

/// dV = P^T dO,  dK = scale dS^T Q, over the query heads of the group and all later tokens. The
/// fragments hold the transposes: a row is a key, a column a query.
template <int kDim>
__global__ void __launch_bounds__(kMmaThreads)
    backward_keys_kernel(BFloat16* grad_qkv, const BFloat16* grad_out, const float* log_sum,
                         const float* dots, const BFloat16* qkv, const int32_t* sequence_offsets,
                         int num_sequences, Heads heads, float scale) {
  extern __shared__ __align__(16) unsigned char memory[];
  auto& shared = *reinterpret_cast<KeysMemory<kDim>*>(memory);
  const auto tile = find_tile<kMmaRows>(sequence_offsets, num_sequences, blockIdx.x);
  if (tile.empty()) return;
  const int kv_head = blockIdx.y;
  const int64_t stride = heads.token_stride();
  // Step number s of the loop is a query tile of a head of the group.
  const int tiles_per_head = (tile.end - tile.first + kBackwardTile - 1) / kBackwardTile;
  const int num_steps = tiles_per_head * heads.group_size;
  const auto first_query_of = [&](int step) {
    return tile.first + step % tiles_per_head * kBackwardTile;
  };
  const auto load_queries = [&](int step, int buffer) {
    const int first = first_query_of(step);
    const int head = kv_head * heads.group_size + step / tiles_per_head;
    const int count = min(kBackwardTile, tile.end - first);
    shared.queries[buffer].template load<kMmaThreads>(qkv + first * stride + heads.query(head),
                                                      stride, count);
    shared.grad_out[buffer].template load<kMmaThreads>(
        grad_out + first * heads.out_stride() + heads.out(head), heads.out_stride(), count);
    if (threadIdx.x < kBackwardTile) {
      const int row = threadIdx.x;
      const int64_t place = (first + row) * static_cast<int64_t>(heads.num_heads()) + head;
      shared.log_sum[buffer][row] = row < count ? log_sum[place] : 0;
      shared.dots[buffer][row] = row < count ? dots[place] : 0;
    }
    commit_copies();
  };
  const BFloat16* first_token = qkv + tile.first * stride;
  shared.keys.template load<kMmaThreads>(first_token + heads.key(kv_head), stride, tile.count());
  shared.values.template load<kMmaThreads>(first_token + heads.value(kv_head), stride,
                                           tile.count());
  load_queries(0, 0);

  FragmentC grad_key[kDim / 8], grad_value[kDim / 8];
  int buffer = 0;
  for (int step = 0; step < num_steps; ++step) {
    const bool is_last = step + 1 == num_steps;
    if (!is_last) load_queries(step + 1, 1 - buffer);
    is_last ? wait_for_copies<0>() : wait_for_copies<1>();
    __syncthreads();
    const int first_query = first_query_of(step);
    FragmentC weight[kBackwardTile / 8], grad_score[kBackwardTile / 8];
#pragma unroll
    for (int d = 0; d < kDim; d += 16) {
      const FragmentA key = shared.keys.a(warp_row(), d);
      const FragmentA value = shared.values.a(warp_row(), d);
#pragma unroll
      for (int query = 0; query < kBackwardTile; query += 16) {
        multiply_add(weight[query / 8], weight[query / 8 + 1], key,
                     shared.queries[buffer].b_of_rows(query, d));
        multiply_add(grad_score[query / 8], grad_score[query / 8 + 1], value,
                     shared.grad_out[buffer].b_of_rows(query, d));
      }
    }
#pragma unroll
    for (int n = 0; n < kBackwardTile / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int column = n * 8 + column_in_c(i), query = first_query + column;
        const bool sees = query < tile.end && query >= tile.first + warp_row() + row_in_c(i);
        const Pair pair =
            softmax_pair(weight[n].value[i], grad_score[n].value[i], scale,
                         shared.log_sum[buffer][column], shared.dots[buffer][column], sees);
        weight[n].value[i] = pair.weight;
        grad_score[n].value[i] = pair.grad_score;
      }
    }
#pragma unroll
    for (int query = 0; query < kBackwardTile; query += 16) {
      const FragmentA weights = as_a(weight[query / 8], weight[query / 8 + 1]);
      const FragmentA grad_scores = as_a(grad_score[query / 8], grad_score[query / 8 + 1]);
#pragma unroll
      for (int d = 0; d < kDim; d += 16) {
        multiply_add(grad_value[d / 8], grad_value[d / 8 + 1], weights,
                     shared.grad_out[buffer].b(query, d));
        multiply_add(grad_key[d / 8], grad_key[d / 8 + 1], grad_scores,
                     shared.queries[buffer].b(query, d));
      }
    }
    __syncthreads();
    buffer = 1 - buffer;
  }
  BFloat16* grad = grad_qkv + tile.first * stride;
  store_rows<kDim>(grad + heads.key(kv_head), stride, tile.count(), grad_key, {scale, scale});
  store_rows<kDim>(grad + heads.value(kv_head), stride, tile.count(), grad_value, {1, 1});
}

}  // namespace

bool attention_mma_supports(const Heads& heads, std::initializer_list<const void*> arrays) {
  const int d = heads.head_dim;
  return (d == 32 || d == 64 || d == 96 || d == 128) && rows_are_aligned(d, arrays);
}

void attention_mma_forward(BFloat16* out, float* log_sum, const BFloat16* qkv,
                           const int32_t* sequence_offsets, int64_t num_tokens,
                           int64_t num_sequences, const Heads& heads, float scale,
                           const Stream& stream) {
  dispatch_mma_head_dim(heads.head_dim, [&]<int kDim>() {
    launch_with_memory<MmaSoftmaxMemory<kDim>, kMmaThreads>(
        forward_kernel<kDim>, num_tiles<kMmaRows>(num_tokens, num_sequences), heads.num_heads(),
        stream, out, log_sum, qkv, sequence_offsets, static_cast<int>(num_sequences), heads, scale);
  });
}

void attention_mma_backward(BFloat16* grad_qkv, const BFloat16* grad_out, const float* log_sum,
                            const float* dots, const BFloat16* qkv, const int32_t* sequence_offsets,
                            int64_t num_tokens, int64_t num_sequences, const Heads& heads,
                            float scale, const Stream& stream) {
  const int64_t tiles = num_tiles<kMmaRows>(num_tokens, num_sequences);
  const int sequences = static_cast<int>(num_sequences);
  dispatch_mma_head_dim(heads.head_dim, [&]<int kDim>() {
    launch_with_memory<QueriesMemory<kDim>, kMmaThreads>(
        backward_queries_kernel<kDim>, tiles, heads.num_heads(), stream, grad_qkv, grad_out,
        log_sum, dots, qkv, sequence_offsets, sequences, heads, scale);
    launch_with_memory<KeysMemory<kDim>, kMmaThreads>(
        backward_keys_kernel<kDim>, tiles, heads.num_kv_heads, stream, grad_qkv, grad_out, log_sum,
        dots, qkv, sequence_offsets, sequences, heads, scale);
  });
}

}  // namespace mirabelle::backend
