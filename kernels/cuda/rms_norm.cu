#include "cuda/add_chunks.cuh"
#include "cuda/block_reduce.cuh"
#include "cuda/dropout_mask.cuh"
#include "mirabelle/kernels/rms_norm.h"

namespace mirabelle::backend {
namespace {

// A warp takes a row and keeps it in registers: kVectors times 8 elements per lane.
constexpr int kRowsPerBlock = 4;
constexpr int kWarpsPerChunk = 8;

/// The first element of a lane's vector number `v`.
__device__ int first_of(int v) { return (v * kWarp + threadIdx.x % kWarp) * kVector; }

template <int kVectors, bool kAligned, typename T>
__global__ void __launch_bounds__(kRowsPerBlock* kWarp)
    forward_kernel(T* out, T* residual_out, float* rstd, const T* residual, const T* branch,
                   const T* weight, int64_t num_tokens, int hidden_size, float epsilon,
                   DropoutArguments dropout) {
  const int64_t token = static_cast<int64_t>(blockIdx.x) * kRowsPerBlock + threadIdx.x / kWarp;
  if (token >= num_tokens) return;
  Vector x[kVectors];
  float squares = 0;
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    const int first = first_of(v);
    if (first >= hidden_size) continue;
    x[v] = load_vector<kAligned>(residual + token * hidden_size, first, hidden_size);
    if (branch) {
      const Vector b = load_vector<kAligned>(branch + token * hidden_size, first, hidden_size);
      const Vector keep = dropout_keep(dropout, token, first);
#pragma unroll
      for (int i = 0; i < kVector; ++i) {
        // as it will be read: rounded to T
        x[v].value[i] = static_cast<float>(T(x[v].value[i] + keep.value[i] * b.value[i]));
      }
      store_vector<kAligned>(residual_out + token * hidden_size, first, hidden_size, x[v]);
    }
#pragma unroll
    for (int i = 0; i < kVector; ++i) squares += x[v].value[i] * x[v].value[i];
  }
  squares = warp_reduce(squares, Add());
  const float r = 1 / sqrtf(squares / hidden_size + epsilon);
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    const int first = first_of(v);
    if (first >= hidden_size) continue;
    const Vector w = load_vector<kAligned>(weight, first, hidden_size);
#pragma unroll
    for (int i = 0; i < kVector; ++i) x[v].value[i] *= r * w.value[i];
    store_vector<kAligned>(out + token * hidden_size, first, hidden_size, x[v]);
  }
  if (threadIdx.x % kWarp == 0) rstd[token] = r;
}

/// A block takes a chunk of tokens, a warp every kWarpsPerChunk-th of it.
template <int kVectors, bool kAligned, typename T>
__global__ void __launch_bounds__(kWarpsPerChunk* kWarp)
    backward_kernel(T* grad_residual, T* grad_branch, const T* grad_out, const T* residual_out,
                    const float* rstd, const T* weight, int64_t num_tokens, int hidden_size,
                    int64_t num_chunks, DropoutArguments dropout, float* workspace) {
  extern __shared__ float weight_sums[];  // [hidden_size], of the warps so far
  const int64_t chunk = blockIdx.x;
  const int64_t begin = chunk * num_tokens / num_chunks;
  const int64_t end = (chunk + 1) * num_tokens / num_chunks;
  const int warp = threadIdx.x / kWarp;

  Vector w[kVectors], grad_w[kVectors] = {};
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    if (first_of(v) < hidden_size) w[v] = load_vector<kAligned>(weight, first_of(v), hidden_size);
  }
  for (int64_t token = begin + warp; token < end; token += kWarpsPerChunk) {
    const int64_t row = token * hidden_size;
    const float r = rstd[token];
    Vector x[kVectors], dy[kVectors];
    float dot = 0;
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const int first = first_of(v);
      if (first >= hidden_size) continue;
      x[v] = load_vector<kAligned>(residual_out + row, first, hidden_size);
      dy[v] = load_vector<kAligned>(grad_out + row, first, hidden_size);
#pragma unroll
      for (int i = 0; i < kVector; ++i) {
        grad_w[v].value[i] += dy[v].value[i] * x[v].value[i] * r;
        dot += dy[v].value[i] * w[v].value[i] * x[v].value[i];
      }
    }
    const float shrink = warp_reduce(dot, Add()) * r * r * r / hidden_size;
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const int first = first_of(v);
      if (first >= hidden_size) continue;
      Vector dx = load_vector<kAligned>(grad_residual + row, first, hidden_size);
