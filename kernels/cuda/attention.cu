#include "cuda/attention_cudnn.h"
#include "cuda/attention_layout.cuh"
#include "cuda/attention_mma.h"
#include "cuda/block_reduce.cuh"
#include "cuda/libraries.h"
#include "cuda/vector_load.cuh"
#include "mirabelle/kernels/attention.h"

// Attention with plain float32 arithmetic, for every dtype, head size and grouping: the reference
// for the tensor cores (attention_mma.cu), and the path of what they do not take. A block of 128
// threads takes a tile of 32 rows (queries, or keys in the second half of the backward pass) and
// meets the other side tile by tile; four neighbouring threads share a row: each has every fourth
// column of a tile and every fourth feature.
namespace mirabelle::backend {
namespace {

constexpr int kTile = 32;
constexpr int kThreadsPerRow = 4;
constexpr int kThreads = kTile * kThreadsPerRow;
constexpr int kColumnsPerThread = kTile / kThreadsPerRow;

/// The threads of a row have neighbouring lanes.
__device__ float row_sum(float x) {
  x += __shfl_xor_sync(kAllLanes, x, 1);
  return x + __shfl_xor_sync(kAllLanes, x, 2);
}
__device__ float row_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, 1));
  return fmaxf(x, __shfl_xor_sync(kAllLanes, x, 2));
}

/// Rows of kDim features, padded by one so that the rows lie in different banks.
template <int kDim>
struct Tile {
  float row[kTile][kDim + 1];

  /// `count` rows of head_dim features; all else is 0.
  template <typename T>
  __device__ void load(const T* rows, int64_t stride, int count, int head_dim, float factor = 1) {
    for (int i = threadIdx.x; i < kTile * kDim; i += kThreads) {
      const int r = i / kDim, d = i % kDim;
      const bool inside = r < count && d < head_dim;
      row[r][d] = inside ? factor * static_cast<float>(rows[r * stride + d]) : 0.0f;
    }
  }
};

/// The features of a row that a thread sums up: lane, lane + 4, ...
template <int kDim>
struct RowSum {
  static constexpr int kFeatures = kDim / kThreadsPerRow;
  float value[kFeatures] = {};

  /// += sum over `count` rows of weight(i) * rows.row[i].
  template <typename Weight>
  __device__ void add(const Tile<kDim>& rows, int count, Weight weight) {
    const int lane = threadIdx.x % kThreadsPerRow;
    for (int i = 0; i < count; ++i) {
      const float w = weight(i);
#pragma unroll
      for (int f = 0; f < kFeatures; ++f) value[f] += w * rows.row[i][lane + f * kThreadsPerRow];
    }
  }

  template <typename T>
  __device__ void store(T* to, int head_dim, float factor) const {
    const int lane = threadIdx.x % kThreadsPerRow;
#pragma unroll
    for (int f = 0; f < kFeatures; ++f) {
      const int d = lane + f * kThreadsPerRow;
      if (d < head_dim) to[d] = static_cast<T>(factor * value[f]);
    }
  }
};

template <int kDim>
__device__ float dot(const Tile<kDim>& a, int i, const Tile<kDim>& b, int j) {
  float total = 0;
#pragma unroll 16
  for (int d = 0; d < kDim; ++d) total += a.row[i][d] * b.row[j][d];
  return total;
}

/// The softmax of a tile of queries over the keys that it met so far.
template <int kDim>
struct RunningSoftmax {
  RowSum<kDim> out;
  float maximum = -kInfinity, sum = 0;  // of the thread's row

