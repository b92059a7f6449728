#pragma once

// CUDA's device language for a C++ compiler, as far as our kernels use it, so that they run on a
// CPU: convert.py turns <<<...>>> into emulation::launch(), and this file, included before every
// other, gives the words a meaning. The threads of a block are fibers that take turns: each runs
// until it meets a barrier or an exchange within its warp. Blocks run one after the other.
//
// This shows whether kernels compute what they should, that they meet at barriers, and most of what
// a missing barrier breaks. It shows no races between warps in other orders, and no speed.

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <type_traits>

#undef __global__
#undef __device__
#undef __host__
#undef __shared__
#undef __launch_bounds__
#undef __align__
#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __launch_bounds__(...)
#define __align__(n) alignas(n)

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

namespace emulation {

/// Runs `work` now or, while a stream is captured, with the graph.
void enqueue(std::function<void()> work);

/// All threads of all blocks. The dynamic shared memory of a block is filled with NaN first.
void run_grid(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& thread);
unsigned char* dynamic_shared_memory();

void block_barrier();
void warp_barrier();
/// 16 bytes of a lane of the calling thread's warp.
void* slot_of_lane(unsigned lane);

template <typename Extent>
dim3 as_dim3(Extent extent) {
  if constexpr (std::is_integral_v<Extent>) {
    return dim3(static_cast<unsigned>(extent));
  } else {
    return extent;
  }
}

template <typename Grid, typename Block, typename Kernel, typename... Arguments>
void launch(Grid grid, Block block, size_t shared_bytes, cudaStream_t, Kernel kernel,
            Arguments... arguments) {
  enqueue([=] {
    run_grid(as_dim3(grid), as_dim3(block), shared_bytes, [&] { kernel(arguments...); });
  });
}

template <typename T>
T from_lane(T value, unsigned lane) {
  static_assert(sizeof(T) <= 16);
  std::memcpy(slot_of_lane(threadIdx.x % 32), &value, sizeof(T));
  warp_barrier();
  std::memcpy(&value, slot_of_lane(lane), sizeof(T));
  warp_barrier();
  return value;
}

template <typename To, typename From>
To same_bits(From from) {
  To to;
  static_assert(sizeof(To) == sizeof(From));
  std::memcpy(&to, &from, sizeof(To));
  return to;
}

}  // namespace emulation

inline void __syncthreads() { emulation::block_barrier(); }
inline void __syncwarp() { emulation::warp_barrier(); }
template <typename T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return emulation::from_lane(value, threadIdx.x % 32 ^ mask);
}
inline unsigned __ballot_sync(unsigned, bool flag) {
  unsigned votes = 0;
  for (unsigned lane = 0; lane < 32; ++lane) {
    votes |= static_cast<unsigned>(emulation::from_lane(flag, lane)) << lane;
  }
  return votes;
}

template <typename T>
T atomicAdd(T* place, T value) {
  const T before = *place;
  *place += value;
  return before;
}
template <typename T>
T atomicMax(T* place, T value) {
  const T before = *place;
  *place = before > value ? before : value;
  return before;
}

using std::isfinite;
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __umulhi(unsigned a, unsigned b) { return uint64_t{a} * b >> 32; }
inline unsigned __float_as_uint(float x) { return emulation::same_bits<unsigned>(x); }
inline float __uint_as_float(unsigned x) { return emulation::same_bits<float>(x); }
inline long long __double_as_longlong(double x) { return emulation::same_bits<long long>(x); }
inline double __longlong_as_double(long long x) { return emulation::same_bits<double>(x); }
inline float __expf(float x) { return std::exp(x); }
inline float rsqrtf(float x) { return 1 / std::sqrt(x); }
template <typename A, typename B>
std::common_type_t<A, B> min(A a, B b) {
  return a < b ? a : b;
}
template <typename A, typename B>
std::common_type_t<A, B> max(A a, B b) {
  return a > b ? a : b;
}
template <typename Result, typename... Arguments>
cudaError_t cudaFuncSetAttribute(Result (*)(Arguments...), cudaFuncAttribute, int) {
  return cudaSuccess;
}
