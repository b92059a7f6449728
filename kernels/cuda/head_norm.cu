#include "cuda/add_chunks.cuh"
#include "cuda/block_reduce.cuh"
#include "cuda/vector_load.cuh"
#include "mirabelle/kernels/head_norm.h"

namespace mirabelle::backend {
namespace {

// A warp takes a head and keeps it in registers: kValues elements per lane, which neighbouring
// lanes read from neighbouring places.
constexpr int kHeadsPerBlock = 8;
constexpr int kWarpsPerChunk = 8;

enum Kind { kQuery, kKey, kHeadValue };

__device__ Kind kind_of(int64_t head, int group_size) {
  const int64_t in_group = head % (group_size + 2);
  return in_group < group_size ? kQuery : in_group == group_size ? kKey : kHeadValue;
}

/// Calls body(v, i) for the lane's values, v of which is feature i of the head.
template <int kValues, typename Body>
__device__ void for_each_feature(int head_dim, const Body& body) {
#pragma unroll
  for (int v = 0; v < kValues; ++v) {
    const int i = v * kWarp + threadIdx.x % kWarp;
    if (i < head_dim) body(v, i);
  }
}

/// The lane's values of a head, in `x`, and 1 / sqrt(mean(x^2) + epsilon).
template <int kValues, typename T>
__device__ float load_head(float (&x)[kValues], const T* head, int head_dim, float epsilon) {
  float squares = 0;
  for_each_feature<kValues>(head_dim, [&](int v, int i) {
    x[v] = static_cast<float>(head[i]);
    squares += x[v] * x[v];
  });
  return 1 / sqrtf(warp_reduce(squares, Add()) / head_dim + epsilon);
}

template <int kValues, typename T>
__global__ void __launch_bounds__(kHeadsPerBlock* kWarp)
    forward_kernel(T* out, const T* x, const T* weights, int64_t num_heads, int group_size,
                   int head_dim, float epsilon) {
  const int64_t head = static_cast<int64_t>(blockIdx.x) * kHeadsPerBlock + threadIdx.x / kWarp;
  if (head >= num_heads) return;
  const Kind kind = kind_of(head, group_size);
  float values[kValues];
  const float r = load_head(values, x + head * head_dim, head_dim, epsilon);
  for_each_feature<kValues>(head_dim, [&](int v, int i) {
    const float scale =
        kind == kHeadValue ? 1 : r * static_cast<float>(weights[kind * head_dim + i]);
    out[head * head_dim + i] = static_cast<T>(values[v] * scale);
  });
}

/// A block takes the heads of a chunk of tokens, a warp every kWarpsPerChunk-th of them.
template <int kValues, typename T>
__global__ void __launch_bounds__(kWarpsPerChunk* kWarp)
    backward_kernel(T* grad_x, float* workspace, const T* grad_out, const T* x, const T* weights,
                    int64_t num_tokens, int heads_per_token, int group_size, int head_dim,
                    float epsilon, int64_t num_chunks) {
  extern __shared__ float weight_sums[];  // [2, head_dim], of the warps so far
  const int64_t chunk = blockIdx.x;
  const int64_t begin = chunk * num_tokens / num_chunks * heads_per_token;
  const int64_t end = (chunk + 1) * num_tokens / num_chunks * heads_per_token;
  const int warp = threadIdx.x / kWarp;
  float grad_w[2][kValues] = {};
  for (int64_t head = begin + warp; head < end; head += kWarpsPerChunk) {
    const Kind kind = kind_of(head, group_size);
    const T* dy = grad_out + head * head_dim;
    T* dx = grad_x + head * head_dim;
    if (kind == kHeadValue) {
      for_each_feature<kValues>(head_dim, [&](int, int i) { dx[i] = dy[i]; });
      continue;
    }
    float values[kValues], scaled[kValues];  // x, and dy * w
    const float r = load_head(values, x + head * head_dim, head_dim, epsilon);
    float dot = 0;
    for_each_feature<kValues>(head_dim, [&](int v, int i) {
      const float grad = static_cast<float>(dy[i]), sum = grad * values[v] * r;
      // not indexed by `kind`: the array would leave the registers
      grad_w[0][v] += kind == kQuery ? sum : 0;
      grad_w[1][v] += kind == kKey ? sum : 0;
      scaled[v] = grad * static_cast<float>(weights[kind * head_dim + i]);
      dot += scaled[v] * values[v];
    });
    const float shrink = warp_reduce(dot, Add()) * r * r * r / head_dim;
    for_each_feature<kValues>(head_dim, [&](int v, int i) {
      dx[i] = static_cast<T>(scaled[v] * r - values[v] * shrink);
    });
  }
  // One warp after the other, so that the order is fixed.
  for (int turn = 0; turn < kWarpsPerChunk; ++turn) {
    if (turn == warp) {
      for_each_feature<kValues>(head_dim, [&](int v, int i) {
#pragma unroll
        for (int kind = 0; kind < 2; ++kind) {
          float& sum = weight_sums[kind * head_dim + i];
          sum = (turn == 0 ? 0 : sum) + grad_w[kind][v];
        }
      });
    }
    __syncthreads();
  }
  for (int i = threadIdx.x; i < 2 * head_dim; i += blockDim.x) {
    workspace[chunk * 2 * head_dim + i] = weight_sums[i];
  }
}

/// Calls body.operator()<kValues>() for the number of elements that a lane keeps.
template <typename Body>
void dispatch_head_dim(int64_t head_dim, Body&& body) {
  MIRABELLE_CHECK(head_dim <= 8 * kWarp, "head_dim is ", head_dim, ", wanted at most ", 8 * kWarp,
                  " on CUDA");
  if (head_dim <= kWarp) return body.template operator()<1>();
  if (head_dim <= 2 * kWarp) return body.template operator()<2>();
  if (head_dim <= 4 * kWarp) return body.template operator()<4>();
  body.template operator()<8>();
}

}  // namespace

template <Device D, typename T>
void head_norm_forward(T* out, const T* x, const T* weights, int64_t num_tokens,
                       int64_t num_kv_heads, int64_t group_size, int64_t head_dim, double epsilon,
                       const Stream& stream) {
  const int64_t num_heads = num_tokens * num_kv_heads * (group_size + 2);
  if (num_heads == 0) return;
  dispatch_head_dim(head_dim, [&]<int kValues>() {
    forward_kernel<kValues>
        <<<ceil_div(num_heads, kHeadsPerBlock), kHeadsPerBlock * kWarp, 0, stream.cuda()>>>(
            out, x, weights, num_heads, static_cast<int>(group_size), static_cast<int>(head_dim),
            static_cast<float>(epsilon));
    CUDA_CHECK(cudaGetLastError());
  });
}

template <Device D, typename T>
void head_norm_backward(T* grad_x, Wide<T>* grad_weights, const T* grad_out, const T* x,
                        const T* weights, int64_t num_tokens, int64_t num_kv_heads,
                        int64_t group_size, int64_t head_dim, double epsilon, int64_t num_chunks,
                        Wide<T>* workspace, const Stream& stream) {
  dispatch_head_dim(head_dim, [&]<int kValues>() {
    backward_kernel<kValues>
        <<<num_chunks, kWarpsPerChunk * kWarp, 2 * head_dim * sizeof(float), stream.cuda()>>>(
            grad_x, workspace, grad_out, x, weights, num_tokens,
            static_cast<int>(num_kv_heads * (group_size + 2)), static_cast<int>(group_size),
            static_cast<int>(head_dim), static_cast<float>(epsilon), num_chunks);
    CUDA_CHECK(cudaGetLastError());
  });
  add_chunks(grad_weights, workspace, 2 * head_dim, num_chunks, stream.cuda());
}

#define INSTANTIATE(T)                                                                           \
  template void head_norm_forward<Device::kCuda, T>(T*, const T*, const T*, int64_t, int64_t,    \
                                                    int64_t, int64_t, double, const Stream&);    \
  template void head_norm_backward<Device::kCuda, T>(T*, float*, const T*, const T*, const T*,   \
                                                     int64_t, int64_t, int64_t, int64_t, double, \
                                                     int64_t, float*, const Stream&);
INSTANTIATE(float)
INSTANTIATE(BFloat16)
#undef INSTANTIATE

}  // namespace mirabelle::backend
