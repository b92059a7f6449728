#include <algorithm>

#include "cuda/block_reduce.cuh"
#include "cuda/libraries.h"
#include "cuda/vector_load.cuh"
#include "fixed_point.h"
#include "mirabelle/kernels/reduce.h"

namespace mirabelle::backend {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 512;

int64_t blocks_of(int64_t n) { return ceil_div(n, kThreads * kVector); }

struct Identity {
  __device__ double operator()(float x) const { return x; }
};
struct Square {
  __device__ double operator()(float x) const { return static_cast<double>(x) * x; }
};

/// partial[block] = sum of the block's vectors; which they are depends on n alone.
template <bool kAligned, typename T, typename Term>
__global__ void __launch_bounds__(kThreads)
    partial_kernel(double* partial, const T* x, int64_t n, Term term) {
  double total = 0;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads * kVector;
  for (int64_t first = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kVector;
       first < n; first += stride) {
    // past the end there are zeros; the aligned path never gets there
    const Vector values = load_vector<kAligned>(x, first, n);
#pragma unroll
    for (int i = 0; i < kVector; ++i) total += term(values.value[i]);
  }
  total = block_reduce<kThreads>(total, Add());
  if (threadIdx.x == 0) partial[blockIdx.x] = total;
}

__global__ void __launch_bounds__(kThreads)
    total_kernel(double* out, const double* partial, int64_t num_partials, bool accumulate) {
  double total = 0;
  for (int64_t i = threadIdx.x; i < num_partials; i += kThreads) total += partial[i];
  total = block_reduce<kThreads>(total, Add());
  if (threadIdx.x == 0) *out = accumulate ? *out + total : total;
}

template <typename T, typename Term>
void reduce(double* out, const T* x, int64_t n, Term term, bool accumulate, const Stream& stream) {
  const int64_t blocks = std::clamp<int64_t>(blocks_of(n), 1, kMaxBlocks);
  auto* partial = static_cast<double*>(libraries_of(stream).workspace(kMaxBlocks * sizeof(double)));
  dispatch_flag(rows_are_aligned(n, {x}), [&]<bool kAligned>() {
    partial_kernel<kAligned><<<blocks, kThreads, 0, stream.cuda()>>>(partial, x, n, term);
    CUDA_CHECK(cudaGetLastError());
  });
  total_kernel<<<1, kThreads, 0, stream.cuda()>>>(out, partial, blocks, accumulate);
  CUDA_CHECK(cudaGetLastError());
}

// The bits of numbers that are not negative are in the order of the numbers.
template <bool kAligned, typename T>
__global__ void __launch_bounds__(kThreads)
    max_magnitude_kernel(unsigned long long* out, const T* x, int64_t n) {
  float largest = 0;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads * kVector;
  for (int64_t first = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kVector;
       first < n; first += stride) {
    const Vector values = load_vector<kAligned>(x, first, n);
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      largest = fmaxf(largest, isfinite(values.value[i]) ? fabsf(values.value[i]) : kInfinity);
    }
  }
  const double of_block = block_reduce<kThreads>(largest, Max());
  if (threadIdx.x == 0) {
    atomicMax(out, static_cast<unsigned long long>(__double_as_longlong(of_block)));
  }
}

// Integers: the order of the atomic additions does not show.
template <bool kAligned, typename T>
__global__ void __launch_bounds__(kThreads)
    squares_kernel(unsigned long long* sums, const T* x, int64_t n, const double* largest) {
  if (!has_squares(*largest)) return;
  const double factor = fixed_point_factor(*largest);
  unsigned long long high = 0, low = 0;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads * kVector;
  for (int64_t first = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kVector;
       first < n; first += stride) {
    const Vector values = load_vector<kAligned>(x, first, n);
    unsigned long long partial_sum = 0;  // of terms below 2^50
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      const double scaled = values.value[i] * factor;
      partial_sum += static_cast<unsigned long long>(scaled * scaled);
    }
    high += partial_sum >> 32;
    low += partial_sum & 0xFFFFFFFF;
  }
  high = block_reduce<kThreads>(high, Add());
  low = block_reduce<kThreads>(low, Add());
  if (threadIdx.x == 0) {
    atomicAdd(sums, high);
    atomicAdd(sums + 1, low);
  }
}

__global__ void value_kernel(double* out, const int64_t* sums, const double* largest) {
  *out = fixed_point_value(sums[0], sums[1], *largest);
}

__device__ Vector operator+(const Vector& a, const Vector& b) {
  Vector sum;
#pragma unroll
  for (int i = 0; i < kVector; ++i) sum.value[i] = a.value[i] + b.value[i];
  return sum;
}

/// A thread takes eight columns. It counts the rows in binary: level[l] has the sum of 2^l
/// neighbours that waits for the next 2^l.
template <bool kAligned, typename T, typename X>
__global__ void __launch_bounds__(kThreads)
    tree_sum_kernel(T* out, const X* x, int count, int64_t n) {
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kVector;
  if (first >= n) return;
  Vector level[31];
  Vector sum;
  for (int row = 0; row < count; ++row) {
    sum = load_vector<kAligned>(x + row * n, first, n);
    int l = 0;
    for (; row >> l & 1; ++l) sum = level[l] + sum;
    level[l] = sum;
  }
  // What waits, from the last and smallest; `sum` has the first of these already.
  for (int l = __ffs(count); count >> l != 0; ++l) {
    if (count >> l & 1) sum = level[l] + sum;
  }
  store_vector<kAligned>(out, first, n, sum);
}

