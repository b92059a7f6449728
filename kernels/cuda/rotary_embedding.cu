#include "cuda/vector_load.cuh"
#include "mirabelle/kernels/rotary_embedding.h"

namespace mirabelle::backend {
namespace {

constexpr int kThreads = 256;

__global__ void fill_table_kernel(float* table, int64_t num_angles, int half, double theta) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (index >= num_angles) return;
  const int64_t position = index / half, i = index % half;
  const double angle = position * pow(theta, -1.0 * i / half);
  table[2 * index] = static_cast<float>(cos(angle));
  table[2 * index + 1] = static_cast<float>(sin(angle));
}

/// A thread rotates eight features of the first half of a head together with those of the second.
/// kAligned: half a head is a multiple of eight.
template <bool kAligned, typename T>
__global__ void __launch_bounds__(kThreads)
    rotate_kernel(T* qkv, const int32_t* positions, const float* table, int64_t num_vectors,
                  int rotated_heads, int group_size, int half, float direction) {
  int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (index >= num_vectors) return;
  const int vectors_per_head = (half + kVector - 1) / kVector;
  const int first = static_cast<int>(index % vectors_per_head) * kVector;
  index /= vectors_per_head;
  const int rotated = static_cast<int>(index % rotated_heads);  // queries and keys only
  const int64_t token = index / rotated_heads;
  const int kv_head = rotated / (group_size + 1), head = rotated % (group_size + 1);
  const int kv_heads = rotated_heads / (group_size + 1);
  T* x = qkv + ((token * kv_heads + kv_head) * (group_size + 2) + head) * 2 * half;

  const float* cos_sin = table + static_cast<int64_t>(positions[token]) * 2 * half;
  Vector low = load_vector<kAligned>(x, first, half);
  Vector high = load_vector<kAligned>(x + half, first, half);
  const Vector angles[2] = {load_vector<kAligned>(cos_sin, 2 * first, 2 * half),
                            load_vector<kAligned>(cos_sin, 2 * first + kVector, 2 * half)};
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    const float cosine = angles[i / 4].value[i % 4 * 2];
    const float sine = direction * angles[i / 4].value[i % 4 * 2 + 1];
    const float a = low.value[i], b = high.value[i];
    low.value[i] = a * cosine - b * sine;
    high.value[i] = a * sine + b * cosine;
  }
  store_vector<kAligned>(x, first, half, low);
  store_vector<kAligned>(x + half, first, half, high);
}

}  // namespace

template <Device D, typename T>
void fill_rotary_table(T* table, int64_t max_seq_len, int64_t head_dim, double theta,
                       const Stream& stream) {
  const int64_t num_angles = max_seq_len * (head_dim / 2);
  if (num_angles == 0) return;
  fill_table_kernel<<<ceil_div(num_angles, kThreads), kThreads, 0, stream.cuda()>>>(
      table, num_angles, static_cast<int>(head_dim / 2), theta);
  CUDA_CHECK(cudaGetLastError());
}

template <Device D, typename T>
void rotate_queries_and_keys(T* qkv, const int32_t* positions, const Wide<T>* table,
                             int64_t num_tokens, int64_t, int64_t num_kv_heads, int64_t group_size,
                             int64_t head_dim, bool backward, const Stream& stream) {
  const int half = static_cast<int>(head_dim / 2);
  const int64_t rotated_heads = num_kv_heads * (group_size + 1);
  const int64_t num_vectors = num_tokens * rotated_heads * ceil_div(half, kVector);
  if (num_vectors == 0) return;
  dispatch_flag(rows_are_aligned(half, {qkv, table}), [&]<bool kAligned>() {
    rotate_kernel<kAligned><<<ceil_div(num_vectors, kThreads), kThreads, 0, stream.cuda()>>>(
        qkv, positions, table, num_vectors, static_cast<int>(rotated_heads),
        static_cast<int>(group_size), half, backward ? -1.0f : 1.0f);
    CUDA_CHECK(cudaGetLastError());
  });
}

template void fill_rotary_table<Device::kCuda, float>(float*, int64_t, int64_t, double,
                                                      const Stream&);
#define INSTANTIATE(T)                                                                        \
  template void rotate_queries_and_keys<Device::kCuda, T>(T*, const int32_t*, const float*,   \
                                                          int64_t, int64_t, int64_t, int64_t, \
                                                          int64_t, bool, const Stream&);
INSTANTIATE(float)
INSTANTIATE(BFloat16)
#undef INSTANTIATE

}  // namespace mirabelle::backend
