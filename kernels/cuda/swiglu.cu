#include "cuda/vector_load.cuh"
#include "mirabelle/kernels/swiglu.h"

namespace mirabelle::backend {
namespace {

constexpr int kThreads = 256;

/// Where a thread's eight elements are: row = token and block, `first` within the block's row.
struct Place {
  int64_t row;
  int first;
};
__device__ Place place_of_thread(int vectors_per_row) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  return {index / vectors_per_row, static_cast<int>(index % vectors_per_row) * kVector};
}

__device__ float sigmoid(float x) { return 1 / (1 + __expf(-x)); }

template <bool kAligned, typename T>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(T* out, const T* gate_up, int64_t num_rows, int block_size,
                   int vectors_per_row) {
  const Place place = place_of_thread(vectors_per_row);
  if (place.row >= num_rows) return;
  const T* row = gate_up + place.row * 2 * block_size;
  Vector gate = load_vector<kAligned>(row, place.first, block_size);
  const Vector up = load_vector<kAligned>(row + block_size, place.first, block_size);
#pragma unroll
  for (int i = 0; i < kVector; ++i) gate.value[i] *= sigmoid(gate.value[i]) * up.value[i];
  store_vector<kAligned>(out + place.row * block_size, place.first, block_size, gate);
}

template <bool kAligned, typename T>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(T* grad_gate_up, const T* grad_out, const T* gate_up, int64_t num_rows,
                    int block_size, int vectors_per_row) {
  const Place place = place_of_thread(vectors_per_row);
  if (place.row >= num_rows) return;
  const int64_t offset = place.row * 2 * block_size;
  Vector gate = load_vector<kAligned>(gate_up + offset, place.first, block_size);
  Vector up = load_vector<kAligned>(gate_up + offset + block_size, place.first, block_size);
  const Vector dy =
      load_vector<kAligned>(grad_out + place.row * block_size, place.first, block_size);
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    const float s = sigmoid(gate.value[i]), silu = gate.value[i] * s;
    gate.value[i] = dy.value[i] * up.value[i] * (s + silu * (1 - s));
    up.value[i] = dy.value[i] * silu;
  }
  store_vector<kAligned>(grad_gate_up + offset, place.first, block_size, gate);
  store_vector<kAligned>(grad_gate_up + offset + block_size, place.first, block_size, up);
}

}  // namespace

template <Device D, typename T>
void swiglu_forward(T* out, const T* gate_up, int64_t num_tokens, int64_t num_blocks,
                    int64_t block_size, const Stream& stream) {
  const int64_t num_rows = num_tokens * num_blocks, vectors = ceil_div(block_size, kVector);
  if (num_rows * vectors == 0) return;
  dispatch_flag(rows_are_aligned(block_size, {out, gate_up}), [&]<bool kAligned>() {
    forward_kernel<kAligned>
        <<<ceil_div(num_rows * vectors, kThreads), kThreads, 0, stream.cuda()>>>(
            out, gate_up, num_rows, static_cast<int>(block_size), static_cast<int>(vectors));
    CUDA_CHECK(cudaGetLastError());
  });
}

template <Device D, typename T>
void swiglu_backward(T* grad_gate_up, const T* grad_out, const T* gate_up, int64_t num_tokens,
                     int64_t num_blocks, int64_t block_size, const Stream& stream) {
  const int64_t num_rows = num_tokens * num_blocks, vectors = ceil_div(block_size, kVector);
  if (num_rows * vectors == 0) return;
  dispatch_flag(rows_are_aligned(block_size, {grad_gate_up, grad_out, gate_up}),
                [&]<bool kAligned>() {
                  backward_kernel<kAligned>
                      <<<ceil_div(num_rows * vectors, kThreads), kThreads, 0, stream.cuda()>>>(
                          grad_gate_up, grad_out, gate_up, num_rows, static_cast<int>(block_size),
                          static_cast<int>(vectors));
                  CUDA_CHECK(cudaGetLastError());
                });
}

#define INSTANTIATE(T)                                                                      \
  template void swiglu_forward<Device::kCuda, T>(T*, const T*, int64_t, int64_t, int64_t,   \
                                                 const Stream&);                            \
  template void swiglu_backward<Device::kCuda, T>(T*, const T*, const T*, int64_t, int64_t, \
                                                  int64_t, const Stream&);
INSTANTIATE(float)
INSTANTIATE(BFloat16)
#undef INSTANTIATE

}  // namespace mirabelle::backend