template <bool kAligned, typename T>
__global__ void __launch_bounds__(kThreads) add_kernel(T* out, const T* x, int64_t n) {
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kVector;
  if (first >= n) return;
  store_vector<kAligned>(out, first, n,
                         load_vector<kAligned>(out, first, n) + load_vector<kAligned>(x, first, n));
}

template <bool kAligned, typename T>
__global__ void __launch_bounds__(kThreads)
    scale_kernel(T* out, const T* x, float factor, bool accumulate, int64_t n) {
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kVector;
  if (first >= n) return;
  Vector values = load_vector<kAligned>(x, first, n);
#pragma unroll
  for (int i = 0; i < kVector; ++i) values.value[i] *= factor;
  if (accumulate) values = load_vector<kAligned>(out, first, n) + values;
  store_vector<kAligned>(out, first, n, values);
}

}  // namespace

template <Device D, typename T>
void max_magnitude(double* out, const T* x, int64_t n, const Stream& stream) {
  if (n == 0) return;
  dispatch_flag(rows_are_aligned(n, {x}), [&]<bool kAligned>() {
    max_magnitude_kernel<kAligned>
        <<<std::min(blocks_of(n), kMaxBlocks), kThreads, 0, stream.cuda()>>>(
            reinterpret_cast<unsigned long long*>(out), x, n);
    CUDA_CHECK(cudaGetLastError());
  });
}

template <Device D, typename T>
void add_fixed_point_squares(int64_t* sums, const T* x, int64_t n, const double* largest,
                             const Stream& stream) {
  if (n == 0) return;
  dispatch_flag(rows_are_aligned(n, {x}), [&]<bool kAligned>() {
    squares_kernel<kAligned><<<std::min(blocks_of(n), kMaxBlocks), kThreads, 0, stream.cuda()>>>(
        reinterpret_cast<unsigned long long*>(sums), x, n, largest);
    CUDA_CHECK(cudaGetLastError());
  });
}

template <>
void fixed_point_value<Device::kCuda>(double* out, const int64_t* sums, const double* largest,
                                      const Stream& stream) {
  value_kernel<<<1, 1, 0, stream.cuda()>>>(out, sums, largest);
  CUDA_CHECK(cudaGetLastError());
}

template <Device D, typename T, typename X>
void tree_sum(T* out, const X* x, int64_t count, int64_t n, const Stream& stream) {
  if (n == 0) return;
  dispatch_flag(rows_are_aligned(n, {out, x}), [&]<bool kAligned>() {
    tree_sum_kernel<kAligned>
        <<<blocks_of(n), kThreads, 0, stream.cuda()>>>(out, x, static_cast<int>(count), n);
    CUDA_CHECK(cudaGetLastError());
  });
}

template <Device D, typename T>
void add(T* out, const T* x, int64_t n, const Stream& stream) {
  if (n == 0) return;
  dispatch_flag(rows_are_aligned(n, {out, x}), [&]<bool kAligned>() {
    add_kernel<kAligned><<<blocks_of(n), kThreads, 0, stream.cuda()>>>(out, x, n);
    CUDA_CHECK(cudaGetLastError());
  });
}

template <Device D, typename T>
void scale_by(T* out, const T* x, double factor, bool accumulate, int64_t n, const Stream& stream) {
  if (n == 0) return;
  dispatch_flag(rows_are_aligned(n, {out, x}), [&]<bool kAligned>() {
    scale_kernel<kAligned><<<blocks_of(n), kThreads, 0, stream.cuda()>>>(
        out, x, static_cast<float>(factor), accumulate, n);
    CUDA_CHECK(cudaGetLastError());
  });
}

template <Device D, typename T>
void add_sum(double* out, const T* x, int64_t n, const Stream& stream) {
  reduce(out, x, n, Identity(), /*accumulate=*/true, stream);
}

template <Device D, typename T>
void sum_of_squares(double* out, const T* x, int64_t n, const Stream& stream) {
  reduce(out, x, n, Square(), /*accumulate=*/false, stream);
}

template <>
void fill_zero<Device::kCuda>(void* x, int64_t bytes, const Stream& stream) {
  CUDA_CHECK(cudaMemsetAsync(x, 0, bytes, stream.cuda()));
}

template void tree_sum<Device::kCuda>(BFloat16*, const float*, int64_t, int64_t, const Stream&);
#define INSTANTIATE(T)                                                                             \
  template void max_magnitude<Device::kCuda>(double*, const T*, int64_t, const Stream&);           \
  template void add_fixed_point_squares<Device::kCuda>(int64_t*, const T*, int64_t, const double*, \
                                                       const Stream&);                             \
  template void tree_sum<Device::kCuda>(T*, const T*, int64_t, int64_t, const Stream&);            \
  template void add<Device::kCuda>(T*, const T*, int64_t, const Stream&);                          \
  template void scale_by<Device::kCuda>(T*, const T*, double, bool, int64_t, const Stream&);       \
  template void add_sum<Device::kCuda, T>(double*, const T*, int64_t, const Stream&);              \
  template void sum_of_squares<Device::kCuda, T>(double*, const T*, int64_t, const Stream&);
INSTANTIATE(float)
INSTANTIATE(BFloat16)
#undef INSTANTIATE

}  // namespace mirabelle::backend
