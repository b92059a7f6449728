#include "cuda/attention_mma.h"
#include "cuda/mma.cuh"
#include "cuda/vector_load.cuh"

namespace mirabelle::backend {
namespace {

// A block of four warps takes 64 rows (queries, or keys in the second half of the backward pass); a
// warp has 16 of them. The other side passes by in tiles, of which the next one is copied while
// this one is used.
constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarp;
constexpr int kRows = 16 * kWarps;
constexpr int kForwardKeys = 64;
constexpr int kBackwardTile = 32;
constexpr float kLog2E = 1.44269504088896340736f;
constexpr float kLn2 = 0.69314718055994530942f;

/// The first of a warp's rows in the block's tile, and a lane's rows and columns in a fragment C.
__device__ int warp_row() { return static_cast<int>(threadIdx.x) / kWarp * 16; }
__device__ int row_in_c(int i) { return threadIdx.x % kWarp / 4 + i / 2 * 8; }
__device__ int column_in_c(int i) { return threadIdx.x % 4 * 2 + i % 2; }

/// The four lanes that share a row.
template <typename Op>
__device__ float quad_reduce(float x, Op op) {
  x = op(x, __shfl_xor_sync(kAllLanes, x, 1));
  return op(x, __shfl_xor_sync(kAllLanes, x, 2));
}

/// Writes a warp's 16 rows of kDim features, as far as the tile has them.
template <int kDim>
__device__ void store_rows(BFloat16* rows, int64_t stride, int count,
                           const FragmentC (&c)[kDim / 8], const float (&factor)[2]) {
#pragma unroll
  for (int n = 0; n < kDim / 8; ++n) {
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
      const int row = warp_row() + row_in_c(i);
      if (row >= count) continue;
      const uint32_t pair = pack(c[n].value[i] * factor[i / 2], c[n].value[i + 1] * factor[i / 2]);
      *reinterpret_cast<uint32_t*>(rows + row * stride + n * 8 + column_in_c(i)) = pair;
    }
  }
}

template <int kDim>
struct ForwardMemory {
  MmaTile<kRows, kDim> queries;
  MmaTile<kForwardKeys, kDim> keys[2], values[2];
};

template <int kDim>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(BFloat16* out, float* log_sum, const BFloat16* qkv,
                   const int32_t* sequence_offsets, int num_sequences, Heads heads, float scale) {
  extern __shared__ __align__(16) unsigned char memory[];
  auto& shared = *reinterpret_cast<ForwardMemory<kDim>*>(memory);
  const auto tile = find_tile<kRows>(sequence_offsets, num_sequences, blockIdx.x);
  if (tile.empty()) return;
  const int head = blockIdx.y, kv_head = head / heads.group_size;
  const int64_t stride = heads.token_stride();
  const auto load_keys = [&](int first, int buffer) {
    const BFloat16* token = qkv + first * stride;
    const int count = min(kForwardKeys, tile.end - first);
    shared.keys[buffer].template load<kThreads>(token + heads.key(kv_head), stride, count);
    shared.values[buffer].template load<kThreads>(token + heads.value(kv_head), stride, count);
    commit_copies();
  };
  shared.queries.template load<kThreads>(qkv + tile.first * stride + heads.query(head), stride,
                                         tile.count());
  load_keys(tile.begin, 0);

  FragmentC result[kDim / 8];
  float maximum[2] = {-kInfinity, -kInfinity}, sum[2] = {};  // of rows g and g + 8, in base 2
  int buffer = 0;
  for (int first_key = tile.begin; first_key <= tile.first; first_key += kForwardKeys) {
    const bool is_last = first_key + kForwardKeys > tile.first;
    if (!is_last) load_keys(first_key + kForwardKeys, 1 - buffer);
    is_last ? wait_for_copies<0>() : wait_for_copies<1>();
    __syncthreads();

    FragmentC score[kForwardKeys / 8];
#pragma unroll
    for (int d = 0; d < kDim; d += 16) {
      const FragmentA query = shared.queries.a(warp_row(), d);
#pragma unroll
      for (int key = 0; key < kForwardKeys; key += 16) {
        multiply_add(score[key / 8], score[key / 8 + 1], query,
                     shared.keys[buffer].b_of_rows(key, d));
      }
    }
    float largest[2] = {maximum[0], maximum[1]};
#pragma unroll
    for (int n = 0; n < kForwardKeys / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float& s = score[n].value[i];
        s *= scale * kLog2E;
        // Only the last tile, which is the queries' own, has keys that come after a query.
        if (is_last && n * 8 + column_in_c(i) > warp_row() + row_in_c(i)) s = -kInfinity;
        largest[i / 2] = fmaxf(largest[i / 2], s);
      }
    }
    float shrink[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      largest[r] = quad_reduce(largest[r], Max());
      shrink[r] = exp2f(maximum[r] - largest[r]);
      maximum[r] = largest[r];
      sum[r] *= shrink[r];
    }
#pragma unroll
    for (int n = 0; n < kForwardKeys / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        score[n].value[i] = exp2f(score[n].value[i] - maximum[i / 2]);
        sum[i / 2] += score[n].value[i];
      }
    }
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) result[n].value[i] *= shrink[i / 2];
    }
