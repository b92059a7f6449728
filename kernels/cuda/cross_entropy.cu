#include "cuda/block_reduce.cuh"
#include "cuda/vector_load.cuh"
#include "mirabelle/kernels/cross_entropy.h"
#include "target_distribution.h"

namespace mirabelle::backend {
namespace {

// A block takes a row. It is read twice; the second time it comes from the cache.
constexpr int kThreads = 256;
constexpr int kStride = kThreads * kVector;

/// The largest logit of the row and the sum of exp(logit - largest), in every thread.
struct RowSum {
  float largest, sum;
};

template <bool kAligned, typename T>
__device__ RowSum sum_row(const T* row, int64_t vocab_size) {
  float largest = -kInfinity, sum = 0;  // of this thread's elements
  for (int64_t first = threadIdx.x * kVector; first < vocab_size; first += kStride) {
    const Vector x = load_vector<kAligned>(row, first, vocab_size);
    float new_largest = largest;
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      if (first + i < vocab_size) new_largest = fmaxf(new_largest, x.value[i]);
    }
    // As long as all were -infinity (or NaN, which must come through) there is nothing to rescale.
    const float shift = new_largest == -kInfinity ? 0 : new_largest;
    if (largest != -kInfinity) sum *= expf(largest - shift);
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      if (first + i < vocab_size) sum += expf(x.value[i] - shift);
    }
    largest = new_largest;
  }
  const float of_row = block_reduce<kThreads>(largest, Max());
  if (largest != -kInfinity) sum *= expf(largest - of_row);
  return {of_row, block_reduce<kThreads>(sum, Add())};
}

__device__ bool is_of_level(int64_t token, const TargetDistribution<float>& wanted) {
  return wanted.level_begin <= token && token < wanted.level_end;
}

template <bool kAligned, typename T>
__global__ void __launch_bounds__(kThreads)
    cross_entropy_kernel(float* loss, T* logits, const int32_t* targets, int64_t vocab_size,
                         const double* grad_scale, RowOptions<float> options) {
  T* row = logits + static_cast<int64_t>(blockIdx.x) * vocab_size;
  const int32_t target = targets[blockIdx.x];
  if (target < 0) {
    for (int64_t first = threadIdx.x * kVector; first < vocab_size; first += kStride) {
      store_vector<kAligned>(row, first, vocab_size, Vector{});
    }
    if (threadIdx.x == 0) loss[blockIdx.x] = 0;
    return;
  }
  const float target_logit = static_cast<float>(row[target]);
  const RowSum total = sum_row<kAligned>(row, vocab_size);
  const auto wanted = target_distribution(options, blockIdx.x, target, *grad_scale);
  const float factor = wanted.scale / total.sum;
  for (int64_t first = threadIdx.x * kVector; first < vocab_size; first += kStride) {
    Vector x = load_vector<kAligned>(row, first, vocab_size);
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      x.value[i] = expf(x.value[i] - total.largest) * factor;
      if (is_of_level(first + i, wanted)) x.value[i] -= wanted.of_level;
      if (first + i == target) x.value[i] -= wanted.of_target;
    }
    store_vector<kAligned>(row, first, vocab_size, x);
  }
  if (threadIdx.x == 0) loss[blockIdx.x] = logf(total.sum) - (target_logit - total.largest);
}

template <bool kAligned, typename T>
__global__ void __launch_bounds__(kThreads)
    shard_maximum_kernel(float* largest, const T* logits, bool accumulate, int64_t shard_size) {
  const T* row = logits + blockIdx.x * shard_size;
  float of_thread = -kInfinity;
  for (int64_t first = threadIdx.x * kVector; first < shard_size; first += kStride) {
    const Vector x = load_vector<kAligned>(row, first, shard_size);
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      if (first + i < shard_size) of_thread = fmaxf(of_thread, x.value[i]);
    }
  }
  const float of_row = block_reduce<kThreads>(of_thread, Max());
  if (threadIdx.x > 0) return;
  largest[blockIdx.x] = accumulate ? fmaxf(largest[blockIdx.x], of_row) : of_row;
}

template <bool kAligned, typename T>
__global__ void __launch_bounds__(kThreads)
    shard_sums_kernel(float* sums, const T* logits, const float* largest, const int32_t* targets,
                      int64_t shard_size, int64_t first_token) {
  const T* row = logits + blockIdx.x * shard_size;
  const float shift = largest[blockIdx.x];
  float of_thread = 0;
  for (int64_t first = threadIdx.x * kVector; first < shard_size; first += kStride) {
    const Vector x = load_vector<kAligned>(row, first, shard_size);
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      if (first + i < shard_size) of_thread += expf(x.value[i] - shift);
    }
  }
  const float of_row = block_reduce<kThreads>(of_thread, Add());
  if (threadIdx.x != 0) return;
  const int64_t target = targets[blockIdx.x] - first_token;
  const bool is_here = 0 <= target && target < shard_size;
  sums[blockIdx.x] = of_row;
  sums[gridDim.x + blockIdx.x] = is_here ? static_cast<float>(row[target]) - shift : 0;
}

