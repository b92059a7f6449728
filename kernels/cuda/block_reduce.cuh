#pragma once

#include <cuda_runtime.h>

#include <limits>

namespace mirabelle::backend {

inline constexpr int kWarp = 32;
inline constexpr unsigned kAllLanes = 0xFFFFFFFF;
inline constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Add {
  template <typename T>
  __device__ T operator()(T a, T b) const {
    return a + b;
  }
};
struct Max {
  template <typename T>
  __device__ T operator()(T a, T b) const {
    return a > b ? a : b;
  }
};

/// The reduction over the lanes of a warp, in every lane, in a fixed order.
template <typename T, typename Op>
__device__ inline T warp_reduce(T value, Op op) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    value = op(value, __shfl_xor_sync(kAllLanes, value, distance));
  }
  return value;
}

/// The reduction over a block of kThreads threads, in every thread, in a fixed order. All threads
/// must call it.
template <int kThreads, typename T, typename Op>
__device__ inline T block_reduce(T value, Op op) {
  constexpr int kWarps = kThreads / kWarp;
  __shared__ T of_warp[kWarps];
  value = warp_reduce(value, op);
  __syncthreads();  // the results of the call before were read
  if (threadIdx.x % kWarp == 0) of_warp[threadIdx.x / kWarp] = value;
  __syncthreads();
  T total = of_warp[0];
#pragma unroll
  for (int warp = 1; warp < kWarps; ++warp) total = op(total, of_warp[warp]);
  return total;
}

}  // namespace mirabelle::backend