  /// Meets a tile of keys, of which the thread's row sees the first `num_seen`. `weights` is
  /// overwritten. All threads must call it.
  __device__ void add(const Tile<kDim>& queries, const Tile<kDim>& keys, const Tile<kDim>& values,
                      float (&weights)[kTile][kTile + 1], int num_seen) {
    const int row = threadIdx.x / kThreadsPerRow, lane = threadIdx.x % kThreadsPerRow;
    float score[kColumnsPerThread], largest = maximum;
#pragma unroll
    for (int c = 0; c < kColumnsPerThread; ++c) {
      const int key = lane + c * kThreadsPerRow;
      score[c] = key < num_seen ? dot(queries, row, keys, key) : -kInfinity;
      largest = fmaxf(largest, score[c]);
    }
    largest = row_max(largest);
    const float shrink = largest == -kInfinity ? 1 : expf(maximum - largest);
    float total = 0;
#pragma unroll
    for (int c = 0; c < kColumnsPerThread; ++c) {
      const float weight = score[c] == -kInfinity ? 0 : expf(score[c] - largest);
      weights[row][lane + c * kThreadsPerRow] = weight;
      total += weight;
    }
    maximum = largest;
    sum = sum * shrink + row_sum(total);
#pragma unroll
    for (float& feature : out.value) feature *= shrink;
    __syncwarp();  // the row's weights come from the four threads of the row
    out.add(values, kTile, [&](int i) { return weights[row][i]; });
  }

  /// Meets one key more: row r the key and value number r.
  __device__ void add_own(const Tile<kDim>& queries, const Tile<kDim>& keys,
                          const Tile<kDim>& values, int row) {
    const int lane = threadIdx.x % kThreadsPerRow;
    float score = 0;
    for (int d = lane; d < kDim; d += kThreadsPerRow) {
      score += queries.row[row][d] * keys.row[row][d];
    }
    score = row_sum(score);
    const float largest = fmaxf(maximum, score);
    const float shrink = expf(maximum - largest), weight = expf(score - largest);
    maximum = largest;
    sum = sum * shrink + weight;
#pragma unroll
    for (int f = 0; f < RowSum<kDim>::kFeatures; ++f) {
      out.value[f] = out.value[f] * shrink + weight * values.row[row][lane + f * kThreadsPerRow];
    }
  }
};

template <int kDim>
struct ForwardMemory {
  Tile<kDim> queries, keys, values;
  float weights[kTile][kTile + 1];
};

template <int kDim, typename T>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(T* out, float* log_sum, const T* qkv, const int32_t* sequence_offsets,
                   int num_sequences, Heads heads, float scale) {
  extern __shared__ __align__(16) unsigned char memory[];
  auto& shared = *reinterpret_cast<ForwardMemory<kDim>*>(memory);
  const auto tile = find_tile<kTile>(sequence_offsets, num_sequences, blockIdx.x);
  if (tile.empty()) return;
  const int head = blockIdx.y, kv_head = head / heads.group_size;
  const int row = threadIdx.x / kThreadsPerRow;
  const int64_t stride = heads.token_stride();
  const T* of_first = qkv + tile.first * stride;
  shared.queries.load(of_first + heads.query(head), stride, tile.count(), heads.head_dim, scale);
  RunningSoftmax<kDim> softmax;
  for (int first_key = tile.begin; first_key <= tile.first; first_key += kTile) {
    const int count = min(kTile, tile.end - first_key);
    const T* of_key = qkv + first_key * stride;
    __syncthreads();  // the tiles before were used
    shared.keys.load(of_key + heads.key(kv_head), stride, count, heads.head_dim);
    shared.values.load(of_key + heads.value(kv_head), stride, count, heads.head_dim);
    __syncthreads();
    softmax.add(shared.queries, shared.keys, shared.values, shared.weights,
                min(count, tile.first + row - first_key + 1));
  }
  if (row >= tile.count()) return;
  const int64_t token = tile.first + row;
  softmax.out.store(out + token * heads.out_stride() + heads.out(head), heads.head_dim,
                    1 / softmax.sum);
  if (threadIdx.x % kThreadsPerRow == 0) {
    log_sum[token * heads.num_heads() + head] = softmax.maximum + logf(softmax.sum);
  }
}

/// dots[token, head] = grad_out . out: a warp takes one.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    dots_kernel(float* dots, const T* grad_out, const T* out, int64_t num_rows, int head_dim) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * (kThreads / kWarp) + threadIdx.x / kWarp;
  if (row >= num_rows) return;
  float total = 0;
  for (int d = threadIdx.x % kWarp; d < head_dim; d += kWarp) {
    total += static_cast<float>(grad_out[row * head_dim + d]) *
             static_cast<float>(out[row * head_dim + d]);
  }
  total = warp_reduce(total, Add());
  if (threadIdx.x % kWarp == 0) dots[row] = total;
}