#pragma unroll
      for (int i = 0; i < kVector; ++i) {
        dx.value[i] += dy[v].value[i] * w[v].value[i] * r - x[v].value[i] * shrink;
      }
      store_vector<kAligned>(grad_residual + row, first, hidden_size, dx);
      if (grad_branch) {
        const Vector keep = dropout_keep(dropout, token, first);
#pragma unroll
        for (int i = 0; i < kVector; ++i) dx.value[i] *= keep.value[i];
        store_vector<kAligned>(grad_branch + row, first, hidden_size, dx);
      }
    }
  }
  // One warp after the other, so that the order is fixed.
  for (int turn = 0; turn < kWarpsPerChunk; ++turn) {
    if (turn == warp) {
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
#pragma unroll
        for (int i = 0; i < kVector; ++i) {
          const int feature = first_of(v) + i;
          if (feature >= hidden_size) continue;
          weight_sums[feature] = (turn == 0 ? 0 : weight_sums[feature]) + grad_w[v].value[i];
        }
      }
    }
    __syncthreads();
  }
  for (int i = threadIdx.x; i < hidden_size; i += blockDim.x) {
    workspace[chunk * hidden_size + i] = weight_sums[i];
  }
}

/// Calls body.operator()<kVectors, kAligned>() for the number of vectors that a lane keeps.
template <typename Body>
void dispatch_hidden_size(int64_t hidden_size, bool aligned, Body&& body) {
  const int64_t vectors = ceil_div(hidden_size, kWarp * kVector);
  MIRABELLE_CHECK(vectors <= 16, "hidden_size is ", hidden_size, ", wanted at most ",
                  16 * kWarp * kVector, " on CUDA");
  if (!aligned) {  // odd sizes are for tests; two kernels are enough
    return vectors <= 1 ? body.template operator()<1, false>()
                        : body.template operator()<16, false>();
  }
  if (vectors <= 1) return body.template operator()<1, true>();
  if (vectors <= 2) return body.template operator()<2, true>();
  if (vectors <= 4) return body.template operator()<4, true>();
  if (vectors <= 8) return body.template operator()<8, true>();
  return body.template operator()<16, true>();
}

}  // namespace

template <Device D, typename T>
void residual_rms_norm_forward(T* out, T* residual_out, Wide<T>* rstd, const T* residual,
                               const T* branch, const T* weight, int64_t num_tokens,
                               int64_t hidden_size, double epsilon, const DropoutArguments& dropout,
                               const Stream& stream) {
  if (num_tokens == 0) return;
  const bool aligned = rows_are_aligned(hidden_size, {out, residual_out, residual, branch, weight});
  dispatch_hidden_size(hidden_size, aligned, [&]<int kVectors, bool kAligned>() {
    forward_kernel<kVectors, kAligned>
        <<<ceil_div(num_tokens, kRowsPerBlock), kRowsPerBlock * kWarp, 0, stream.cuda()>>>(
            out, residual_out, rstd, residual, branch, weight, num_tokens,
            static_cast<int>(hidden_size), static_cast<float>(epsilon), dropout);
    CUDA_CHECK(cudaGetLastError());
  });
}

template <Device D, typename T>
void residual_rms_norm_backward(T* grad_residual, T* grad_branch, Wide<T>* grad_weight,
                                const T* grad_out, const T* residual_out, const Wide<T>* rstd,
                                const T* weight, int64_t num_tokens, int64_t hidden_size,
                                int64_t num_chunks, const DropoutArguments& dropout,
                                Wide<T>* workspace, const Stream& stream) {
  if (num_tokens == 0) return;
  const int hidden = static_cast<int>(hidden_size);
  const bool aligned =
      rows_are_aligned(hidden_size, {grad_residual, grad_branch, grad_out, residual_out, weight});
  dispatch_hidden_size(hidden_size, aligned, [&]<int kVectors, bool kAligned>() {
    backward_kernel<kVectors, kAligned>
        <<<num_chunks, kWarpsPerChunk * kWarp, hidden * sizeof(float), stream.cuda()>>>(
            grad_residual, grad_branch, grad_out, residual_out, rstd, weight, num_tokens, hidden,
            num_chunks, dropout, workspace);
    CUDA_CHECK(cudaGetLastError());
  });
  add_chunks(grad_weight, workspace, hidden_size, num_chunks, stream.cuda());
}

#define INSTANTIATE(T)                                                                       \
  template void residual_rms_norm_forward<Device::kCuda, T>(                                 \
      T*, T*, float*, const T*, const T*, const T*, int64_t, int64_t, double,                \
      const DropoutArguments&, const Stream&);                                               \
  template void residual_rms_norm_backward<Device::kCuda, T>(                                \
      T*, T*, float*, const T*, const T*, const float*, const T*, int64_t, int64_t, int64_t, \
      const DropoutArguments&, float*, const Stream&);
INSTANTIATE(float)
INSTANTIATE(BFloat16)
#undef INSTANTIATE

}  // namespace mirabelle::backend