#pragma unroll
    for (int key = 0; key < kForwardKeys; key += 16) {
      const FragmentA weights = as_a(score[key / 8], score[key / 8 + 1]);
#pragma unroll
      for (int d = 0; d < kDim; d += 16) {
        multiply_add(result[d / 8], result[d / 8 + 1], weights, shared.values[buffer].b(key, d));
      }
    }
    __syncthreads();  // before the next copies overwrite this buffer
    buffer = 1 - buffer;
  }

  float inverse[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    sum[r] = quad_reduce(sum[r], Add());
    inverse[r] = 1 / sum[r];
    const int row = warp_row() + row_in_c(2 * r);
    if (row < tile.count() && threadIdx.x % 4 == 0) {
      log_sum[(tile.first + row) * static_cast<int64_t>(heads.num_heads()) + head] =
          maximum[r] * kLn2 + logf(sum[r]);
    }
  }
  store_rows<kDim>(out + tile.first * heads.out_stride() + heads.out(head), heads.out_stride(),
                   tile.count(), result, inverse);
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
  MmaTile<kRows, kDim> queries, grad_out;
  MmaTile<kBackwardTile, kDim> keys[2], values[2];
};

/// dQ = scale dS K.
template <int kDim>
__global__ void __launch_bounds__(kThreads)
    backward_queries_kernel(BFloat16* grad_qkv, const BFloat16* grad_out, const float* log_sum,
                            const float* dots, const BFloat16* qkv, const int32_t* sequence_offsets,
                            int num_sequences, Heads heads, float scale) {
  extern __shared__ __align__(16) unsigned char memory[];
  auto& shared = *reinterpret_cast<QueriesMemory<kDim>*>(memory);
  const auto tile = find_tile<kRows>(sequence_offsets, num_sequences, blockIdx.x);
  if (tile.empty()) return;
  const int head = blockIdx.y, kv_head = head / heads.group_size;
  const int64_t stride = heads.token_stride();
  const auto load_keys = [&](int first, int buffer) {
    const BFloat16* token = qkv + first * stride;
    const int count = min(kBackwardTile, tile.end - first);
    shared.keys[buffer].template load<kThreads>(token + heads.key(kv_head), stride, count);
    shared.values[buffer].template load<kThreads>(token + heads.value(kv_head), stride, count);
    commit_copies();
  };
  shared.queries.template load<kThreads>(qkv + tile.first * stride + heads.query(head), stride,
                                         tile.count());
  shared.grad_out.template load<kThreads>(
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
  const int key_end = min(tile.end, tile.first + kRows);
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
  MmaTile<kRows, kDim> keys, values;
  MmaTile<kBackwardTile, kDim> queries[2], grad_out[2];
  float log_sum[2][kBackwardTile], dots[2][kBackwardTile];
};

/// dV = P^T dO,  dK = scale dS^T Q, over the query heads of the group and all later tokens. The
/// fragments hold the transposes: a row is a key, a column a query.
template <int kDim>
__global__ void __launch_bounds__(kThreads)
    backward_keys_kernel(BFloat16* grad_qkv, const BFloat16* grad_out, const float* log_sum,
                         const float* dots, const BFloat16* qkv, const int32_t* sequence_offsets,
                         int num_sequences, Heads heads, float scale) {
  extern __shared__ __align__(16) unsigned char memory[];
  auto& shared = *reinterpret_cast<KeysMemory<kDim>*>(memory);
  const auto tile = find_tile<kRows>(sequence_offsets, num_sequences, blockIdx.x);
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
    shared.queries[buffer].template load<kThreads>(qkv + first * stride + heads.query(head), stride,
                                                   count);
    shared.grad_out[buffer].template load<kThreads>(
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
  shared.keys.template load<kThreads>(first_token + heads.key(kv_head), stride, tile.count());
  shared.values.template load<kThreads>(first_token + heads.value(kv_head), stride, tile.count());
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

/// Calls body.operator()<kDim>() for the head sizes that have kernels.
template <typename Body>
void dispatch_head_dim(int head_dim, Body&& body) {
  if (head_dim == 32) return body.template operator()<32>();
  if (head_dim == 64) return body.template operator()<64>();
  if (head_dim == 96) return body.template operator()<96>();
  return body.template operator()<128>();
}

}  // namespace

bool attention_mma_supports(const Heads& heads, const void* qkv, const void* out) {
  const int d = heads.head_dim;
  return (d == 32 || d == 64 || d == 96 || d == 128) && rows_are_aligned(d, {qkv, out});
}

void attention_mma_forward(BFloat16* out, float* log_sum, const BFloat16* qkv,
                           const int32_t* sequence_offsets, int64_t num_tokens,
                           int64_t num_sequences, const Heads& heads, float scale,
                           const Stream& stream) {
  dispatch_head_dim(heads.head_dim, [&]<int kDim>() {
    launch_with_memory<ForwardMemory<kDim>, kThreads>(
        forward_kernel<kDim>, num_tiles<kRows>(num_tokens, num_sequences), heads.num_heads(),
        stream, out, log_sum, qkv, sequence_offsets, static_cast<int>(num_sequences), heads, scale);
  });
}

void attention_mma_backward(BFloat16* grad_qkv, const BFloat16* grad_out, const float* log_sum,
                            const float* dots, const BFloat16* qkv, const int32_t* sequence_offsets,
                            int64_t num_tokens, int64_t num_sequences, const Heads& heads,
                            float scale, const Stream& stream) {
  const int64_t tiles = num_tiles<kRows>(num_tokens, num_sequences);
  const int sequences = static_cast<int>(num_sequences);
  dispatch_head_dim(heads.head_dim, [&]<int kDim>() {
    launch_with_memory<QueriesMemory<kDim>, kThreads>(
        backward_queries_kernel<kDim>, tiles, heads.num_heads(), stream, grad_qkv, grad_out,
        log_sum, dots, qkv, sequence_offsets, sequences, heads, scale);
    launch_with_memory<KeysMemory<kDim>, kThreads>(
        backward_keys_kernel<kDim>, tiles, heads.num_kv_heads, stream, grad_qkv, grad_out, log_sum,
        dots, qkv, sequence_offsets, sequences, heads, scale);
  });
}

}  // namespace mirabelle::backend