template <int kDim>
struct BackwardMemory {
  Tile<kDim> queries, keys, values, grad_out;
  float weights[kTile][kTile + 1], grad_scores[kTile][kTile + 1];
};

/// With P = softmax(S), S = scale Q K^T:  dS = P * (dO V^T - dots);  dQ = scale dS K.
template <int kDim, typename T>
__global__ void __launch_bounds__(kThreads)
    backward_queries_kernel(T* grad_qkv, const T* grad_out, const float* log_sum, const float* dots,
                            const T* qkv, const int32_t* sequence_offsets, int num_sequences,
                            Heads heads, float scale) {
  extern __shared__ __align__(16) unsigned char memory[];
  auto& shared = *reinterpret_cast<BackwardMemory<kDim>*>(memory);
  const auto tile = find_tile<kTile>(sequence_offsets, num_sequences, blockIdx.x);
  if (tile.empty()) return;
  const int head = blockIdx.y, kv_head = head / heads.group_size;
  const int row = threadIdx.x / kThreadsPerRow, lane = threadIdx.x % kThreadsPerRow;
  const int64_t stride = heads.token_stride();
  const int64_t query = heads.query(head);
  const bool has_row = row < tile.count();
  const int64_t token = tile.first + row;
  shared.queries.load(qkv + tile.first * stride + query, stride, tile.count(), heads.head_dim,
                      scale);
  shared.grad_out.load(grad_out + tile.first * heads.out_stride() + heads.out(head),
                       heads.out_stride(), tile.count(), heads.head_dim);
  const float row_log_sum = has_row ? log_sum[token * heads.num_heads() + head] : 0;
  const float row_dot = has_row ? dots[token * heads.num_heads() + head] : 0;
  RowSum<kDim> grad_query;
  for (int first_key = tile.begin; first_key <= tile.first; first_key += kTile) {
    const int count = min(kTile, tile.end - first_key);
    const T* of_key = qkv + first_key * stride;
    __syncthreads();
    shared.keys.load(of_key + heads.key(kv_head), stride, count, heads.head_dim);
    shared.values.load(of_key + heads.value(kv_head), stride, count, heads.head_dim);
    __syncthreads();
    const int num_seen = has_row ? min(count, tile.first + row - first_key + 1) : 0;
#pragma unroll
    for (int c = 0; c < kColumnsPerThread; ++c) {
      const int key = lane + c * kThreadsPerRow;
      float grad_score = 0;
      if (key < num_seen) {
        const float weight = expf(dot(shared.queries, row, shared.keys, key) - row_log_sum);
        grad_score = weight * (dot(shared.grad_out, row, shared.values, key) - row_dot);
      }
      shared.grad_scores[row][key] = grad_score;
    }
    __syncwarp();
    grad_query.add(shared.keys, kTile, [&](int i) { return shared.grad_scores[row][i]; });
  }
  if (has_row) grad_query.store(grad_qkv + token * stride + query, heads.head_dim, scale);
}

