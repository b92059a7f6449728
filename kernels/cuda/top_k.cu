#include <algorithm>
#include <bit>
#include <type_traits>

#include "cuda/block_reduce.cuh"
#include "mirabelle/core/cuda_check.h"
#include "mirabelle/kernels/top_k.h"

namespace mirabelle::backend {
namespace {

// A block takes a segment: it finds the k-th largest score digit by digit (radix selection),
// collects those above it and the first of those equal to it, and sorts what it has. This must fit
// into shared memory, 16 bytes each, hence kMaxTopKOnCuda.
constexpr int kThreads = 512;
constexpr int kDigitBits = 8;
constexpr int kNumDigits = 1 << kDigitBits;
constexpr int32_t kNoIndex = INT32_MAX;

template <typename T>
using Key = std::conditional_t<sizeof(T) == 8, unsigned long long, unsigned>;

/// Keys compare as the scores do; -0 is taken for 0.
__device__ unsigned key_of(float score) {
  const unsigned bits = __float_as_uint(score + 0.0f);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
__device__ unsigned long long key_of(double score) {
  const auto bits = static_cast<unsigned long long>(__double_as_longlong(score + 0.0));
  return bits >> 63 ? ~bits : bits | 1ull << 63;
}

/// The key that `k` (1 .. n) elements are at least as large as, and how many of those that equal it
/// belong to the k.
template <typename T>
struct Threshold {
  Key<T> key;
  int num_equal;
};

template <typename T>
__device__ Threshold<T> find_threshold(const T* scores, int n, int k) {
  constexpr int kKeyBits = 8 * sizeof(T);
  __shared__ int counts[kNumDigits];
  __shared__ Key<T> prefix;
  __shared__ int wanted;  // of the elements whose upper digits are `prefix`
  if (threadIdx.x == 0) prefix = 0, wanted = k;
  for (int shift = kKeyBits - kDigitBits; shift >= 0; shift -= kDigitBits) {
    for (int digit = threadIdx.x; digit < kNumDigits; digit += kThreads) counts[digit] = 0;
    __syncthreads();
    const Key<T> upper = prefix;
    const bool is_first = shift == kKeyBits - kDigitBits;
    for (int i = threadIdx.x; i < n; i += kThreads) {
      const Key<T> key = key_of(scores[i]);
      if (is_first || key >> (shift + kDigitBits) == upper) {
        atomicAdd(&counts[static_cast<int>(key >> shift & (kNumDigits - 1))], 1);
      }
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      int digit = kNumDigits - 1;
      while (counts[digit] < wanted) wanted -= counts[digit--];
      prefix = upper << kDigitBits | static_cast<Key<T>>(digit);
    }
    __syncthreads();
  }
  return {prefix, wanted};
}

template <typename T>
struct Candidate {
  Key<T> key;
  int32_t index;
};

template <typename T>
__device__ bool goes_before(const Candidate<T>& a, const Candidate<T>& b, TopKOrder order) {
  if (order == TopKOrder::kByIndex) return a.index < b.index;
  return a.key > b.key || (a.key == b.key && a.index < b.index);
}

/// The number of lower threads for which `flag` holds, and of all threads.
struct Rank {
  int before, total;
};
__device__ Rank rank_in_block(bool flag) {
  constexpr int kWarps = kThreads / kWarp;
  __shared__ int of_warp[kWarps];
  const unsigned votes = __ballot_sync(kAllLanes, flag);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  __syncthreads();
  if (lane == 0) of_warp[warp] = __popc(votes);
  __syncthreads();
  Rank rank = {__popc(votes & ((1u << lane) - 1)), 0};
  for (int w = 0; w < kWarps; ++w) {
    if (w < warp) rank.before += of_warp[w];
    rank.total += of_warp[w];
  }
  return rank;
}

/// All elements above the threshold, and the first num_equal that equal it, in any order; those of
/// -infinity without their index.
template <typename T>
__device__ void collect(Candidate<T>* found, const T* scores, int n, Threshold<T> threshold) {
  const bool equal_is_none = threshold.key == key_of(-static_cast<T>(kInfinity));
  int num_above = 0, num_equal = 0;  // so far; the same in all threads
  for (int first = 0; first < n; first += kThreads) {
    const int i = first + static_cast<int>(threadIdx.x);
    const Key<T> key = i < n ? key_of(scores[i]) : 0;
    const bool above = i < n && key > threshold.key;
    const bool equal = i < n && key == threshold.key;
    const Rank rank_above = rank_in_block(above);
    const Rank rank_equal = rank_in_block(equal);
    if (above) found[threshold.num_equal + num_above + rank_above.before] = {key, i};
    if (equal && num_equal + rank_equal.before < threshold.num_equal) {
      found[num_equal + rank_equal.before] = {key, equal_is_none ? kNoIndex : i};
    }
    num_above += rank_above.total;
    num_equal += rank_equal.total;
  }
}

/// Bitonic sort of a power of two of candidates.
template <typename T>
__device__ void sort(Candidate<T>* candidates, int size, TopKOrder order) {
  for (int width = 2; width <= size; width *= 2) {
    for (int distance = width / 2; distance > 0; distance /= 2) {
      __syncthreads();
      for (int i = threadIdx.x; i < size; i += kThreads) {
        const int other = i ^ distance;
        if (other < i) continue;
        const bool forward = (i & width) == 0;
        const Candidate<T> a = candidates[i], b = candidates[other];
        if (goes_before(b, a, order) == forward) {
          candidates[i] = b;
          candidates[other] = a;
        }
      }
    }
  }
  __syncthreads();
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    top_k_kernel(T* values, int32_t* indices, const T* scores, const int32_t* sizes,
                 int64_t max_size, int k, int padded_k, TopKOrder order) {
  extern __shared__ __align__(16) unsigned char memory[];
  auto* found = reinterpret_cast<Candidate<T>*>(memory);
  const T* segment = scores + blockIdx.x * max_size;
  const int n = sizes[blockIdx.x], size = min(k, n);
  // Padding goes behind everything: the lowest key, and an index that no element has.
  for (int i = size + threadIdx.x; i < padded_k; i += kThreads) found[i] = {0, kNoIndex};
  if (size > 0) {
    collect(found, segment, n, find_threshold(segment, n, size));
    sort(found, padded_k, order);
  }
  for (int i = threadIdx.x; i < k; i += kThreads) {
    const int64_t out = static_cast<int64_t>(blockIdx.x) * k + i;
    const int32_t index = i < size ? found[i].index : kNoIndex;
    values[out] = index != kNoIndex ? segment[index] : -static_cast<T>(kInfinity);
    indices[out] = index != kNoIndex ? index : -1;
  }
}

}  // namespace

template <Device D, typename T>
void segmented_top_k(T* values, int32_t* indices, const T* scores, const int32_t* sizes,
                     int64_t num_segments, int64_t max_size, int64_t k, TopKOrder order,
                     const Stream& stream) {
  if (k == 0 || num_segments == 0) return;
  MIRABELLE_CHECK(k <= kMaxTopKOnCuda, "the top ", k, " are wanted; on CUDA at most ",
                  kMaxTopKOnCuda);
  const auto padded_k = static_cast<int>(std::bit_ceil(static_cast<uint64_t>(k)));
  const auto bytes = static_cast<int>(padded_k * sizeof(Candidate<T>));
  CUDA_CHECK(
      cudaFuncSetAttribute(top_k_kernel<T>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  top_k_kernel<T><<<num_segments, kThreads, bytes, stream.cuda()>>>(
      values, indices, scores, sizes, max_size, static_cast<int>(k), padded_k, order);
  CUDA_CHECK(cudaGetLastError());
}

#define INSTANTIATE(T)                                                                             \
  template void segmented_top_k<Device::kCuda, T>(T*, int32_t*, const T*, const int32_t*, int64_t, \
                                                  int64_t, int64_t, TopKOrder, const Stream&);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace mirabelle::backend
