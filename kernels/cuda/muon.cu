#include <algorithm>

#include "cuda/block_reduce.cuh"
#include "cuda/clip_scale.cuh"
#include "cuda/libraries.h"
#include "cuda/vector_load.cuh"
#include "mirabelle/kernels/muon.h"

namespace mirabelle::backend {
namespace {

constexpr int kThreads = 256;
constexpr int kMaxBlocks = 64;  // of one matrix

template <bool kAligned>
__global__ void __launch_bounds__(kThreads)
    momentum_kernel(float* direction, float* exp_avg, const float* grad, const double* grad_squares,
                    int64_t n, float momentum, float max_grad_norm, double max_good_norm) {
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kVector;
  if (first >= n) return;
  if (!is_good_norm(grad_squares, max_good_norm)) {
    store_vector<kAligned>(direction, first, n, Vector{});
    return;
  }
  const float grad_scale = clip_scale(grad_squares, max_grad_norm);
  Vector m = load_vector<kAligned>(exp_avg, first, n);
  const Vector g = load_vector<kAligned>(grad, first, n);
  Vector u;
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    const float scaled = grad_scale * g.value[i];
    m.value[i] = momentum * m.value[i] + scaled;
    u.value[i] = scaled + momentum * m.value[i];
  }
  store_vector<kAligned>(exp_avg, first, n, m);
  store_vector<kAligned>(direction, first, n, u);
}

template <bool kAligned, typename T>
__global__ void __launch_bounds__(kThreads)
    update_kernel(T* parameter, float* master, const float* direction, const double* grad_squares,
                  int64_t n, float step_size, float decay, double max_good_norm) {
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kVector;
  if (first >= n || !is_good_norm(grad_squares, max_good_norm)) return;
  Vector x =
      master ? load_vector<kAligned>(master, first, n) : load_vector<kAligned>(parameter, first, n);
  const Vector u = load_vector<kAligned>(direction, first, n);
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    x.value[i] -= step_size * u.value[i] + decay * x.value[i];
  }
  store_vector<kAligned>(parameter, first, n, x);
  if (master) store_vector<kAligned>(master, first, n, x);
}

/// squares[row, block] = the sum of squares of the elements that the block takes of the row
/// (blockIdx.y); which they are depends on n alone.
__global__ void __launch_bounds__(kThreads)
    squares_kernel(double* squares, const float* x, int64_t n) {
  const float* row = x + blockIdx.y * n;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  double total = 0;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < n; i += stride) {
    total += static_cast<double>(row[i]) * row[i];
  }
  total = block_reduce<kThreads>(total, Add());
  if (threadIdx.x == 0) squares[static_cast<int64_t>(blockIdx.y) * gridDim.x + blockIdx.x] = total;
}

/// With the grid of squares_kernel.
__global__ void __launch_bounds__(kThreads)
    normalise_kernel(float* out, const float* x, const double* squares, int64_t n) {
  const double of_block = threadIdx.x < gridDim.x
                              ? squares[static_cast<int64_t>(blockIdx.y) * gridDim.x + threadIdx.x]
                              : 0.0;
  const double total = block_reduce<kThreads>(of_block, Add());
  const double inverse = total > 0 ? 1 / sqrt(total) : 0.0;
  const int64_t begin = blockIdx.y * n;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < n; i += stride) {
    out[begin + i] = static_cast<float>(x[begin + i] * inverse);
  }
}

__global__ void __launch_bounds__(kThreads)
    quadratic_kernel(float* square, const float* gram, int64_t n, int64_t k, float a, float b,
                     float c) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= n) return;
  const bool on_diagonal = i / k % k == i % k;
  square[i] = b * gram[i] + c * square[i] + (on_diagonal ? a : 0.0f);
}

}  // namespace

template <Device D, typename W>
void muon_momentum(W* direction, W* exp_avg, const W* grad, const double* grad_squares, int64_t n,
                   const MuonStep& step, const Stream& stream) {
  split_by_alignment(n, {direction, exp_avg, grad}, [&]<bool kAligned>(int64_t begin, int64_t end) {
    const int64_t num_vectors = ceil_div(end - begin, kVector);
    momentum_kernel<kAligned><<<ceil_div(num_vectors, kThreads), kThreads, 0, stream.cuda()>>>(
        direction + begin, exp_avg + begin, grad + begin, grad_squares, end - begin,
        static_cast<float>(step.momentum), static_cast<float>(step.max_grad_norm),
        step.max_good_norm);
    CUDA_CHECK(cudaGetLastError());
  });
}

template <Device D, typename W>
void normalise_rows(W* out, const W* x, int64_t count, int64_t n, const Stream& stream) {
  if (count * n == 0) return;
  const int64_t blocks = std::min<int64_t>(ceil_div(n, kThreads * kVector), kMaxBlocks);
  const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(count));
  auto* squares =
      static_cast<double*>(libraries_of(stream).workspace(count * blocks * sizeof(double)));
  squares_kernel<<<grid, kThreads, 0, stream.cuda()>>>(squares, x, n);
  CUDA_CHECK(cudaGetLastError());
  normalise_kernel<<<grid, kThreads, 0, stream.cuda()>>>(out, x, squares, n);
  CUDA_CHECK(cudaGetLastError());
}

template <Device D, typename W>
void quadratic(W* square, const W* gram, int64_t count, int64_t k, double a, double b, double c,
               const Stream& stream) {
  const int64_t n = count * k * k;
  if (n == 0) return;
  quadratic_kernel<<<ceil_div(n, kThreads), kThreads, 0, stream.cuda()>>>(
      square, gram, n, k, static_cast<float>(a), static_cast<float>(b), static_cast<float>(c));
  CUDA_CHECK(cudaGetLastError());
}

template <Device D, typename T>
void muon_update(T* parameter, Wide<T>* master, const Wide<T>* direction,
                 const double* grad_squares, int64_t n, double scale, const MuonStep& step,
                 const Stream& stream) {
  const auto step_size = static_cast<float>(step.learning_rate * scale);
  const auto decay = static_cast<float>(step.learning_rate * step.weight_decay);
  split_by_alignment(
      n, {parameter, master, direction}, [&]<bool kAligned>(int64_t begin, int64_t end) {
        const int64_t num_vectors = ceil_div(end - begin, kVector);
        update_kernel<kAligned><<<ceil_div(num_vectors, kThreads), kThreads, 0, stream.cuda()>>>(
            parameter + begin, master ? master + begin : nullptr, direction + begin, grad_squares,
            end - begin, step_size, decay, step.max_good_norm);
        CUDA_CHECK(cudaGetLastError());
      });
}

template void muon_momentum<Device::kCuda>(float*, float*, const float*, const double*, int64_t,
                                           const MuonStep&, const Stream&);
template void normalise_rows<Device::kCuda>(float*, const float*, int64_t, int64_t, const Stream&);
template void quadratic<Device::kCuda>(float*, const float*, int64_t, int64_t, double, double,
                                       double, const Stream&);
#define INSTANTIATE(T)                                                                          \
  template void muon_update<Device::kCuda, T>(T*, float*, const float*, const double*, int64_t, \
                                              double, const MuonStep&, const Stream&);
INSTANTIATE(float)
INSTANTIATE(BFloat16)
#undef INSTANTIATE

}  // namespace mirabelle::backend