/// dV = P^T dO,  dK = scale dS^T Q, over all query heads of the group and all later tokens.
template <int kDim, typename T>
__global__ void __launch_bounds__(kThreads)
    backward_keys_kernel(T* grad_qkv, const T* grad_out, const float* log_sum, const float* dots,
                         const T* qkv, const int32_t* sequence_offsets, int num_sequences,
                         Heads heads, float scale) {
  extern __shared__ __align__(16) unsigned char memory[];
  auto& shared = *reinterpret_cast<BackwardMemory<kDim>*>(memory);
  const auto tile = find_tile<kTile>(sequence_offsets, num_sequences, blockIdx.x);
  if (tile.empty()) return;
  const int kv_head = blockIdx.y;
  const int row = threadIdx.x / kThreadsPerRow, lane = threadIdx.x % kThreadsPerRow;
  const int64_t stride = heads.token_stride();
  const T* of_first = qkv + tile.first * stride;
  shared.keys.load(of_first + heads.key(kv_head), stride, tile.count(), heads.head_dim);
  shared.values.load(of_first + heads.value(kv_head), stride, tile.count(), heads.head_dim);
  RowSum<kDim> grad_key, grad_value;
  for (int in_group = 0; in_group < heads.group_size; ++in_group) {
    const int head = kv_head * heads.group_size + in_group;
    for (int first_query = tile.first; first_query < tile.end; first_query += kTile) {
      const int count = min(kTile, tile.end - first_query);
      __syncthreads();
      shared.queries.load(qkv + first_query * stride + heads.query(head), stride, count,
                          heads.head_dim, scale);
      shared.grad_out.load(grad_out + first_query * heads.out_stride() + heads.out(head),
                           heads.out_stride(), count, heads.head_dim);
      __syncthreads();
#pragma unroll
      for (int c = 0; c < kColumnsPerThread; ++c) {
        const int query = lane + c * kThreadsPerRow;
        float weight = 0, grad_score = 0;
        // The key is seen by the queries that do not come before it.
        if (query < count && row < tile.count() && first_query + query >= tile.first + row) {
          const int64_t place = (first_query + query) * static_cast<int64_t>(heads.num_heads());
          weight = expf(dot(shared.queries, query, shared.keys, row) - log_sum[place + head]);
          grad_score =
              weight * (dot(shared.grad_out, query, shared.values, row) - dots[place + head]);
        }
        shared.weights[row][query] = weight;
        shared.grad_scores[row][query] = grad_score;
      }
      __syncwarp();
      grad_value.add(shared.grad_out, kTile, [&](int i) { return shared.weights[row][i]; });
      grad_key.add(shared.queries, kTile, [&](int i) { return shared.grad_scores[row][i]; });
    }
  }
  if (row >= tile.count()) return;
  T* grad = grad_qkv + (tile.first + row) * stride;
  grad_key.store(grad + heads.key(kv_head), heads.head_dim, 1);  // the queries had the scale
  grad_value.store(grad + heads.value(kv_head), heads.head_dim, 1);
}

/// A block takes up to 32 beams of a user and one head: first the keys of the user's history, tile
/// by tile, then each beam's own.
template <int kDim, typename T>
__global__ void __launch_bounds__(kThreads)
    beam_kernel(T* out, const T* qkv, const T* prefix_qkv, const int32_t* prefix_offsets,
                const int32_t* beam_offsets, const T* suffix_kv, int num_users, int num_beams,
                int suffix_length, Heads heads, float scale) {
  extern __shared__ __align__(16) unsigned char memory[];
  auto& shared = *reinterpret_cast<ForwardMemory<kDim>*>(memory);
  const auto tile = find_tile<kTile>(beam_offsets, num_users, blockIdx.x);
  if (tile.empty()) return;
  const int user = tile.sequence;
  const int head = blockIdx.y, kv_head = head / heads.group_size;
  const int row = threadIdx.x / kThreadsPerRow;
  const int64_t stride = heads.token_stride();
  const T* of_first = qkv + tile.first * stride;
  shared.queries.load(of_first + heads.query(head), stride, tile.count(), heads.head_dim, scale);
  RunningSoftmax<kDim> softmax;
  const int prefix_end = prefix_offsets[user + 1];
  for (int first_key = prefix_offsets[user]; first_key < prefix_end; first_key += kTile) {
    const int count = min(kTile, prefix_end - first_key);
    const T* of_key = prefix_qkv + first_key * stride;
    __syncthreads();
    shared.keys.load(of_key + heads.key(kv_head), stride, count, heads.head_dim);
    shared.values.load(of_key + heads.value(kv_head), stride, count, heads.head_dim);
    __syncthreads();
    softmax.add(shared.queries, shared.keys, shared.values, shared.weights, count);
  }
  // The beams' own tokens: token `step` of every beam is a tile in which row r sees only key r.
  const int64_t kv_stride = static_cast<int64_t>(heads.num_kv_heads) * 2 * heads.head_dim;
  for (int step = 0; step <= suffix_length; ++step) {
    const bool is_newest = step == suffix_length;
    const T* suffix = suffix_kv +
                      (static_cast<int64_t>(step) * num_beams + tile.first) * kv_stride +
                      static_cast<int64_t>(kv_head) * heads.head_dim;
    const T* key = is_newest ? of_first + heads.key(kv_head) : suffix;
    const T* value = is_newest ? of_first + heads.value(kv_head) : suffix + kv_stride / 2;
    __syncthreads();
    shared.keys.load(key, is_newest ? stride : kv_stride, tile.count(), heads.head_dim);
    shared.values.load(value, is_newest ? stride : kv_stride, tile.count(), heads.head_dim);
    __syncthreads();
    softmax.add_own(shared.queries, shared.keys, shared.values, row);
  }
  if (row >= tile.count()) return;
  softmax.out.store(out + (tile.first + row) * heads.out_stride() + heads.out(head), heads.head_dim,
                    1 / softmax.sum);
}

