#include "cuda/vector_load.cuh"
#include "mirabelle/kernels/rotary_embedding.h"
#include "projected_head.h"

namespace mirabelle::backend {
namespace {

constexpr int kThreads = 256;

/// Forward from the projection's layout to that of attention, or back. A thread takes eight
/// features of the first half of a head together with those of the second. kAligned: half a head is
/// a multiple of eight.
template <bool kForward, bool kAligned, typename T>
__global__ void __launch_bounds__(kThreads)
    split_kernel(T* to, const T* from, const int32_t* positions, const float* table,
                 int64_t num_vectors, int num_kv_heads, int group_size, int half) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (index >= num_vectors) return;
  const int vectors_per_head = (half + kVector - 1) / kVector;
  const int num_heads = num_kv_heads * (group_size + 2);
  const int64_t token = index / (num_heads * vectors_per_head);
  const int in_token = static_cast<int>(index % (num_heads * vectors_per_head));
  const int head = in_token / vectors_per_head;  // in the layout of attention
  const int first = in_token % vectors_per_head * kVector;
  const int64_t split = (token * num_heads + head) * 2 * half;
  const int64_t fused =
      (token * num_heads + projected_head(head, num_kv_heads, group_size)) * 2 * half;
  const T* x = from + (kForward ? fused : split);
  T* y = to + (kForward ? split : fused);

  Vector low = load_vector<kAligned>(x, first, half);
  Vector high = load_vector<kAligned>(x + half, first, half);
  if (head < num_heads - num_kv_heads) {  // no value
    const float* cos_sin = table + static_cast<int64_t>(positions[token]) * 2 * half;
    const Vector angles[2] = {load_vector<kAligned>(cos_sin, 2 * first, 2 * half),
                              load_vector<kAligned>(cos_sin, 2 * first + kVector, 2 * half)};
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      const float cosine = angles[i / 4].value[i % 4 * 2];
      const float sine = (kForward ? 1 : -1) * angles[i / 4].value[i % 4 * 2 + 1];
      const float a = low.value[i], b = high.value[i];
      low.value[i] = a * cosine - b * sine;
      high.value[i] = a * sine + b * cosine;
    }
  }
  store_vector<kAligned>(y, first, half, low);
  store_vector<kAligned>(y + half, first, half, high);
}

template <bool kForward, typename T>
void launch_split(T* to, const T* from, const int32_t* positions, const float* table,
                  int64_t num_tokens, int64_t num_kv_heads, int64_t group_size, int64_t head_dim,
                  const Stream& stream) {
  const int64_t half = head_dim / 2;
  const int64_t num_vectors =
      num_tokens * num_kv_heads * (group_size + 2) * ceil_div(half, kVector);
  if (num_vectors == 0) return;
  dispatch_flag(rows_are_aligned(half, {to, from, table}), [&]<bool kAligned>() {
    split_kernel<kForward, kAligned>
        <<<ceil_div(num_vectors, kThreads), kThreads, 0, stream.cuda()>>>(
            to, from, positions, table, num_vectors, static_cast<int>(num_kv_heads),
            static_cast<int>(group_size), static_cast<int>(half));
    CUDA_CHECK(cudaGetLastError());
  });
}

}  // namespace

template <Device D, typename T>
void split_and_rotate(T* qkv, const T* projected, const int32_t* positions, const Wide<T>* table,
                      int64_t num_tokens, int64_t, int64_t num_kv_heads, int64_t group_size,
                      int64_t head_dim, const Stream& stream) {
  launch_split<true>(qkv, projected, positions, table, num_tokens, num_kv_heads, group_size,
                     head_dim, stream);
}

template <Device D, typename T>
void split_and_rotate_backward(T* grad_projected, const T* grad_qkv, const int32_t* positions,
                               const Wide<T>* table, int64_t num_tokens, int64_t,
                               int64_t num_kv_heads, int64_t group_size, int64_t head_dim,
                               const Stream& stream) {
  launch_split<false>(grad_projected, grad_qkv, positions, table, num_tokens, num_kv_heads,
                      group_size, head_dim, stream);
}

#define INSTANTIATE(T)                                                                          \
  template void split_and_rotate<Device::kCuda, T>(T*, const T*, const int32_t*, const float*,  \
                                                   int64_t, int64_t, int64_t, int64_t, int64_t, \
                                                   const Stream&);                              \
  template void split_and_rotate_backward<Device::kCuda, T>(                                    \
      T*, const T*, const int32_t*, const float*, int64_t, int64_t, int64_t, int64_t, int64_t,  \
      const Stream&);
INSTANTIATE(float)
INSTANTIATE(BFloat16)
#undef INSTANTIATE

}  // namespace mirabelle::backend