template <bool kAligned, typename T>
__global__ void __launch_bounds__(kThreads)
    shard_gradient_kernel(float* loss, T* logits, const float* largest, const float* sums,
                          const int32_t* targets, int64_t shard_size, int64_t first_token,
                          const double* grad_scale, RowOptions<float> options) {
  T* row = logits + blockIdx.x * shard_size;
  const bool counts = targets[blockIdx.x] >= 0;
  const int64_t target = targets[blockIdx.x] - first_token;
  const float shift = largest[blockIdx.x];
  const auto wanted = target_distribution(options, blockIdx.x, targets[blockIdx.x], *grad_scale);
  const float factor = wanted.scale / sums[blockIdx.x];
  for (int64_t first = threadIdx.x * kVector; first < shard_size; first += kStride) {
    Vector x = {};
    if (counts) {
      x = load_vector<kAligned>(row, first, shard_size);
#pragma unroll
      for (int i = 0; i < kVector; ++i) {
        x.value[i] = expf(x.value[i] - shift) * factor;
        if (is_of_level(first_token + first + i, wanted)) x.value[i] -= wanted.of_level;
        if (first + i == target) x.value[i] -= wanted.of_target;
      }
    }
    store_vector<kAligned>(row, first, shard_size, x);
  }
  if (threadIdx.x == 0) {
    loss[blockIdx.x] = counts ? logf(sums[blockIdx.x]) - sums[gridDim.x + blockIdx.x] : 0;
  }
}

template <bool kAligned, typename T>
__global__ void __launch_bounds__(kThreads) log_softmax_kernel(T* logits, int64_t vocab_size) {
  T* row = logits + static_cast<int64_t>(blockIdx.x) * vocab_size;
  const RowSum total = sum_row<kAligned>(row, vocab_size);
  const float log_sum = logf(total.sum);
  for (int64_t first = threadIdx.x * kVector; first < vocab_size; first += kStride) {
    Vector x = load_vector<kAligned>(row, first, vocab_size);
#pragma unroll
    for (int i = 0; i < kVector; ++i) x.value[i] = (x.value[i] - total.largest) - log_sum;
    store_vector<kAligned>(row, first, vocab_size, x);
  }
}

}  // namespace

template <Device D, typename T>
void softmax_cross_entropy(Wide<T>* loss, T* logits, const int32_t* targets, int64_t num_tokens,
                           int64_t vocab_size, const double* grad_scale,
                           const RowOptions<Wide<T>>& options, const Stream& stream) {
  if (num_tokens == 0) return;
  dispatch_flag(rows_are_aligned(vocab_size, {logits}), [&]<bool kAligned>() {
    cross_entropy_kernel<kAligned><<<num_tokens, kThreads, 0, stream.cuda()>>>(
        loss, logits, targets, vocab_size, grad_scale, options);
    CUDA_CHECK(cudaGetLastError());
  });
}

template <Device D, typename T>
void shard_maximum(Wide<T>* largest, const T* logits, bool accumulate, int64_t num_tokens,
                   int64_t shard_size, const Stream& stream) {
  if (num_tokens == 0) return;
  dispatch_flag(rows_are_aligned(shard_size, {logits}), [&]<bool kAligned>() {
    shard_maximum_kernel<kAligned>
        <<<num_tokens, kThreads, 0, stream.cuda()>>>(largest, logits, accumulate, shard_size);
    CUDA_CHECK(cudaGetLastError());
  });
}

template <Device D, typename T>
void shard_sums(Wide<T>* sums, const T* logits, const Wide<T>* largest, const int32_t* targets,
                int64_t num_tokens, int64_t shard_size, int64_t first_token, const Stream& stream) {
  if (num_tokens == 0) return;
  dispatch_flag(rows_are_aligned(shard_size, {logits}), [&]<bool kAligned>() {
    shard_sums_kernel<kAligned><<<num_tokens, kThreads, 0, stream.cuda()>>>(
        sums, logits, largest, targets, shard_size, first_token);
    CUDA_CHECK(cudaGetLastError());
  });
}

template <Device D, typename T>
void shard_gradient(Wide<T>* loss, T* logits, const Wide<T>* largest, const Wide<T>* sums,
                    const int32_t* targets, int64_t num_tokens, int64_t shard_size,
                    int64_t first_token, const double* grad_scale,
                    const RowOptions<Wide<T>>& options, const Stream& stream) {
  if (num_tokens == 0) return;
  dispatch_flag(rows_are_aligned(shard_size, {logits}), [&]<bool kAligned>() {
    shard_gradient_kernel<kAligned><<<num_tokens, kThreads, 0, stream.cuda()>>>(
        loss, logits, largest, sums, targets, shard_size, first_token, grad_scale, options);
    CUDA_CHECK(cudaGetLastError());
  });
}

template <Device D, typename T>
void log_softmax(T* logits, int64_t num_rows, int64_t vocab_size, const Stream& stream) {
  if (num_rows * vocab_size == 0) return;
  dispatch_flag(rows_are_aligned(vocab_size, {logits}), [&]<bool kAligned>() {
    log_softmax_kernel<kAligned><<<num_rows, kThreads, 0, stream.cuda()>>>(logits, vocab_size);
    CUDA_CHECK(cudaGetLastError());
  });
}

#define INSTANTIATE(T)                                                                            \
  template void softmax_cross_entropy<Device::kCuda, T>(float*, T*, const int32_t*, int64_t,      \
                                                        int64_t, const double*,                   \
                                                        const RowOptions<float>&, const Stream&); \
  template void shard_maximum<Device::kCuda, T>(float*, const T*, bool, int64_t, int64_t,         \
                                                const Stream&);                                   \
  template void shard_sums<Device::kCuda, T>(float*, const T*, const float*, const int32_t*,      \
                                             int64_t, int64_t, int64_t, const Stream&);           \
  template void shard_gradient<Device::kCuda, T>(                                                 \
      float*, T*, const float*, const float*, const int32_t*, int64_t, int64_t, int64_t,          \
      const double*, const RowOptions<float>&, const Stream&);                                    \
  template void log_softmax<Device::kCuda, T>(T*, int64_t, int64_t, const Stream&);
INSTANTIATE(float)
INSTANTIATE(BFloat16)
#undef INSTANTIATE

}  // namespace mirabelle::backend