/// Calls body.operator()<kDim>() with the tile width for this head_dim.
template <typename Body>
void dispatch_head_dim(int64_t head_dim, Body&& body) {
  if (head_dim <= 32) return body.template operator()<32>();
  if (head_dim <= 64) return body.template operator()<64>();
  if (head_dim <= 128) return body.template operator()<128>();
  return body.template operator()<kMaxHeadDim>();
}

}  // namespace

template <Device D, typename T>
void attention_forward(T* out, Wide<T>* log_sum, const T* qkv, const int32_t* sequence_offsets,
                       int64_t num_tokens, int64_t num_sequences, int64_t max_sequence_tokens,
                       int64_t num_kv_heads, int64_t group_size, int64_t head_dim, double scale,
                       const Stream& stream) {
  if (num_tokens == 0) return;
  const Heads heads = {static_cast<int>(num_kv_heads), static_cast<int>(group_size),
                       static_cast<int>(head_dim)};
  if constexpr (std::is_same_v<T, BFloat16>) {
    const AttentionShape shape = {num_sequences, max_sequence_tokens, heads.num_heads(),
                                  num_kv_heads, head_dim};
    if (attention_cudnn_forward(out, log_sum, qkv, sequence_offsets, num_tokens, shape,
                                static_cast<float>(scale), stream)) {
      return;
    }
    if (attention_mma_supports(heads, {qkv, out})) {
      return attention_mma_forward(out, log_sum, qkv, sequence_offsets, num_tokens, num_sequences,
                                   heads, static_cast<float>(scale), stream);
    }
  }
  dispatch_head_dim(head_dim, [&]<int kDim>() {
    launch_with_memory<ForwardMemory<kDim>, kThreads>(
        forward_kernel<kDim, T>, num_tiles<kTile>(num_tokens, num_sequences), heads.num_heads(),
        stream, out, log_sum, qkv, sequence_offsets, static_cast<int>(num_sequences), heads,
        static_cast<float>(scale));
  });
}

template <Device D, typename T>
void attention_backward(T* grad_qkv, const T* grad_out, const T* out, const Wide<T>* log_sum,
                        const T* qkv, const int32_t* sequence_offsets, int64_t num_tokens,
                        int64_t num_sequences, int64_t max_sequence_tokens, int64_t num_kv_heads,
                        int64_t group_size, int64_t head_dim, double scale, const Stream& stream) {
  if (num_tokens == 0) return;
  const Heads heads = {static_cast<int>(num_kv_heads), static_cast<int>(group_size),
                       static_cast<int>(head_dim)};
  if constexpr (std::is_same_v<T, BFloat16>) {
    const AttentionShape shape = {num_sequences, max_sequence_tokens, heads.num_heads(),
                                  num_kv_heads, head_dim};
    if (attention_cudnn_backward(grad_qkv, grad_out, out, log_sum, qkv, sequence_offsets,
                                 num_tokens, shape, static_cast<float>(scale), stream)) {
      return;
    }
  }
  const int64_t num_rows = num_tokens * heads.num_heads();
  auto* dots = static_cast<float*>(
      libraries_of(stream).workspace(num_rows * static_cast<int64_t>(sizeof(float))));
  dots_kernel<<<ceil_div(num_rows, kThreads / kWarp), kThreads, 0, stream.cuda()>>>(
      dots, grad_out, out, num_rows, static_cast<int>(head_dim));
  CUDA_CHECK(cudaGetLastError());
  if constexpr (std::is_same_v<T, BFloat16>) {
    if (attention_mma_supports(heads, {grad_qkv, grad_out, qkv})) {
      return attention_mma_backward(grad_qkv, grad_out, log_sum, dots, qkv, sequence_offsets,
                                    num_tokens, num_sequences, heads, static_cast<float>(scale),
                                    stream);
    }
  }
  const int64_t tiles = num_tiles<kTile>(num_tokens, num_sequences);
  dispatch_head_dim(head_dim, [&]<int kDim>() {
    using Memory = BackwardMemory<kDim>;
    launch_with_memory<Memory, kThreads>(backward_queries_kernel<kDim, T>, tiles, heads.num_heads(),
                                         stream, grad_qkv, grad_out, log_sum, dots, qkv,
                                         sequence_offsets, static_cast<int>(num_sequences), heads,
                                         static_cast<float>(scale));
    launch_with_memory<Memory, kThreads>(backward_keys_kernel<kDim, T>, tiles, num_kv_heads, stream,
                                         grad_qkv, grad_out, log_sum, dots, qkv, sequence_offsets,
                                         static_cast<int>(num_sequences), heads,
                                         static_cast<float>(scale));
  });
}

template <Device D, typename T>
void beam_attention(T* out, const T* qkv, const T* prefix_qkv, const int32_t* prefix_offsets,
                    const int32_t* beam_offsets, const T* suffix_kv, int64_t num_users,
                    int64_t num_prefix_tokens, int64_t num_beams, int64_t suffix_length,
                    int64_t num_kv_heads, int64_t group_size, int64_t head_dim, double scale,
                    const Stream& stream) {
  if (num_beams == 0) return;
  const Heads heads = {static_cast<int>(num_kv_heads), static_cast<int>(group_size),
                       static_cast<int>(head_dim)};
  if constexpr (std::is_same_v<T, BFloat16>) {
    if (attention_mma_supports(heads, {out, qkv, prefix_qkv, suffix_kv})) {
      return beam_attention_mma(out, qkv, prefix_qkv, prefix_offsets, beam_offsets, suffix_kv,
                                num_users, num_prefix_tokens, num_beams, suffix_length, heads,
                                static_cast<float>(scale), stream);
    }
  }
  dispatch_head_dim(head_dim, [&]<int kDim>() {
    launch_with_memory<ForwardMemory<kDim>, kThreads>(
        beam_kernel<kDim, T>, num_tiles<kTile>(num_beams, num_users), heads.num_heads(), stream,
        out, qkv, prefix_qkv, prefix_offsets, beam_offsets, suffix_kv, static_cast<int>(num_users),
        static_cast<int>(num_beams), static_cast<int>(suffix_length), heads,
        static_cast<float>(scale));
  });
}

#define INSTANTIATE(T)                                                                             \
  template void attention_forward<Device::kCuda, T>(T*, float*, const T*, const int32_t*, int64_t, \
                                                    int64_t, int64_t, int64_t, int64_t, int64_t,   \
                                                    double, const Stream&);                        \
  template void attention_backward<Device::kCuda, T>(                                              \
      T*, const T*, const T*, const float*, const T*, const int32_t*, int64_t, int64_t, int64_t,   \
      int64_t, int64_t, int64_t, double, const Stream&);                                           \
  template void beam_attention<Device::kCuda, T>(                                                  \
      T*, const T*, const T*, const int32_t*, const int32_t*, const T*, int64_t, int64_t, int64_t, \
      int64_t, int64_t, int64_t, int64_t, double, const Stream&);
INSTANTIATE(float)
INSTANTIATE(BFloat16)
#undef INSTANTIATE

}  // namespace mirabelle::backend
